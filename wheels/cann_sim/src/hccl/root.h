// How the ranks of a communicator find each other: they register at a root, which tells each of all.
#pragma once

#include <cstdint>
#include <vector>

#include "hccl/member.h"
#include "third_party/hccl/inc/hccl/hccl_types.h"

namespace cann_sim::hccl {

// What HcclRootInfo carries.
struct RootInfo {
    uint64_t magic;
    Nonce nonce;
    Endpoint endpoint;
};
static_assert(sizeof(RootInfo) <= HCCL_ROOT_INFO_BYTES);

// Opens the rendezvous and serves it from a thread until all ranks have come. It listens where HCCL does: at
// HCCL_IF_BASE_PORT (60000) plus the device's physical id.
RootInfo open_root();

// Registers with the rendezvous of `root` and returns all members in the order of their ranks.
std::vector<Member> join_root(const RootInfo &root, uint32_t ranks, const Member &self, Deadline deadline);

}  // namespace cann_sim::hccl
