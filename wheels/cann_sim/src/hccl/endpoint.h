// Addresses of the simulated HCCL: which one a host is reached at, listening and connecting.
#pragma once

#include <cstdint>
#include <string>

#include "hccl/socket.h"

namespace cann_sim::hccl {

struct Endpoint {
    char address[64];  // numeric IPv4 or IPv6, NUL-terminated
    uint16_t port;
};

std::string to_string(const Endpoint &endpoint);

// The address that other hosts reach this one at, as HCCL selects it: HCCL_IF_IP, else HCCL_SOCKET_IFNAME
// (with HCCL_SOCKET_FAMILY), else the first interface by name, docker bridges after real ones and loopback
// last.
std::string select_address();

// Listens at `port`; at one that the kernel chooses where it is 0.
Socket listen_at(const std::string &address, int port, Endpoint *endpoint);

// Empty at the deadline: the other side may not listen yet, or its host may still be booting.
Socket connect_to(const Endpoint &endpoint, Deadline deadline);

// Empty where nobody waits to be accepted.
Socket accept_from(const Socket &listener);

}  // namespace cann_sim::hccl
