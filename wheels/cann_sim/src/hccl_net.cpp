#include "hccl_net.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <list>
#include <set>
#include <thread>

#include "hccl_error.h"

// Hook of libascendcl; absent when libhccl is used alone.
extern "C" __attribute__((weak)) int cann_sim_physical_device();

namespace cann_sim::hccl {
namespace {

constexpr uint64_t kMagic = 0x4843434c53494d31;  // "HCCLSIM1"; the digit is the version of the wire format
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// ---- descriptors and fork ----

struct Descriptors {
    std::mutex mutex;
    std::set<int> open;
    int generation = 0;
};

// Never destroyed: threads of this library may outlive static destructors.
Descriptors &descriptors() {
    static Descriptors *instance = [] {
        pthread_atfork([] { descriptors().mutex.lock(); }, [] { descriptors().mutex.unlock(); },
                       [] {
                           for (int fd : descriptors().open) ::close(fd);
                           descriptors().open.clear();
                           ++descriptors().generation;
                           descriptors().mutex.unlock();
                       });
        return new Descriptors;
    }();
    return *instance;
}

std::string reason(int error) { return std::strerror(error); }

int milliseconds_until(Deadline deadline) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left + 1, 0, 1 << 30));
}

// Waits until `fd` is ready; false at the deadline.
bool wait_for(int fd, short events, Deadline deadline) {
    while (true) {
        pollfd poller{fd, events, 0};
        const int ready = poll(&poller, 1, milliseconds_until(deadline));
        if (ready > 0) return true;
        if (ready == 0 || errno != EINTR) return false;
    }
}

bool write_all(int fd, const void *data, size_t size, Deadline deadline) {
    auto *bytes = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            bytes += sent;
            size -= static_cast<size_t>(sent);
        } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            return false;
        } else if (!wait_for(fd, POLLOUT, deadline)) {
            return false;
        }
    }
    return true;
}

enum class Read { kDone, kTimeout, kClosed };

Read read_all(int fd, void *data, size_t size, Deadline deadline) {
    auto *bytes = static_cast<char *>(data);
    while (size > 0) {
        const ssize_t got = recv(fd, bytes, size, MSG_DONTWAIT);
        if (got > 0) {
            bytes += got;
            size -= static_cast<size_t>(got);
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            return Read::kClosed;
        } else if (!wait_for(fd, POLLIN, deadline)) {
            return Read::kTimeout;
        }
    }
    return Read::kDone;
}

// ---- addresses ----

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
        if (item->ifa_addr == nullptr || item->ifa_addr->sa_family != family ||
            (item->ifa_flags & IFF_UP) == 0) {
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

// ---- listening and connecting ----

// Listens at `port`; at one that the kernel chooses where it is 0.
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
    if (bind(listener.fd(), reinterpret_cast<sockaddr *>(&storage), length) != 0 ||
        listen(listener.fd(), 1024) != 0) {
        if (errno == EADDRINUSE) {
            throw Error(HCCL_E_UNAVAIL, kPortInUse,
                        "The IP address " + address + " and port " + std::to_string(port) +
                            " have already been bound.");
        }
        throw Error(HCCL_E_NETWORK, kBadEnvironment,
                    "cannot listen at " + address + ": " + reason(errno) +
                        "; is it an address of this host? (HCCL_IF_IP, HCCL_SOCKET_IFNAME)");
    }
    getsockname(listener.fd(), reinterpret_cast<sockaddr *>(&storage), &length);
    endpoint->port =
        ntohs(storage.ss_family == AF_INET ? reinterpret_cast<sockaddr_in *>(&storage)->sin_port
                                           : reinterpret_cast<sockaddr_in6 *>(&storage)->sin6_port);
    return listener;
}

void prepare(const Socket &socket) {
    const int on = 1;
    setsockopt(socket.fd(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(socket.fd(), F_SETFL, fcntl(socket.fd(), F_GETFL) | O_NONBLOCK);
}

// Empty at the deadline: the other side may not listen yet, or its host may still be booting.
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
        if (steady_clock::now() >= deadline) return {};
        std::this_thread::sleep_for(milliseconds(20));
    }
}

