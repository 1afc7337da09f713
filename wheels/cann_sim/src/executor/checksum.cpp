// CRC-32, eight bytes at a time ("slicing by 8", M. Kounavis and F. Berry, 2005): an OM of ViT-B has 344 MB.

#include "executor/checksum.h"

#include <array>
#include <cstring>

namespace cann_sim::executor {

namespace {

constexpr uint32_t kPolynomial = 0xEDB88320;

using Tables = std::array<std::array<uint32_t, 256>, 8>;

Tables make_tables() {
    Tables tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t rest = byte;
        for (int bit = 0; bit < 8; ++bit) {
            rest = (rest >> 1) ^ ((rest & 1) != 0 ? kPolynomial : 0);
        }
        tables[0][byte] = rest;
    }
    for (size_t table = 1; table < 8; ++table) {
        for (size_t byte = 0; byte < 256; ++byte) {
            const uint32_t shorter = tables[table - 1][byte];
            tables[table][byte] = (shorter >> 8) ^ tables[0][shorter & 255];
        }
    }
    return tables;
}

}  // namespace

uint32_t crc32(uint32_t before, const unsigned char *data, size_t size) {
    static const Tables tables = make_tables();
    uint32_t rest = ~before;
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low, high;  // little-endian, as the file
        std::memcpy(&low, data, 4);
        std::memcpy(&high, data + 4, 4);
        low ^= rest;
        rest = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
               tables[3][high & 255] ^ tables[2][high >> 8 & 255] ^ tables[1][high >> 16 & 255] ^ tables[0][high >> 24];
    }
    for (; size > 0; ++data, --size) {
        rest = (rest >> 8) ^ tables[0][(rest ^ *data) & 255];
    }
    return ~rest;
}

}  // namespace cann_sim::executor
