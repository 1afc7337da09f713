// The gate through which members of a communicator connect to one another.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "hccl/member.h"

namespace cann_sim::hccl {

// Listens for the members of one communicator and of those that are split from it.
class Gate {
public:
    Gate();
    const Endpoint &endpoint() const { return endpoint_; }

    // Connects to all `members`; result[i] is the connection to member i, empty at `self`. A lower rank
    // listens and a higher one connects. `nonce` tells communicators apart that share a gate.
    std::vector<Socket> connect(const std::vector<Member> &members, uint32_t self, const Nonce &nonce,
                                Deadline deadline);

private:
    struct Arrival {
        Nonce nonce;
        uint32_t rank;
        Socket socket;
    };

    std::mutex mutex_;
    Socket listener_;
    Endpoint endpoint_{};
    std::vector<Arrival> early_;  // members of a communicator that this rank has not begun to make
};

}  // namespace cann_sim::hccl
