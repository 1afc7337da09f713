// The exchange of messages between the members of a communicator, which every operation is made of.
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "hccl/bytes.h"
#include "hccl/communicator.h"

namespace cann_sim::hccl {
namespace {

using std::chrono::steady_clock;

// Smaller payloads travel with their header: reading a peer's memory costs a system call and an
// acknowledgement.
constexpr uint64_t kByAddressBytes = 32 * 1024;

}  // namespace

// Sends queued messages; true if anything went.
bool Communicator::flush(Peer &peer) {
    bool progress = false;
    while (!peer.outbox.empty()) {
        const std::vector<char> &first = peer.outbox.front();
        const ssize_t sent = ::send(peer.socket.fd(), first.data() + peer.outbox_sent, first.size() - peer.outbox_sent,
                                    MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && would_block()) return progress;
        if (sent < 0) lost(static_cast<uint32_t>(&peer - peers_.data()), "while sending");
        progress = true;
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
        const bool by_address = peer.reads_me && item.bytes >= kByAddressBytes && item.call.op != Op::kSendRecv;
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
            // The peer may have sent the reason before it closed the connection.
            while (!lane.parked && receive_some(index, lane)) {
            }
            lost(index, "while sending");
        }
        progress = true;
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
        text.resize(
            static_cast<size_t>(std::max<ssize_t>(recv(peer.socket.fd(), text.data(), text.size(), MSG_DONTWAIT), 0)));
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
        // The peer has begun another call without receiving what this call sent.
        throw Error(HCCL_E_PARA, kRanksDisagree,
                    "tag[" + current_ + "_" + name_ + "]: remote rank [" + std::to_string(index) + "] called " +
                        describe(theirs) + " instead of " + current_);
    }
    const Incoming &item = *lane.incoming[lane.in];
    const Call &ours = item.call;
    const bool agree = theirs.op == ours.op && theirs.phase == ours.phase && theirs.type == ours.type &&
                       theirs.reduce == ours.reduce && theirs.root == ours.root && theirs.count == ours.count &&
                       theirs.sequence == ours.sequence && header.bytes == item.bytes;
    if (!agree) {
        throw Error(HCCL_E_PARA, kRanksDisagree,
                    "tag[" + current_ + "_" + name_ + "]: local rank [" + std::to_string(rank_) + "] called " +
                        describe(ours) + " and expects " + std::to_string(item.bytes) + " bytes, remote rank [" +
                        std::to_string(index) + "] called " + describe(theirs) + " and sends " +
                        std::to_string(header.bytes) + " bytes");
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
            const uint64_t got =
                receive(reinterpret_cast<char *>(&peer.header) + peer.header_got, sizeof(Header) - peer.header_got);
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
    if (peers_[index].congested()) wake_sender_();
}

void Communicator::read_remote(uint32_t index, uint64_t address, void *data, uint64_t bytes) {
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
    const auto left = *deadline == Deadline::max()
                          ? std::chrono::milliseconds(1000)
                          : std::chrono::duration_cast<std::chrono::milliseconds>(*deadline - steady_clock::now());
    if (left.count() <= 0) {
        throw Error(HCCL_E_TIMEOUT, kExecTimeout,
                    "rank [" + std::to_string(rank_) + "] has heard nothing from remote rank [" + awaited + "] for " +
                        std::to_string(exec_timeout_.count()) + " s (HCCL_EXEC_TIMEOUT); tag[" + current_ + "_" +
                        name_ + "] call " + std::to_string(sequence_) + ", rankSize[" + std::to_string(size()) + "]");
    }
    poll(pollers.data(), pollers.size(), static_cast<int>(std::min<int64_t>(left.count() + 1, 1000)));
    if (closing_) throw Error(HCCL_E_UNAVAIL, kBadArgument, "communicator " + name_ + " was destroyed during a call");
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
    if (scratch_.size() * sizeof(uint64_t) < bytes) scratch_.resize((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
    return reinterpret_cast<char *>(scratch_.data());
}

}  // namespace cann_sim::hccl
