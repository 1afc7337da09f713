// Reads the container that cann_sim/atc/om_file.py writes: change both.

#include "pch.h"

#include "executor/reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "executor/checksum.h"
#include "executor/cursor.h"
#include "executor/decoder.h"

namespace cann_sim::executor {

namespace {

constexpr size_t kHeader = 256, kChecksum = 12, kUserInfo = 120, kModelLength = 184, kAlignment = 64;
constexpr uint32_t kMagic = 0x444F4D49, kPrograms = 0x53430001, kConstants = 0x53430002;
constexpr char kSimulated[] = "simulated by cann_sim";
std::unique_ptr<Model> read(const unsigned char *data, size_t size) {
    if (size < kHeader) {
        refuse("it is no OM file: it is shorter than the header of 256 bytes");
    }
    Cursor head(data, kHeader);
    if (head.get<uint32_t>() != kMagic || head.get<uint32_t>() != kHeader) {
        refuse("it is no OM file: it does not begin with the header IMOD");
    }
    if (std::strncmp(reinterpret_cast<const char *>(data + kUserInfo), kSimulated, 32) != 0) {
        refuse("it was made by another ATC than cann_sim's: it can run on a card only");
    }
    const unsigned char *body = data + kHeader;
    size -= kHeader;
    const auto length = Cursor(data + kModelLength, 8).get<uint64_t>();
    if (length != size) {
        refuse("it is truncated: its header says " + std::to_string(length) + " bytes, and " + std::to_string(size) +
               " follow");
    }
    unsigned char cleared[kHeader];
    std::memcpy(cleared, data, kHeader);
    std::memset(cleared + kChecksum, 0, 64);
    char digest[64] = {};
    std::snprintf(digest, sizeof digest, "crc32:%08x", crc32(crc32(0, cleared, kHeader), body, size));
    if (std::memcmp(digest, data + kChecksum, sizeof digest) != 0) {
        refuse("it was altered or damaged: its checksum is not the one in its header");
    }

    struct Partition {
        const unsigned char *data = nullptr;
        size_t size = 0;
    };
    std::map<uint32_t, Partition> partitions;
    Cursor table(body, size);
    for (size_t left = table.count(20); left > 0; --left) {
        const auto kind = table.get<uint32_t>();
        const auto offset = table.get<uint64_t>(), bytes = table.get<uint64_t>();
        if (offset > size || bytes > size - offset) {
            refuse("a partition lies outside the file");
        }
        partitions[kind] = {body + offset, static_cast<size_t>(bytes)};
    }
    const Partition &programs = partitions[kPrograms], &constants = partitions[kConstants];
    if (reinterpret_cast<uintptr_t>(constants.data) % kAlignment != 0) {
        refuse("its constants are not aligned to 64 bytes");
    }
    return decode(programs.data, programs.size, constants.data, constants.size);
}

}  // namespace

std::unique_ptr<Model> read_file(const std::string &path) {
    const auto unreadable = [&path] { throw Failure(CANN_SIM_EXECUTOR_NO_FILE, path + ": " + std::strerror(errno)); };
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0) {
        unreadable();
    }
    const auto size = static_cast<size_t>(status.st_size);
    void *data = size == 0 ? nullptr : mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
    const int reason = errno;
    close(file);
    if (data == MAP_FAILED) {
        errno = reason;
        unreadable();
    }
    const std::shared_ptr<const void> mapping(data, [size](const void *begin) {
        if (begin != nullptr) {
            munmap(const_cast<void *>(begin), size);
        }
    });
    try {
        auto model = read(static_cast<const unsigned char *>(data), size);
        model->file = mapping;
        return model;
    } catch (const Failure &failure) {
        throw Failure(failure.code, path + ": " + failure.what());
    }
}

std::unique_ptr<Model> read_memory(const void *data, size_t size) {
    void *copy = std::aligned_alloc(kAlignment, (size + kAlignment - 1) / kAlignment * kAlignment);
    if (copy == nullptr) {
        throw std::bad_alloc();
    }
    const std::shared_ptr<const void> owner(copy, [](const void *begin) { std::free(const_cast<void *>(begin)); });
    std::memcpy(copy, data, size);
    auto model = read(static_cast<const unsigned char *>(copy), size);
    model->file = owner;
    return model;
}

}  // namespace cann_sim::executor
