#include "hccl_comm.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "hccl_registry.h"

namespace cann_sim::hccl {
namespace {

constexpr uint32_t kMessageMagic = 0x4d434348;  // "HCCM"

// Smaller payloads travel with their header: reading a peer's memory costs a system call and an
// acknowledgement.
constexpr uint64_t kByAddressBytes = 32 * 1024;
// Up to here an all-reduce sends everything to everyone: one round instead of two.
constexpr uint64_t kSmallAllReduceBytes = 16 * 1024;
// Payloads that arrive through sockets need room until they are added; larger operations go in slices of this
// size.
constexpr uint64_t kSliceBytes = 2 * 1024 * 1024;

using std::chrono::steady_clock;

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

void copy(void *destination, const void *source, uint64_t bytes) {
    if (bytes > 0 && destination != source) std::memmove(destination, source, bytes);
}

const char *at(const void *data, uint64_t bytes) { return static_cast<const char *>(data) + bytes; }
char *at(void *data, uint64_t bytes) { return static_cast<char *>(data) + bytes; }

// Share of rank `part` when `count` elements are spread over `parts` ranks.
uint64_t share_begin(uint64_t count, uint64_t part, uint64_t parts) {
    return count / parts * part + std::min(part, count % parts);
}

}  // namespace

const char *name_of(Op op) {
    static constexpr const char *kNames[] = {"AllReduce",     "AllGather",      "AllGatherV", "AlltoAll",
                                             "AlltoAllV",     "Barrier",        "Broadcast",  "Reduce",
                                             "ReduceScatter", "ReduceScatterV", "Scatter",    "SendRecv"};
    const auto index = static_cast<size_t>(op);
    return index < sizeof kNames / sizeof *kNames ? kNames[index] : "unknown";
}

Traffic &traffic() {
    static Traffic *instance = new Traffic;
    return *instance;
}

// ---- making and ending ----

Communicator::Communicator(std::string name, std::vector<Member> members, uint32_t rank, const Nonce &nonce,
                           std::shared_ptr<Gate> gate, const Settings &settings, Deadline deadline)
    : name_(std::move(name)),
      members_(std::move(members)),
      rank_(rank),
      nonce_(nonce),
      gate_(std::move(gate)),
      exec_timeout_(settings.exec_timeout),
      generation_(fork_generation()),
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
    if (generation_ != fork_generation())
        return;  // a forked child: its copies of the connections are closed already
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
    const Deadline deadline = steady_clock::now() + std::chrono::seconds(5);
    for (Peer &peer : peers_) {
        if (!peer.socket) continue;
        try {
            while (!failure_ && peer.congested() && steady_clock::now() < deadline) {
                if (!flush(peer)) {
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
    const bool reduces = call.op == Op::kAllReduce || call.op == Op::kReduce ||
                         call.op == Op::kReduceScatter || call.op == Op::kReduceScatterV;
    if (reduces) text += std::string(", ") + name_of(static_cast<HcclReduceOp>(call.reduce));
    if (call.op == Op::kBroadcast || call.op == Op::kReduce || call.op == Op::kScatter) {
        text += ", root " + std::to_string(call.root);
    }
    return text + ", call " + std::to_string(call.sequence) + ")";
}

void Communicator::lost(uint32_t peer, const std::string &why) {
    throw Error(HCCL_E_REMOTE, kRemote,
                "rank [" + std::to_string(rank_) + "] lost remote rank [" + std::to_string(peer) + "] at " +
                    to_string(members_[peer].gate) + " " + why + "; tag[" + current_ + "_" + name_ +
                    "] rankSize[" + std::to_string(size()) + "]");
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

template <typename Body>
void Communicator::run(const char *what, Body body) {
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

// ---- the exchange ----

struct Communicator::Lane {
    std::vector<Outgoing *> outgoing;
    std::vector<Incoming *> incoming;
    size_t out = 0;         // messages that are gone
    size_t in = 0;          // messages that are here
    uint64_t out_done = 0;  // bytes of the current one, header included
    uint64_t in_done = 0;   // payload bytes of the current one
    bool parked = false;    // a message has arrived that belongs to a later call

    bool sending() const { return out < outgoing.size(); }
    bool receiving() const { return in < incoming.size(); }
};

// Sends queued messages; true if anything went.
bool Communicator::flush(Peer &peer) {
    bool progress = false;
    while (!peer.outbox.empty()) {
        const std::vector<char> &first = peer.outbox.front();
        const ssize_t sent = ::send(peer.socket.fd(), first.data() + peer.outbox_sent,
                                    first.size() - peer.outbox_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && would_block()) return progress;
        if (sent < 0) lost(static_cast<uint32_t>(&peer - peers_.data()), "while sending");
        progress = true;
        traffic().socket_bytes += static_cast<uint64_t>(sent);
        peer.outbox_sent += static_cast<size_t>(sent);
        if (peer.outbox_sent == first.size()) {
            peer.outbox.pop_front();
            peer.outbox_sent = 0;
        }
    }
    return progress;
}

bool Communicator::send_some(uint32_t index, Lane &lane) {
    Peer &peer = peers_[index];
    bool progress = flush(peer);
    while (!peer.congested() && lane.sending()) {
        const Outgoing &item = *lane.outgoing[lane.out];
        const bool by_address =
            peer.reads_me && item.bytes >= kByAddressBytes && item.call.op != Op::kSendRecv;
        Header header{};
        header.magic = kMessageMagic;
        header.kind = by_address ? Header::Kind::kByAddress : Header::Kind::kInline;
        header.call = item.call;
        header.bytes = item.bytes;
        header.address = by_address ? reinterpret_cast<uint64_t>(item.data) : 0;
        const uint64_t payload = by_address ? 0 : item.bytes;
        const uint64_t header_left = lane.out_done < sizeof header ? sizeof header - lane.out_done : 0;
        const uint64_t payload_done = lane.out_done - (sizeof header - header_left);
        iovec parts[2] = {{reinterpret_cast<char *>(&header) + sizeof header - header_left, header_left},
                          {const_cast<char *>(at(item.data, payload_done)), payload - payload_done}};
        msghdr message{};
        message.msg_iov = parts;
        message.msg_iovlen = 2;
        const ssize_t sent = sendmsg(peer.socket.fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (would_block()) return progress;
            // It may have told us why before it closed the connection.
            while (!lane.parked && receive_some(index, lane)) {
            }
            lost(index, "while sending");
        }
        progress = true;
        traffic().socket_bytes += static_cast<uint64_t>(sent);
        lane.out_done += static_cast<uint64_t>(sent);
        peer.mid_message = lane.out_done < sizeof header + payload;
        if (!peer.mid_message) {
            if (by_address) ++peer.acknowledgements;
            lane.out_done = 0;
            ++lane.out;
        }
    }
    return progress;
}

// Handles a complete header. False: the message has to wait for a later call.
bool Communicator::accept_message(uint32_t index, Lane &lane) {
    Peer &peer = peers_[index];
    const Header &header = peer.header;
    if (header.magic != kMessageMagic) lost(index, "in a stream that makes no sense");
    if (header.kind == Header::Kind::kAcknowledge) {
        --peer.acknowledgements;
        peer.header_got = 0;
        return true;
    }
    if (header.kind == Header::Kind::kAbort) {
        std::string text(std::min<uint64_t>(header.bytes, 1024), '\0');
        text.resize(static_cast<size_t>(
            std::max<ssize_t>(recv(peer.socket.fd(), text.data(), text.size(), MSG_DONTWAIT), 0)));
        static constexpr const char *kNumbers[] = {kExecTimeout, kRanksDisagree, kRemote, kResource};
        const char *number = kRemote;
        for (const char *known : kNumbers) {
            if (std::memcmp(&header.call.sequence, known, std::strlen(known)) == 0) number = known;
        }
        const std::string prefix = "remote rank [" + std::to_string(index) + "] reported: ";
        const bool relayed = text.compare(0, 12, "remote rank ") == 0;
        throw Error(static_cast<HcclResult>(header.address), number, relayed ? text : prefix + text);
    }
    const Call &theirs = header.call;
    if (!lane.receiving()) {
        if (peer.acknowledgements == 0) return false;
        // It went on without taking what this call sent.
        throw Error(HCCL_E_PARA, kRanksDisagree,
                    "tag[" + current_ + "_" + name_ + "]: remote rank [" + std::to_string(index) +
                        "] called " + describe(theirs) + " instead of " + current_);
    }
    const Incoming &item = *lane.incoming[lane.in];
    const Call &ours = item.call;
    const bool agree = theirs.op == ours.op && theirs.phase == ours.phase && theirs.type == ours.type &&
                       theirs.reduce == ours.reduce && theirs.root == ours.root &&
                       theirs.count == ours.count && theirs.sequence == ours.sequence &&
                       header.bytes == item.bytes;
    if (!agree) {
        throw Error(HCCL_E_PARA, kRanksDisagree,
                    "tag[" + current_ + "_" + name_ + "]: local rank [" + std::to_string(rank_) +
                        "] called " + describe(ours) + " and expects " + std::to_string(item.bytes) +
                        " bytes, remote rank [" + std::to_string(index) + "] called " + describe(theirs) +
                        " and sends " + std::to_string(header.bytes) + " bytes");
    }
    return true;
}

bool Communicator::receive_some(uint32_t index, Lane &lane) {
    Peer &peer = peers_[index];
    const auto receive = [&](void *data, uint64_t bytes) -> uint64_t {
        const ssize_t got = recv(peer.socket.fd(), data, bytes, MSG_DONTWAIT);
        if (got == 0) lost(index, "which closed the connection");
        if (got < 0 && !would_block()) lost(index, std::string("while receiving: ") + std::strerror(errno));
        return got < 0 ? 0 : static_cast<uint64_t>(got);
    };
    bool progress = false;
    while (true) {
        if (peer.header_got < sizeof(Header)) {
            const uint64_t got = receive(reinterpret_cast<char *>(&peer.header) + peer.header_got,
                                         sizeof(Header) - peer.header_got);
            if (got == 0) return progress;
            progress = true;
            peer.header_got += got;
            if (peer.header_got < sizeof(Header)) continue;
        }
        if (lane.in_done == 0) {
            if (!accept_message(index, lane)) {
                lane.parked = true;
                return progress;
            }
            if (peer.header_got == 0) return true;  // it was an acknowledgement
        }
        Incoming &item = *lane.incoming[lane.in];
        if (peer.header.kind == Header::Kind::kByAddress) {
            if (item.defer) {
                item.address = peer.header.address;
            } else {
                read_remote(index, peer.header.address, item.data, item.bytes);
                acknowledge(index);
            }
        } else if (lane.in_done < item.bytes) {
            const uint64_t got = receive(at(item.data, lane.in_done), item.bytes - lane.in_done);
            if (got == 0) return progress;
            lane.in_done += got;
            progress = true;
            if (lane.in_done < item.bytes) continue;
        }
        peer.header_got = 0;
        lane.in_done = 0;
        ++lane.in;
        return true;
    }
}

void Communicator::acknowledge(uint32_t index) {
    Header header{};
    header.magic = kMessageMagic;
    header.kind = Header::Kind::kAcknowledge;
    auto *bytes = reinterpret_cast<const char *>(&header);
    peers_[index].outbox.emplace_back(bytes, bytes + sizeof header);
    flush(peers_[index]);
    if (peers_[index].congested()) wake_flusher();
}

void Communicator::read_remote(uint32_t index, uint64_t address, void *data, uint64_t bytes) {
    traffic().memory_bytes += bytes;
    while (bytes > 0) {
        iovec local{data, bytes};
        iovec remote{reinterpret_cast<void *>(address), bytes};
        const ssize_t got = process_vm_readv(peers_[index].pid, &local, 1, &remote, 1, 0);
        if (got <= 0) lost(index, std::string("while reading its memory: ") + std::strerror(errno));
        address += static_cast<uint64_t>(got);
        data = at(data, static_cast<uint64_t>(got));
        bytes -= static_cast<uint64_t>(got);
    }
}

void Communicator::wait_for_peers(const std::vector<Lane> &lanes, Deadline *deadline) {
    if (*deadline == Deadline{}) {
        *deadline = exec_timeout_.count() == 0 ? Deadline::max() : steady_clock::now() + exec_timeout_;
    }
    std::vector<pollfd> pollers;
    std::string awaited;
    for (uint32_t peer = 0; peer < size(); ++peer) {
        const Lane &lane = lanes[peer];
        const bool receiving = lane.receiving() || peers_[peer].acknowledgements > 0;
        const bool sending = lane.sending() || peers_[peer].congested();
        if (!receiving && !sending) continue;
        // Also while only sending: an abort or the end of the connection comes this way.
        const short in = lane.parked ? 0 : POLLIN;
        pollers.push_back({peers_[peer].socket.fd(), static_cast<short>(sending ? in | POLLOUT : in), 0});
        awaited += (awaited.empty() ? "" : ",") + std::to_string(peer);
    }
    const auto left =
        *deadline == Deadline::max()
            ? std::chrono::milliseconds(1000)
            : std::chrono::duration_cast<std::chrono::milliseconds>(*deadline - steady_clock::now());
    if (left.count() <= 0) {
        throw Error(HCCL_E_TIMEOUT, kExecTimeout,
                    "rank [" + std::to_string(rank_) + "] has heard nothing from remote rank [" + awaited +
                        "] for " + std::to_string(exec_timeout_.count()) + " s (HCCL_EXEC_TIMEOUT); tag[" +
                        current_ + "_" + name_ + "] call " + std::to_string(sequence_) + ", rankSize[" +
                        std::to_string(size()) + "]");
    }
    poll(pollers.data(), pollers.size(), static_cast<int>(std::min<int64_t>(left.count() + 1, 1000)));
    if (closing_)
        throw Error(HCCL_E_UNAVAIL, kBadArgument, "communicator " + name_ + " was destroyed during a call");
}

// Sends and receives all messages at once, in any order between peers and in the given order with each, so
// that no arrangement of calls that matches up can deadlock. `last`: also wait until nobody needs our buffers
// any more.
void Communicator::exchange(std::vector<Outgoing> &outgoing, std::vector<Incoming> &incoming, bool last) {
    std::vector<Lane> lanes(size());
    for (Outgoing &item : outgoing) lanes[item.peer].outgoing.push_back(&item);
    for (Incoming &item : incoming) lanes[item.peer].incoming.push_back(&item);
    Deadline deadline{};
    while (true) {
        bool progress = false;
        bool pending = false;
        for (uint32_t peer = 0; peer < size(); ++peer) {
            if (peer == rank_) continue;
            Lane &lane = lanes[peer];
            if (lane.sending() || peers_[peer].congested()) progress |= send_some(peer, lane);
            const bool watch = lane.receiving() || lane.sending() || peers_[peer].acknowledgements > 0;
            if (watch && !lane.parked) progress |= receive_some(peer, lane);
            pending |= lane.sending() || lane.receiving() || (last && peers_[peer].acknowledgements > 0);
        }
        if (!pending) return;
        if (progress) {
            deadline = {};
        } else {
            // No spinning before: where ranks share cores it takes the time that the awaited rank needs.
            wait_for_peers(lanes, &deadline);
        }
    }
}

char *Communicator::scratch(size_t bytes) {
    if (scratch_.size() * sizeof(uint64_t) < bytes)
        scratch_.resize((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
    return reinterpret_cast<char *>(scratch_.data());
}

// ---- operations ----

Call Communicator::begin(Op op, uint64_t count, HcclDataType type, HcclReduceOp reduce, uint32_t root) {
    Call call{};
    call.op = op;
    call.type = static_cast<uint8_t>(type);
    call.reduce = static_cast<uint8_t>(reduce);
    call.root = root;
    call.count = count;
    call.sequence = ++sequence_;
    return call;
}

// result[i] = op over the ranks, in their order, of what each one contributed. `incoming` holds one message
// per peer in the order of ranks, either here or still in the memory of the peer.
void Communicator::reduce_sources(const std::vector<Incoming> &incoming, const void *own, void *result,
                                  uint64_t count, HcclDataType type, HcclReduceOp op) {
    const uint64_t element = size_of(type);
    Reducer reducer(type, op);
    std::vector<uint64_t> remote(Reducer::kBlock * element / sizeof(uint64_t) + 1);
    for (uint64_t begin = 0; begin < count; begin += Reducer::kBlock) {
        const uint64_t length = std::min<uint64_t>(Reducer::kBlock, count - begin);
        size_t next = 0;
        for (uint32_t rank = 0; rank < size(); ++rank) {
            const void *values = at(own, begin * element);
            if (rank != rank_) {
                const Incoming &item = incoming[next++];
                values = at(item.data, begin * element);
                if (item.address != 0) {
                    read_remote(rank, item.address + begin * element, remote.data(), length * element);
                    values = remote.data();
                }
            }
            rank == 0 ? reducer.start(values, length) : reducer.add(values, length);
        }
        reducer.store(at(result, begin * element), length);
    }
    for (const Incoming &item : incoming) {
        if (item.address != 0) acknowledge(item.peer);
    }
}

void Communicator::all_reduce(const void *send, void *recv, uint64_t count, HcclDataType type,
                              HcclReduceOp op) {
    run("AllReduce", [&] {
        const uint64_t element = size_of(type);
        if (size() == 1) return copy(recv, send, count * element);
        Call call = begin(Op::kAllReduce, count, type, op, 0);
        if (count * element <= kSmallAllReduceBytes) {
            std::vector<Outgoing> outgoing;
            std::vector<Incoming> incoming;
            char *room = scratch(count * element * size());
            for (uint32_t peer = 0; peer < size(); ++peer) {
                if (peer == rank_) continue;
                outgoing.push_back({peer, call, send, count * element});
                incoming.push_back({peer, call, room + peer * count * element, count * element, false});
            }
            exchange(outgoing, incoming, true);
            return reduce_sources(incoming, send, recv, count, type, op);
        }
        // Every rank reduces its share of each slice and hands the result to all others.
        const uint64_t slice = kSliceBytes / element;
        for (uint64_t begin = 0; begin < count; begin += slice) {
            const uint64_t length = std::min(slice, count - begin);
            const auto offset = [&](uint32_t rank) {
                return (begin + share_begin(length, rank, size())) * element;
            };
            const auto bytes = [&](uint32_t rank) { return offset(rank + 1) - offset(rank); };
            char *room = scratch(bytes(rank_) * size());
            std::vector<Outgoing> outgoing;
            std::vector<Incoming> incoming;
            call.phase = 0;
            for (uint32_t peer = 0; peer < size(); ++peer) {
                if (peer == rank_) continue;
                outgoing.push_back({peer, call, at(send, offset(peer)), bytes(peer)});
                incoming.push_back({peer, call, room + peer * bytes(rank_), bytes(rank_), true});
            }
            exchange(outgoing, incoming, false);
            reduce_sources(incoming, at(send, offset(rank_)), at(recv, offset(rank_)), bytes(rank_) / element,
                           type, op);
            // In place this is safe: a peer's result comes after it has read its share from our buffer.
            outgoing.clear();
            incoming.clear();
            call.phase = 1;
            for (uint32_t peer = 0; peer < size(); ++peer) {
                if (peer == rank_) continue;
                outgoing.push_back({peer, call, at(recv, offset(rank_)), bytes(rank_)});
                incoming.push_back({peer, call, at(recv, offset(peer)), bytes(peer), false});
            }
            exchange(outgoing, incoming, begin + length == count);
        }
    });
}

void Communicator::reduce(const void *send, void *recv, uint64_t count, HcclDataType type, HcclReduceOp op,
                          uint32_t root) {
    run("Reduce", [&] {
        check_rank(root, "root");
        const uint64_t element = size_of(type);
        const Call call = begin(Op::kReduce, count, type, op, root);
        const uint64_t slice = kSliceBytes / element;
        for (uint64_t begin = 0; begin < count; begin += slice) {
            const uint64_t length = std::min(slice, count - begin);
            std::vector<Outgoing> outgoing;
            std::vector<Incoming> incoming;
            if (rank_ != root) {
                outgoing.push_back({root, call, at(send, begin * element), length * element});
                exchange(outgoing, incoming, true);
                continue;
            }
            char *room = scratch(length * element * size());
            for (uint32_t peer = 0; peer < size(); ++peer) {
                if (peer == rank_) continue;
                incoming.push_back({peer, call, room + peer * length * element, length * element, true});
            }
            exchange(outgoing, incoming, true);
            reduce_sources(incoming, at(send, begin * element), at(recv, begin * element), length, type, op);
        }
    });
}

void Communicator::reduce_scatter(Op kind, const void *send, const uint64_t *counts, const uint64_t *offsets,
                                  void *recv, HcclDataType type, HcclReduceOp op) {
    run(name_of(kind), [&] {
        const uint64_t element = size_of(type);
        const uint64_t largest = *std::max_element(counts, counts + size());
        const Call call = begin(kind, kind == Op::kReduceScatter ? counts[rank_] : 0, type, op, 0);
        const uint64_t slice = kSliceBytes / element;
        // Ranks with a small share take part in the later slices with empty messages.
        for (uint64_t begin = 0; begin < largest; begin += slice) {
            const auto length = [&](uint32_t rank) {
                return std::min(slice, counts[rank] - std::min(begin, counts[rank]));
            };
            const uint64_t mine = length(rank_) * element;
            char *room = scratch(mine * size());
            std::vector<Outgoing> outgoing;
            std::vector<Incoming> incoming;
            for (uint32_t peer = 0; peer < size(); ++peer) {
                if (peer == rank_) continue;
                outgoing.push_back(
                    {peer, call, at(send, (offsets[peer] + begin) * element), length(peer) * element});
                incoming.push_back({peer, call, room + peer * mine, mine, true});
            }
            exchange(outgoing, incoming, false);
            reduce_sources(incoming, at(send, (offsets[rank_] + begin) * element), at(recv, begin * element),
                           length(rank_), type, op);
            // The receive buffer may lie inside the send buffer, but only on this rank's own share, which no
            // peer reads.
            outgoing.clear();
            incoming.clear();
            exchange(outgoing, incoming, begin + slice >= largest);
        }
    });
}

void Communicator::all_gather(Op kind, const void *send, void *recv, const uint64_t *counts,
                              const uint64_t *offsets, HcclDataType type) {
    run(name_of(kind), [&] {
        const uint64_t element = size_of(type);
        const Call call = begin(kind, kind == Op::kAllGather ? counts[rank_] : 0, type, HCCL_REDUCE_SUM, 0);
        copy(at(recv, offsets[rank_] * element), send, counts[rank_] * element);
        std::vector<Outgoing> outgoing;
        std::vector<Incoming> incoming;
        for (uint32_t peer = 0; peer < size(); ++peer) {
            if (peer == rank_) continue;
            outgoing.push_back({peer, call, send, counts[rank_] * element});
            incoming.push_back(
                {peer, call, at(recv, offsets[peer] * element), counts[peer] * element, false});
        }
        exchange(outgoing, incoming, true);
    });
}

void Communicator::broadcast(void *buffer, uint64_t count, HcclDataType type, uint32_t root) {
    run("Broadcast", [&] {
        check_rank(root, "root");
        const uint64_t bytes = count * size_of(type);
        const Call call = begin(Op::kBroadcast, count, type, HCCL_REDUCE_SUM, root);
        std::vector<Outgoing> outgoing;
        std::vector<Incoming> incoming;
        for (uint32_t peer = 0; rank_ == root && peer < size(); ++peer) {
            if (peer != rank_) outgoing.push_back({peer, call, buffer, bytes});
        }
        if (rank_ != root) incoming.push_back({root, call, buffer, bytes, false});
        exchange(outgoing, incoming, true);
    });
}

void Communicator::scatter(const void *send, void *recv, uint64_t count, HcclDataType type, uint32_t root) {
    run("Scatter", [&] {
        check_rank(root, "root");
        const uint64_t bytes = count * size_of(type);
        const Call call = begin(Op::kScatter, count, type, HCCL_REDUCE_SUM, root);
        std::vector<Outgoing> outgoing;
        std::vector<Incoming> incoming;
        for (uint32_t peer = 0; rank_ == root && peer < size(); ++peer) {
            if (peer != rank_) outgoing.push_back({peer, call, at(send, peer * bytes), bytes});
        }
        if (rank_ != root) incoming.push_back({root, call, recv, bytes, false});
        exchange(outgoing, incoming, true);
        if (rank_ == root) copy(recv, at(send, rank_ * bytes), bytes);
    });
}

void Communicator::all_to_all(Op kind, const void *send, const uint64_t *send_counts,
                              const uint64_t *send_offsets, HcclDataType send_type, void *recv,
                              const uint64_t *recv_counts, const uint64_t *recv_offsets,
                              HcclDataType recv_type) {
    run(name_of(kind), [&] {
        const uint64_t send_element = size_of(send_type);
        const uint64_t recv_element = size_of(recv_type);
        if (send_counts[rank_] * send_element != recv_counts[rank_] * recv_element) {
            throw Error(HCCL_E_PARA, kBadArgument,
                        "rank [" + std::to_string(rank_) + "] sends itself " +
                            std::to_string(send_counts[rank_]) + " elements and expects " +
                            std::to_string(recv_counts[rank_]));
        }
        const Call call =
            begin(kind, kind == Op::kAllToAll ? send_counts[0] : 0, send_type, HCCL_REDUCE_SUM, 0);
        std::vector<Outgoing> outgoing;
        std::vector<Incoming> incoming;
        for (uint32_t peer = 0; peer < size(); ++peer) {
            const void *source = at(send, send_offsets[peer] * send_element);
            void *destination = at(recv, recv_offsets[peer] * recv_element);
            if (peer == rank_) {
                copy(destination, source, send_counts[peer] * send_element);
                continue;
            }
            outgoing.push_back({peer, call, source, send_counts[peer] * send_element});
            incoming.push_back({peer, call, destination, recv_counts[peer] * recv_element, false});
        }
        exchange(outgoing, incoming, true);
    });
}

void Communicator::barrier() {
    run("Barrier", [&] {
        const Call call = begin(Op::kBarrier, 0, HCCL_DATA_TYPE_INT8, HCCL_REDUCE_SUM, 0);
        std::vector<Outgoing> outgoing;
        std::vector<Incoming> incoming;
        for (uint32_t peer = 0; peer < size(); ++peer) {
            if (peer == rank_) continue;
            outgoing.push_back({peer, call, nullptr, 0});
            incoming.push_back({peer, call, nullptr, 0, false});
        }
        exchange(outgoing, incoming, true);
    });
}

// The transfers of a batch that stay on this rank: its first receive takes from its first send, and so on.
void Communicator::copy_to_self(const std::vector<Transfer> &transfers) const {
    std::deque<const Transfer *> sends;
    std::deque<const Transfer *> receives;
    for (const Transfer &item : transfers) {
        if (item.peer == rank_) (item.direction == HCCL_SEND ? sends : receives).push_back(&item);
    }
    if (sends.size() != receives.size()) {
        throw Error(HCCL_E_PARA, kBadArgument,
                    "this rank sends itself " + std::to_string(sends.size()) + " messages and receives " +
                        std::to_string(receives.size()));
    }
    for (size_t i = 0; i < sends.size(); ++i) {
        if (sends[i]->count != receives[i]->count || sends[i]->type != receives[i]->type) {
            throw Error(HCCL_E_PARA, kBadArgument,
                        "a message to this rank itself is received with another size");
        }
        copy(receives[i]->buffer, sends[i]->buffer, sends[i]->count * size_of(sends[i]->type));
    }
}

void Communicator::send_receive(const std::vector<Transfer> &transfers) {
    const bool batch = transfers.size() > 1;
    run(batch                                 ? "BatchSendRecv"
        : transfers[0].direction == HCCL_SEND ? "Send"
                                              : "Receive",
        [&] {
            std::vector<Outgoing> outgoing;
            std::vector<Incoming> incoming;
            for (const Transfer &item : transfers) check_rank(item.peer, "remote rank");
            copy_to_self(transfers);
            for (const Transfer &item : transfers) {
                if (item.peer == rank_) continue;
                Peer &peer = peers_[item.peer];
                Call call{};
                call.op = Op::kSendRecv;
                call.type = static_cast<uint8_t>(item.type);
                call.count = item.count;
                const uint64_t bytes = item.count * size_of(item.type);
                if (item.direction == HCCL_SEND) {
                    call.sequence = ++peer.sent;
                    outgoing.push_back({item.peer, call, item.buffer, bytes});
                } else {
                    call.sequence = ++peer.received;
                    incoming.push_back({item.peer, call, item.buffer, bytes, false});
                }
            }
            // Sends never wait for their receiver: what the connection does not take at once is copied, and
            // another thread sends it. Otherwise two ranks that both send first would wait for each other.
            std::vector<Lane> lanes(size());
            for (Outgoing &item : outgoing) lanes[item.peer].outgoing.push_back(&item);
            bool congested = false;
            for (uint32_t peer = 0; peer < size(); ++peer) {
                Lane &lane = lanes[peer];
                if (lane.outgoing.empty()) continue;
                send_some(peer, lane);
                for (; lane.sending(); ++lane.out, lane.out_done = 0) {
                    const Outgoing &item = *lane.outgoing[lane.out];
                    Header header{};
                    header.magic = kMessageMagic;
                    header.kind = Header::Kind::kInline;
                    header.call = item.call;
                    header.bytes = item.bytes;
                    std::vector<char> rest(sizeof header + item.bytes);
                    std::memcpy(rest.data(), &header, sizeof header);
                    copy(rest.data() + sizeof header, item.data, item.bytes);
                    rest.erase(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(lane.out_done));
                    peers_[peer].outbox.push_back(std::move(rest));
                    peers_[peer].mid_message = false;
                    congested = true;
                }
            }
            if (congested) wake_flusher();
            outgoing.clear();
            exchange(outgoing, incoming, true);
        });
}

// ---- for the flusher ----

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