Socket accept_from(const Socket &listener) {
    Socket accepted(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (accepted) prepare(accepted);
    return accepted;
}

// ---- rendezvous ----

struct Registration {
    uint64_t magic;
    Nonce nonce;
    uint32_t ranks;
    Member member;
};

struct Verdict {
    int32_t result;  // HcclResult; HCCL_SUCCESS is followed by the table of members
    char number[8];
    char text[244];
};

struct Registered {
    Registration registration;
    Socket socket;
};

Verdict refuse(HcclResult result, const char *number, const std::string &text) {
    Verdict verdict{};
    verdict.result = result;
    std::strncpy(verdict.number, number, sizeof verdict.number - 1);
    std::strncpy(verdict.text, text.c_str(), sizeof verdict.text - 1);
    return verdict;
}

std::string missing_ranks(const std::vector<Registered> &present, uint32_t ranks) {
    std::string missing;
    for (uint32_t rank = 0; rank < ranks; ++rank) {
        const bool known = std::any_of(present.begin(), present.end(), [&](const Registered &item) {
            return item.registration.member.rank == rank;
        });
        if (!known) missing += (missing.empty() ? "" : ",") + std::to_string(rank);
    }
    return missing;
}

void answer(const std::vector<Registered> &present, const Verdict &verdict) {
    std::vector<Member> members(present.size());
    for (const Registered &item : present) {
        if (verdict.result == HCCL_SUCCESS) members[item.registration.member.rank] = item.registration.member;
    }
    const Deadline deadline = steady_clock::now() + std::chrono::seconds(5);
    for (const Registered &item : present) {
        write_all(item.socket.fd(), &verdict, sizeof verdict, deadline);
        if (verdict.result == HCCL_SUCCESS) {
            write_all(item.socket.fd(), members.data(), members.size() * sizeof(Member), deadline);
        }
    }
}

// A root that waits for its ranks. The limit counts from the first rank: the process that opened the root may take
// long to start the others.
struct Rendezvous {
    RootInfo root;
    std::chrono::seconds timeout;
    std::vector<Registered> present;
    Deadline deadline = Deadline::max();
};

struct Answer {
    std::vector<Registered> ranks;
    Verdict verdict;
};

// The roots of this process that are open, by the port at which they wait.
struct Roots {
    std::mutex mutex;
    std::map<std::string, std::list<Rendezvous>> by_port;
};

Roots *&roots() {
    static Roots *instance = [] {
        // A forked child has neither the threads that serve them nor their sockets.
        pthread_atfork(nullptr, nullptr, [] { roots() = new Roots; });
        return new Roots;
    }();
    return instance;
}

bool hung_up(const Socket &socket) {
    pollfd poller{socket.fd(), POLLRDHUP, 0};
    return poll(&poller, 1, 0) > 0 && (poller.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

// Reads a registration once all of it is here: peeking leaves a half-arrived one in the socket, so no buffer per
// connection is needed.
enum class Arrived { kAll, kPart, kNothing };

Arrived read_registration(const Socket &socket, Registration *registration) {
    const ssize_t got = recv(socket.fd(), registration, sizeof *registration, MSG_PEEK | MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return Arrived::kNothing;
    if (got < static_cast<ssize_t>(sizeof *registration)) return Arrived::kPart;
    recv(socket.fd(), registration, sizeof *registration, MSG_DONTWAIT);
    return registration->magic == kMagic ? Arrived::kAll : Arrived::kNothing;
}

Verdict late(const Rendezvous &waiting) {
    const uint32_t ranks = waiting.present.front().registration.ranks;
    return refuse(HCCL_E_TIMEOUT, kConnectTimeout,
                  "rank [" + missing_ranks(waiting.present, ranks) + "] of " + std::to_string(ranks) +
                      " did not register at " + to_string(waiting.root.endpoint) + " within " +
                      std::to_string(waiting.timeout.count()) + " s (HCCL_CONNECT_TIMEOUT)");
}

// Takes in a rank. True when `verdict` is the answer to all that are present: they are complete, or the rank
// contradicts the others, which ends the rendezvous, because it can no longer succeed.
bool admit(Rendezvous &waiting, Registered arrival, Verdict *verdict) {
    const Registration &own = arrival.registration;
    const std::string rank = "rank [" + std::to_string(own.member.rank) + "]";
    const bool duplicate =
        std::any_of(waiting.present.begin(), waiting.present.end(), [&](const Registered &item) {
            return item.registration.member.rank == own.member.rank;
        });
    const uint32_t ranks = waiting.present.empty() ? own.ranks : waiting.present.front().registration.ranks;
    if (waiting.present.empty()) waiting.deadline = steady_clock::now() + waiting.timeout;
    *verdict = own.ranks != ranks
                   ? refuse(HCCL_E_PARA, kRanksDisagree,
                            rank + " was started with " + std::to_string(own.ranks) + " ranks, others with " +
                                std::to_string(ranks))
               : duplicate ? refuse(HCCL_E_PARA, kRanksDisagree, "two processes registered as " + rank)
                           : Verdict{};
    waiting.present.push_back(std::move(arrival));
    return verdict->result != HCCL_SUCCESS || waiting.present.size() == ranks;
}

// Removes the roots whose time is up and forgets ranks that gave up: they may be started again, and the others keep
// waiting for them.
void expire(std::list<Rendezvous> &waiting, std::vector<Answer> *answers) {
    for (auto root = waiting.begin(); root != waiting.end();) {
        if (steady_clock::now() >= root->deadline) {
            const Verdict verdict = late(*root);
            answers->push_back({std::move(root->present), verdict});
            root = waiting.erase(root);
            continue;
        }
        auto &present = root->present;
        present.erase(std::remove_if(present.begin(), present.end(),
                                     [](const Registered &item) { return hung_up(item.socket); }),
                      present.end());
        if (present.empty()) root->deadline = Deadline::max();
        ++root;
    }
}

// Hands registrations to their roots; a stranger (port scanner, rank of an earlier run) is dropped.
void register_ranks(std::vector<Socket> *pending, std::list<Rendezvous> &waiting, std::vector<Answer> *answers) {
    std::vector<Socket> unread;
    for (Socket &socket : *pending) {
        Registration registration;
        const Arrived arrived = read_registration(socket, &registration);
        if (arrived == Arrived::kPart) unread.push_back(std::move(socket));
        if (arrived != Arrived::kAll) continue;
        const auto root = std::find_if(waiting.begin(), waiting.end(), [&](const Rendezvous &item) {
            return item.root.nonce == registration.nonce;
        });
        Verdict verdict;
        if (root != waiting.end() && admit(*root, {registration, std::move(socket)}, &verdict)) {
            answers->push_back({std::move(root->present), verdict});
            waiting.erase(root);
        }
    }
    *pending = std::move(unread);
}

// Waits until a rank comes, writes or leaves, or a root's time is up.
void wait_for_ranks(const Socket &listener, const std::vector<Socket> &pending, const std::string &port) {
    std::vector<pollfd> pollers{{listener.fd(), POLLIN, 0}};
    for (const Socket &socket : pending) pollers.push_back({socket.fd(), POLLIN, 0});
    Deadline deadline = Deadline::max();
    {
        const std::lock_guard<std::mutex> lock(roots()->mutex);
        for (const Rendezvous &waiting : roots()->by_port[port]) {
            for (const Registered &item : waiting.present)
                pollers.push_back({item.socket.fd(), POLLRDHUP, 0});
            deadline = std::min(deadline, waiting.deadline);
        }
    }
    poll(pollers.data(), pollers.size(), deadline == Deadline::max() ? -1 : milliseconds_until(deadline));
}

// Serves the roots of one port until none is left. The port is free again before the last ranks are answered: one of
// them may open the next root.
void serve_roots(Socket listener, const std::string &port) {
    std::vector<Socket> pending;
    for (bool open = true; open;) {
        wait_for_ranks(listener, pending, port);
        std::vector<Answer> answers;
        {
            const std::lock_guard<std::mutex> lock(roots()->mutex);
            std::list<Rendezvous> &waiting = roots()->by_port[port];
            expire(waiting, &answers);
            register_ranks(&pending, waiting, &answers);
            while (Socket accepted = accept_from(listener)) pending.push_back(std::move(accepted));
            open = !waiting.empty();
            if (!open) {
                roots()->by_port.erase(port);
                listener.close();
            }
        }
        for (const Answer &item : answers) answer(item.ranks, item.verdict);
    }
}

struct Hello {
    uint64_t magic;
    Nonce nonce;
    uint32_t rank;
};

}  // namespace

int fork_generation() { return descriptors().generation; }

Socket::Socket(int fd) : fd_(fd), generation_(fork_generation()) {
    if (fd_ < 0) return;
    const std::lock_guard<std::mutex> lock(descriptors().mutex);
    descriptors().open.insert(fd_);
}

Socket::Socket(Socket &&other) noexcept : fd_(other.fd_), generation_(other.generation_) { other.fd_ = -1; }

Socket &Socket::operator=(Socket &&other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(generation_, other.generation_);
    return *this;
}

void Socket::close() {
    if (fd_ < 0) return;
    const std::lock_guard<std::mutex> lock(descriptors().mutex);
    // In a forked child the number may already stand for another file.
    if (generation_ == descriptors().generation && descriptors().open.erase(fd_) == 1) ::close(fd_);
    fd_ = -1;
}

std::string to_string(const Endpoint &endpoint) {
    return "[" + std::string(endpoint.address) + "]:" + std::to_string(endpoint.port);
}

std::string select_address() {
    const char *ip = std::getenv("HCCL_IF_IP");
    if (ip != nullptr && *ip != '\0') return ip;
    const char *family_name = std::getenv("HCCL_SOCKET_FAMILY");
    const int family =
        family_name != nullptr && std::strcmp(family_name, "AF_INET6") == 0 ? AF_INET6 : AF_INET;
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

RootInfo open_root() {
    const Settings settings = Settings::from_environment();
    RootInfo root{};
    root.magic = kMagic;
    root.nonce = random_nonce();
    const std::string address = select_address();
    const int port =
        settings.base_port + (cann_sim_physical_device != nullptr ? cann_sim_physical_device() : 0);
    const std::string key = address + "%" + std::to_string(port);
    const std::lock_guard<std::mutex> lock(roots()->mutex);
    const auto served = roots()->by_port.find(key);
    if (served != roots()->by_port.end()) {  // this process waits there already, for other ranks
        root.endpoint = served->second.front().root.endpoint;
        served->second.push_back({root, settings.connect_timeout, {}});
        return root;
    }
    Socket listener = listen_at(address, port, &root.endpoint);
    roots()->by_port[key].push_back({root, settings.connect_timeout, {}});
    std::thread([listener = std::move(listener), key]() mutable {
        pthread_setname_np(pthread_self(), "hccl_root");
        serve_roots(std::move(listener), key);
    }).detach();
    return root;
}

std::vector<Member> join_root(const RootInfo &root, uint32_t ranks, const Member &self, Deadline deadline) {
    if (root.magic != kMagic) {
        throw Error(HCCL_E_PARA, kBadArgument,
                    "the root info was not made by this library's HcclGetRootInfo");
    }
    const std::string where = "the root at " + to_string(root.endpoint);
    const Socket socket = connect_to(root.endpoint, deadline);
    if (!socket) {
        throw Error(HCCL_E_TIMEOUT, kConnectTimeout,
                    "rank [" + std::to_string(self.rank) + "] could not reach " + where +
                        " within HCCL_CONNECT_TIMEOUT");
    }
    const Registration registration{kMagic, root.nonce, ranks, self};
    // The root names the missing ranks at its own limit, which may come a moment after ours.
    const Deadline patience = deadline + std::chrono::seconds(1);
    Verdict verdict{};
    const Read outcome = write_all(socket.fd(), &registration, sizeof registration, deadline)
                             ? read_all(socket.fd(), &verdict, sizeof verdict, patience)
                             : Read::kClosed;
    if (outcome != Read::kDone) {
        throw Error(
            outcome == Read::kTimeout ? HCCL_E_TIMEOUT : HCCL_E_TCP_CONNECT, kConnectTimeout,
            "rank [" + std::to_string(self.rank) + "] got no answer from " + where +
                (outcome == Read::kTimeout ? " within HCCL_CONNECT_TIMEOUT" : ": the connection was closed"));
    }
    if (verdict.result != HCCL_SUCCESS) {
        throw Error(static_cast<HcclResult>(verdict.result),
                    std::strcmp(verdict.number, kRanksDisagree) == 0 ? kRanksDisagree : kConnectTimeout,
                    verdict.text);
    }
    std::vector<Member> members(ranks);
    if (read_all(socket.fd(), members.data(), ranks * sizeof(Member), patience) != Read::kDone) {
        throw Error(HCCL_E_TCP_CONNECT, kConnectTimeout, where + " closed the connection");
    }
    return members;
}

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

Nonce random_nonce() {
    Nonce nonce{};
    if (getrandom(nonce.data(), sizeof nonce, 0) != sizeof nonce) {
        throw Error(HCCL_E_SYSCALL, kResource, "getrandom: " + reason(errno));
    }
    return nonce;
}

}  // namespace cann_sim::hccl
