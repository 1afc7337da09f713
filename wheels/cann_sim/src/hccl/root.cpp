#include "hccl/root.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "hccl/error.h"

// Hook of libascendcl; absent when libhccl is used alone.
extern "C" __attribute__((weak)) int cann_sim_physical_device();

namespace cann_sim::hccl {
namespace {

using std::chrono::steady_clock;

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
        const bool known = std::any_of(present.begin(), present.end(),
                                       [&](const Registered &item) { return item.registration.member.rank == rank; });
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
    const bool duplicate = std::any_of(waiting.present.begin(), waiting.present.end(), [&](const Registered &item) {
        return item.registration.member.rank == own.member.rank;
    });
    const uint32_t ranks = waiting.present.empty() ? own.ranks : waiting.present.front().registration.ranks;
    if (waiting.present.empty()) waiting.deadline = steady_clock::now() + waiting.timeout;
    *verdict = own.ranks != ranks ? refuse(HCCL_E_PARA, kRanksDisagree,
                                           rank + " was started with " + std::to_string(own.ranks) +
                                               " ranks, others with " + std::to_string(ranks))
               : duplicate        ? refuse(HCCL_E_PARA, kRanksDisagree, "two processes registered as " + rank)
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
        present.erase(
            std::remove_if(present.begin(), present.end(), [](const Registered &item) { return hung_up(item.socket); }),
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
        const auto root = std::find_if(waiting.begin(), waiting.end(),
                                       [&](const Rendezvous &item) { return item.root.nonce == registration.nonce; });
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
            for (const Registered &item : waiting.present) pollers.push_back({item.socket.fd(), POLLRDHUP, 0});
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

}  // namespace

RootInfo open_root() {
    const Settings settings = Settings::from_environment();
    RootInfo root{};
    root.magic = kMagic;
    root.nonce = random_nonce();
    const std::string address = select_address();
    const int port = settings.base_port + (cann_sim_physical_device != nullptr ? cann_sim_physical_device() : 0);
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
        throw Error(HCCL_E_PARA, kBadArgument, "the root info was not made by this library's HcclGetRootInfo");
    }
    const std::string where = "the root at " + to_string(root.endpoint);
    const Socket socket = connect_to(root.endpoint, deadline);
    if (!socket) {
        throw Error(
            HCCL_E_TIMEOUT, kConnectTimeout,
            "rank [" + std::to_string(self.rank) + "] could not reach " + where + " within HCCL_CONNECT_TIMEOUT");
    }
    const Registration registration{kMagic, root.nonce, ranks, self};
    // The root names the missing ranks at its own limit, which may come a moment after ours.
    const Deadline patience = deadline + std::chrono::seconds(1);
    Verdict verdict{};
    const Read outcome = write_all(socket.fd(), &registration, sizeof registration, deadline)
                             ? read_all(socket.fd(), &verdict, sizeof verdict, patience)
                             : Read::kClosed;
    if (outcome != Read::kDone) {
        throw Error(outcome == Read::kTimeout ? HCCL_E_TIMEOUT : HCCL_E_TCP_CONNECT, kConnectTimeout,
                    "rank [" + std::to_string(self.rank) + "] got no answer from " + where +
                        (outcome == Read::kTimeout ? " within HCCL_CONNECT_TIMEOUT" : ": the connection was closed"));
    }
    if (verdict.result != HCCL_SUCCESS) {
        throw Error(static_cast<HcclResult>(verdict.result),
                    std::strcmp(verdict.number, kRanksDisagree) == 0 ? kRanksDisagree : kConnectTimeout, verdict.text);
    }
    std::vector<Member> members(ranks);
    if (read_all(socket.fd(), members.data(), ranks * sizeof(Member), patience) != Read::kDone) {
        throw Error(HCCL_E_TCP_CONNECT, kConnectTimeout, where + " closed the connection");
    }
    return members;
}

}  // namespace cann_sim::hccl
