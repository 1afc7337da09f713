// Steps over bytes and copies them.
#pragma once

#include <cstdint>
#include <cstring>

namespace cann_sim::hccl {

inline void copy(void *destination, const void *source, uint64_t bytes) {
    if (bytes > 0 && destination != source) std::memmove(destination, source, bytes);
}

inline const char *at(const void *data, uint64_t bytes) { return static_cast<const char *>(data) + bytes; }
inline char *at(void *data, uint64_t bytes) { return static_cast<char *>(data) + bytes; }

}  // namespace cann_sim::hccl
