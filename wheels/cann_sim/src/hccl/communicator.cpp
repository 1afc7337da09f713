// Making a communicator, ending it, and what happens when a call fails.
#include "hccl/communicator.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace cann_sim::hccl {
using std::chrono::steady_clock;

const char *name_of(Op op) {
    static constexpr const char *kNames[] = {"AllReduce",     "AllGather",      "AllGatherV", "AlltoAll",
                                             "AlltoAllV",     "Barrier",        "Broadcast",  "Reduce",
                                             "ReduceScatter", "ReduceScatterV", "Scatter",    "SendRecv"};
    const auto index = static_cast<size_t>(op);
    return index < sizeof kNames / sizeof *kNames ? kNames[index] : "unknown";
}

// ---- making and ending ----

Communicator::Communicator(std::string name, std::vector<Member> members, uint32_t rank, const Nonce &nonce,
                           std::shared_ptr<Gate> gate, const Settings &settings, Deadline deadline,
                           void (*wake_sender)())
    : name_(std::move(name)),
      members_(std::move(members)),
      rank_(rank),
      nonce_(nonce),
      gate_(std::move(gate)),
      exec_timeout_(settings.exec_timeout),
      generation_(fork_generation()),
      wake_sender_(wake_sender),
      peers_(members_.size()) {
    std::vector<Socket> sockets = gate_->connect(members_, rank_, nonce_, deadline);
    for (uint32_t peer = 0; peer < size(); ++peer) {
        peers_[peer].socket = std::move(sockets[peer]);
        peers_[peer].pid = members_[peer].pid;
    }
    probe_memory(settings, deadline);
}

Communicator::~Communicator() = default;

// Finds out which peers may be given addresses: those that read a secret of ours from our memory. Nothing
// else (host name, namespace, user) says reliably whether the kernel allows it.
void Communicator::probe_memory(const Settings &settings, Deadline deadline) {
    struct Probe {
        uint64_t address;
        Nonce secret;
    };
    if (settings.shared_memory) {
        // Where Yama restricts ptrace, sibling ranks may read us only if we name an ancestor of theirs: the
        // launcher.
        prctl(PR_SET_PTRACER, getppid(), 0, 0, 0);
    }
    const Nonce secret = random_nonce();
    const auto transfer = [&](auto step, const char *what) {
        for (uint32_t peer = 0; peer < size(); ++peer) {
            if (peer == rank_) continue;
            while (!step(peer)) {
                pollfd poller{peers_[peer].socket.fd(), POLLIN, 0};
                if (steady_clock::now() >= deadline) {
                    throw Error(HCCL_E_TIMEOUT, kConnectTimeout,
                                "rank [" + std::to_string(rank_) + "] waited in vain for rank [" +
                                    std::to_string(peer) + "] to " + what);
                }
                poll(&poller, 1, 100);
            }
        }
    };
    const auto put = [&](uint32_t peer, const void *data, size_t bytes) {
        // A fresh connection has room for these few bytes.
        if (send(peers_[peer].socket.fd(), data, bytes, MSG_NOSIGNAL) != static_cast<ssize_t>(bytes)) {
            lost(peer, "while connecting");
        }
    };
    const auto get = [&](uint32_t peer, void *data, size_t bytes) {
        const ssize_t got = recv(peers_[peer].socket.fd(), data, bytes, MSG_PEEK | MSG_DONTWAIT);
        if (got == 0 || (got < 0 && !would_block())) lost(peer, "while connecting");
        if (got < static_cast<ssize_t>(bytes)) return false;
        return recv(peers_[peer].socket.fd(), data, bytes, 0) == static_cast<ssize_t>(bytes);
    };
    const Probe mine{settings.shared_memory ? reinterpret_cast<uint64_t>(secret.data()) : 0, secret};
    for (uint32_t peer = 0; peer < size(); ++peer) {
        if (peer != rank_) put(peer, &mine, sizeof mine);
    }
    std::vector<Probe> probes(size());
    transfer([&](uint32_t peer) { return get(peer, &probes[peer], sizeof(Probe)); }, "connect");
    for (uint32_t peer = 0; peer < size(); ++peer) {
        if (peer == rank_) continue;
        Nonce seen{};
        iovec local{seen.data(), sizeof seen};
        iovec remote{reinterpret_cast<void *>(probes[peer].address), sizeof seen};
        const char readable = settings.shared_memory && probes[peer].address != 0 &&
                              process_vm_readv(peers_[peer].pid, &local, 1, &remote, 1, 0) == sizeof seen &&
                              seen == probes[peer].secret;
        put(peer, &readable, 1);
    }
    transfer(
        [&](uint32_t peer) {
            char readable = 0;
            const bool done = get(peer, &readable, 1);
            peers_[peer].reads_me = readable != 0;
            return done;
        },
        "finish connecting");
}

