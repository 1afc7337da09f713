// What one rank tells the others.
#pragma once

#include <array>
#include <cstdint>

#include "hccl/endpoint.h"

namespace cann_sim::hccl {

// Begins what travels between ranks; the digit is the version of the wire format: "HCCLSIM1".
inline constexpr uint64_t kMagic = 0x4843434c53494d31;

using Nonce = std::array<uint64_t, 2>;

Nonce random_nonce();

// Sent as it is: all ranks run the same build of this library.
struct Member {
    Endpoint gate;
    int32_t pid;
    uint32_t rank;
};

}  // namespace cann_sim::hccl
