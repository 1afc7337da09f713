// CRC-32 as in zlib.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cann_sim::executor {

// Returns the checksum of the bytes behind those of which `before` is the checksum (0 for none).
uint32_t crc32(uint32_t before, const unsigned char *data, size_t size);

}  // namespace cann_sim::executor