void Communicator::close() {
    if (generation_ != fork_generation()) return;  // a forked child: its copies of the connections are closed already
    closing_ = true;
    // A call that waits in another thread holds the mutex: closing its connections ends it.
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) {
        for (const Peer &peer : peers_) {
            if (peer.socket) shutdown(peer.socket.fd(), SHUT_RDWR);
        }
        lock.lock();
    }
    // A peer that takes nothing for this long is as good as dead; finalisers must not hang on it.
    constexpr std::chrono::seconds kPatience(5);
    for (Peer &peer : peers_) {
        if (!peer.socket) continue;
        Deadline deadline = steady_clock::now() + kPatience;
        try {
            while (!failure_ && peer.congested() && steady_clock::now() < deadline) {
                if (flush(peer)) {
                    deadline = steady_clock::now() + kPatience;
                } else {
                    pollfd poller{peer.socket.fd(), POLLOUT, 0};
                    poll(&poller, 1, 100);
                }
            }
        } catch (const Error &) {
            // The peer is gone, and so is any use for the rest.
        }
        shutdown(peer.socket.fd(), SHUT_WR);
        // Closing with unread data would reset the connection and with it what the peer has not yet received.
        char rest[4096];
        while (recv(peer.socket.fd(), rest, sizeof rest, MSG_DONTWAIT) > 0) {
        }
        peer.socket.close();
        peer.outbox.clear();
    }
}

// ---- failing ----

std::string Communicator::describe(const Call &call) const {
    std::string text = std::string(name_of(call.op)) + "(count " + std::to_string(call.count) + ", " +
                       name_of(static_cast<HcclDataType>(call.type));
    const bool reduces = call.op == Op::kAllReduce || call.op == Op::kReduce || call.op == Op::kReduceScatter ||
                         call.op == Op::kReduceScatterV;
    if (reduces) text += std::string(", ") + name_of(static_cast<HcclReduceOp>(call.reduce));
    if (call.op == Op::kBroadcast || call.op == Op::kReduce || call.op == Op::kScatter) {
        text += ", root " + std::to_string(call.root);
    }
    return text + ", call " + std::to_string(call.sequence) + ")";
}

void Communicator::lost(uint32_t peer, const std::string &why) {
    throw Error(HCCL_E_REMOTE, kRemote,
                "rank [" + std::to_string(rank_) + "] lost remote rank [" + std::to_string(peer) + "] at " +
                    to_string(members_[peer].gate) + " " + why + "; tag[" + current_ + "_" + name_ + "] rankSize[" +
                    std::to_string(size()) + "]");
}

// Tells the peers, so that they fail with the same error now and not with a timeout later.
void Communicator::abort(const Error &error) {
    failure_ = std::make_unique<Error>(error);
    const std::string text(error.what(), std::min<size_t>(std::strlen(error.what()), 1024));
    Header header{};
    header.magic = kMessageMagic;
    header.kind = Header::Kind::kAbort;
    header.address = static_cast<uint64_t>(error.result());
    std::memcpy(&header.call.sequence, error.number(), std::min<size_t>(std::strlen(error.number()), 8));
    header.bytes = text.size();
    for (Peer &peer : peers_) {
        if (!peer.socket) continue;
        if (!peer.congested() && !peer.mid_message) {
            iovec parts[2] = {{&header, sizeof header}, {const_cast<char *>(text.data()), text.size()}};
            msghdr message{};
            message.msg_iov = parts;
            message.msg_iovlen = 2;
            sendmsg(peer.socket.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        }
        shutdown(peer.socket.fd(), SHUT_WR);
        peer.outbox.clear();
    }
}

void Communicator::run(const char *what, const std::function<void()> &body) {
    if (generation_ != fork_generation()) {
        throw Error(HCCL_E_UNAVAIL, kBadArgument,
                    "communicator " + name_ + " was made before fork(); make one in the child process");
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closing_) throw Error(HCCL_E_UNAVAIL, kBadArgument, "communicator " + name_ + " is being destroyed");
    if (failure_) throw Error(*failure_);
    current_ = what;
    try {
        body();
    } catch (const Error &error) {
        // A bad argument is refused before anything is sent; the communicator stays as it was.
        if (error.result() != HCCL_E_PARA || std::strcmp(error.number(), kBadArgument) != 0) abort(error);
        throw;
    } catch (const std::bad_alloc &) {
        abort(Error(HCCL_E_MEMORY, kResource, "rank [" + std::to_string(rank_) + "] is out of host memory"));
        throw Error(*failure_);
    }
}

void Communicator::check_rank(uint32_t rank, const char *role) const {
    if (rank >= size()) {
        throw Error(HCCL_E_PARA, kBadArgument,
                    std::string(role) + " " + std::to_string(rank) + " is not below rankSize " +
                        std::to_string(size()) + "; group[" + name_ + "]");
    }
}

// ---- for the thread that finishes sends ----

bool Communicator::try_flush() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    if (failure_ || closing_) return true;
    try {
        for (Peer &peer : peers_) {
            if (peer.socket && peer.congested()) flush(peer);
        }
    } catch (const Error &error) {
        abort(error);  // the next call on this communicator reports it
    }
    return true;
}

std::vector<int> Communicator::congested() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    std::vector<int> descriptors;
    if (!lock.owns_lock() || failure_ || closing_) return descriptors;
    for (const Peer &peer : peers_) {
        if (peer.socket && peer.congested()) descriptors.push_back(peer.socket.fd());
    }
    return descriptors;
}

}  // namespace cann_sim::hccl
