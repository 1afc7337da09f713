#include "hccl/gate.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "hccl/error.h"

namespace cann_sim::hccl {
namespace {

using std::chrono::steady_clock;

struct Hello {
    uint64_t magic;
    Nonce nonce;
    uint32_t rank;
};

}  // namespace

// On a card members meet at ports of the devices' own network, which no other host process takes.
Gate::Gate() { listener_ = listen_at(select_address(), 0, &endpoint_); }

std::vector<Socket> Gate::connect(const std::vector<Member> &members, uint32_t self, const Nonce &nonce,
                                  Deadline deadline) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Socket> sockets(members.size());
    const auto fail = [&](const std::string &ranks) -> Error {
        return Error(HCCL_E_TIMEOUT, kConnectTimeout,
                     "rank [" + std::to_string(self) + "] has no connection with rank [" + ranks +
                         "] within HCCL_CONNECT_TIMEOUT");
    };
    for (uint32_t peer = 0; peer < self; ++peer) {
        const Hello hello{kMagic, nonce, self};
        sockets[peer] = connect_to(members[peer].gate, deadline);
        if (!sockets[peer] || !write_all(sockets[peer].fd(), &hello, sizeof hello, deadline)) {
            throw fail(std::to_string(peer) + " at " + to_string(members[peer].gate));
        }
    }
    size_t awaited = members.size() - 1 - self;
    const auto admit = [&](Arrival &arrival) {
        const bool ours = arrival.nonce == nonce && arrival.rank > self && arrival.rank < members.size();
        if (!ours || sockets[arrival.rank]) return false;
        sockets[arrival.rank] = std::move(arrival.socket);
        --awaited;
        return true;
    };
    early_.erase(std::remove_if(early_.begin(), early_.end(), admit), early_.end());
    while (awaited > 0) {
        if (!wait_for(listener_.fd(), POLLIN, deadline)) {
            std::string missing;
            for (size_t peer = self + 1; peer < members.size(); ++peer) {
                if (!sockets[peer]) missing += (missing.empty() ? "" : ",") + std::to_string(peer);
            }
            throw fail(missing);
        }
        Arrival arrival{{}, 0, accept_from(listener_)};
        Hello hello{};
        // A member sends its greeting with the connection; a stranger must not hold up the others for long.
        const Deadline patience = std::min(deadline, steady_clock::now() + std::chrono::seconds(2));
        if (!arrival.socket || read_all(arrival.socket.fd(), &hello, sizeof hello, patience) != Read::kDone ||
            hello.magic != kMagic) {
            continue;
        }
        arrival.nonce = hello.nonce;
        arrival.rank = hello.rank;
        if (!admit(arrival)) early_.push_back(std::move(arrival));
    }
    return sockets;
}

}  // namespace cann_sim::hccl
