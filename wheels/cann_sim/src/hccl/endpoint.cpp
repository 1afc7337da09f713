#include "hccl/endpoint.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "hccl/error.h"

namespace cann_sim::hccl {
namespace {

socklen_t parse(const Endpoint &endpoint, sockaddr_storage *storage) {
    std::memset(storage, 0, sizeof *storage);
    auto *v4 = reinterpret_cast<sockaddr_in *>(storage);
    auto *v6 = reinterpret_cast<sockaddr_in6 *>(storage);
    if (inet_pton(AF_INET, endpoint.address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(endpoint.port);
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, endpoint.address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(endpoint.port);
        return sizeof *v6;
    }
    throw Error(HCCL_E_PARA, kBadEnvironment, std::string(endpoint.address) + " is no IPv4 or IPv6 address");
}

struct Interface {
    std::string name;
    std::string address;
};

std::vector<Interface> interfaces(int family) {
    ifaddrs *head = nullptr;
    if (getifaddrs(&head) != 0) throw Error(HCCL_E_SYSCALL, kResource, "getifaddrs: " + reason(errno));
    std::vector<Interface> found;
    for (ifaddrs *item = head; item != nullptr; item = item->ifa_next) {
        if (item->ifa_addr == nullptr || item->ifa_addr->sa_family != family || (item->ifa_flags & IFF_UP) == 0) {
            continue;
        }
        char text[INET6_ADDRSTRLEN];
        if (family == AF_INET6) {
            auto *address = &reinterpret_cast<sockaddr_in6 *>(item->ifa_addr)->sin6_addr;
            if (IN6_IS_ADDR_LINKLOCAL(address)) continue;  // useless to a peer without our scope id
            inet_ntop(family, address, text, sizeof text);
        } else {
            inet_ntop(family, &reinterpret_cast<sockaddr_in *>(item->ifa_addr)->sin_addr, text, sizeof text);
        }
        found.push_back({item->ifa_name, text});
    }
    freeifaddrs(head);
    const auto rank = [](const Interface &interface) {
        if (interface.name.rfind("lo", 0) == 0) return 2;
        return interface.name.rfind("docker", 0) == 0 ? 1 : 0;
    };
    std::stable_sort(found.begin(), found.end(), [&](const Interface &a, const Interface &b) {
        return rank(a) != rank(b) ? rank(a) < rank(b) : a.name < b.name;
    });
    return found;
}

// HCCL_SOCKET_IFNAME: "eth" prefix, "=eth0" exact, either negated by a leading "^"; names separated by
// commas.
bool selects(std::string pattern, const std::string &name) {
    const bool negated = pattern[0] == '^';
    if (negated) pattern.erase(0, 1);
    const bool exact = !pattern.empty() && pattern[0] == '=';
    if (exact) pattern.erase(0, 1);
    bool matched = false;
    for (size_t begin = 0; begin <= pattern.size();) {
        const size_t end = std::min(pattern.find(',', begin), pattern.size());
        const std::string item = pattern.substr(begin, end - begin);
        matched |= !item.empty() && (exact ? name == item : name.rfind(item, 0) == 0);
        begin = end + 1;
    }
    return matched != negated;
}

void prepare(const Socket &socket) {
    const int on = 1;
    setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(socket.fd(), F_SETFL, fcntl(socket.fd(), F_GETFL) | O_NONBLOCK);
}

}  // namespace

std::string to_string(const Endpoint &endpoint) {
    return "[" + std::string(endpoint.address) + "]:" + std::to_string(endpoint.port);
}

std::string select_address() {
    const char *ip = std::getenv("HCCL_IF_IP");
    if (ip != nullptr && *ip != '\0') return ip;
    const char *family_name = std::getenv("HCCL_SOCKET_FAMILY");
    const int family = family_name != nullptr && std::strcmp(family_name, "AF_INET6") == 0 ? AF_INET6 : AF_INET;
    const std::vector<Interface> found = interfaces(family);
    const char *pattern = std::getenv("HCCL_SOCKET_IFNAME");
    if (pattern == nullptr || *pattern == '\0') {
        return found.empty() ? (family == AF_INET ? "127.0.0.1" : "::1") : found.front().address;
    }
    std::string names;
    for (const Interface &interface : found) {
        if (selects(pattern, interface.name)) return interface.address;
        names += (names.empty() ? "" : ",") + interface.name;
    }
    throw Error(HCCL_E_PARA, kBadEnvironment,
                std::string("HCCL_SOCKET_IFNAME=") + pattern + " selects none of the interfaces " + names);
}

Socket listen_at(const std::string &address, int port, Endpoint *endpoint) {
    std::memset(endpoint, 0, sizeof *endpoint);
    std::strncpy(endpoint->address, address.c_str(), sizeof endpoint->address - 1);
    endpoint->port = static_cast<uint16_t>(port);
    sockaddr_storage storage;
    socklen_t length = parse(*endpoint, &storage);
    Socket listener(socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!listener) throw Error(HCCL_E_SYSCALL, kResource, "socket: " + reason(errno));
    const int on = 1;  // connections of a job that has just ended do not keep its port
    setsockopt(listener.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener.fd(), reinterpret_cast<sockaddr *>(&storage), length) != 0 || listen(listener.fd(), 1024) != 0) {
        if (errno == EADDRINUSE) {
            throw Error(
                HCCL_E_UNAVAIL, kPortInUse,
                "The IP address " + address + " and port " + std::to_string(port) + " have already been bound.");
        }
        throw Error(HCCL_E_NETWORK, kBadEnvironment,
                    "cannot listen at " + address + ": " + reason(errno) +
                        "; is it an address of this host? (HCCL_IF_IP, HCCL_SOCKET_IFNAME)");
    }
    getsockname(listener.fd(), reinterpret_cast<sockaddr *>(&storage), &length);
    endpoint->port = ntohs(storage.ss_family == AF_INET ? reinterpret_cast<sockaddr_in *>(&storage)->sin_port
                                                        : reinterpret_cast<sockaddr_in6 *>(&storage)->sin6_port);
    return listener;
}

Socket connect_to(const Endpoint &endpoint, Deadline deadline) {
    sockaddr_storage storage;
    const socklen_t length = parse(endpoint, &storage);
    while (true) {
        Socket attempt(socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        if (!attempt) throw Error(HCCL_E_SYSCALL, kResource, "socket: " + reason(errno));
        const int status = ::connect(attempt.fd(), reinterpret_cast<sockaddr *>(&storage), length);
        if (status == 0 || errno == EINPROGRESS || errno == EINTR) {
            if (!wait_for(attempt.fd(), POLLOUT, deadline)) return {};
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(attempt.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
            if (error == 0) {
                prepare(attempt);
                return attempt;
            }
        }
        if (std::chrono::steady_clock::now() >= deadline) return {};
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
}

Socket accept_from(const Socket &listener) {
    Socket accepted(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (accepted) prepare(accepted);
    return accepted;
}

}  // namespace cann_sim::hccl
