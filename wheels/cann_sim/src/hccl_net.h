// Sockets of the simulated HCCL and how ranks find each other: address selection, the root's rendezvous, and
// the gate through which members of a communicator connect to one another.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "third_party/hccl/inc/hccl/hccl_types.h"

namespace cann_sim::hccl {

using Deadline = std::chrono::steady_clock::time_point;
using Nonce = std::array<uint64_t, 2>;

// Number of forks between the process that loaded the library and this one. Sockets belong to one generation:
// a forked DataLoader worker must not hold its parent's connections open, or a dead rank would look alive.
int fork_generation();

// Owns one descriptor; closed in a forked child as soon as fork returns.
class Socket {
  public:
    Socket() = default;
    explicit Socket(int fd);
    Socket(Socket &&other) noexcept;
    Socket &operator=(Socket &&other) noexcept;
    ~Socket() { close(); }
    int fd() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    void close();

  private:
    int fd_ = -1;
    int generation_ = 0;
};

struct Endpoint {
    char address[64];  // numeric IPv4 or IPv6, NUL-terminated
    uint16_t port;
};

std::string to_string(const Endpoint &endpoint);

// The address that other hosts reach this one at, as HCCL selects it: HCCL_IF_IP, else HCCL_SOCKET_IFNAME
// (with HCCL_SOCKET_FAMILY), else the first interface by name, docker bridges after real ones and loopback
// last.
std::string select_address();

// What one rank tells the others. Sent as it is: all ranks run the same build of this library.
struct Member {
    Endpoint gate;
    int32_t pid;
    uint32_t rank;
};

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

Nonce random_nonce();

}  // namespace cann_sim::hccl
