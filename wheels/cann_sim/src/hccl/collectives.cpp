// The operations of a communicator.
#include <algorithm>
#include <cstring>

#include "hccl/bytes.h"
#include "hccl/communicator.h"

namespace cann_sim::hccl {
namespace {

// Up to here an all-reduce sends everything to everyone: one round instead of two.
constexpr uint64_t kSmallAllReduceBytes = 16 * 1024;
// Payloads that arrive through sockets need room until they are added; larger operations go in slices of this
// size.
constexpr uint64_t kSliceBytes = 2 * 1024 * 1024;

// Share of rank `part` when `count` elements are spread over `parts` ranks.
uint64_t share_begin(uint64_t count, uint64_t part, uint64_t parts) {
    return count / parts * part + std::min(part, count % parts);
}

}  // namespace

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
void Communicator::reduce_sources(const std::vector<Incoming> &incoming, const void *own, void *result, uint64_t count,
                                  HcclDataType type, HcclReduceOp op) {
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

void Communicator::all_reduce(const void *send, void *recv, uint64_t count, HcclDataType type, HcclReduceOp op) {
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
            const auto offset = [&](uint32_t rank) { return (begin + share_begin(length, rank, size())) * element; };
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
            reduce_sources(incoming, at(send, offset(rank_)), at(recv, offset(rank_)), bytes(rank_) / element, type,
                           op);
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
                outgoing.push_back({peer, call, at(send, (offsets[peer] + begin) * element), length(peer) * element});
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

void Communicator::all_gather(Op kind, const void *send, void *recv, const uint64_t *counts, const uint64_t *offsets,
                              HcclDataType type) {
    run(name_of(kind), [&] {
        const uint64_t element = size_of(type);
        const Call call = begin(kind, kind == Op::kAllGather ? counts[rank_] : 0, type, HCCL_REDUCE_SUM, 0);
        copy(at(recv, offsets[rank_] * element), send, counts[rank_] * element);
        std::vector<Outgoing> outgoing;
        std::vector<Incoming> incoming;
        for (uint32_t peer = 0; peer < size(); ++peer) {
            if (peer == rank_) continue;
            outgoing.push_back({peer, call, send, counts[rank_] * element});
            incoming.push_back({peer, call, at(recv, offsets[peer] * element), counts[peer] * element, false});
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

void Communicator::all_to_all(Op kind, const void *send, const uint64_t *send_counts, const uint64_t *send_offsets,
                              HcclDataType send_type, void *recv, const uint64_t *recv_counts,
                              const uint64_t *recv_offsets, HcclDataType recv_type) {
    run(name_of(kind), [&] {
        const uint64_t send_element = size_of(send_type);
        const uint64_t recv_element = size_of(recv_type);
        if (send_counts[rank_] * send_element != recv_counts[rank_] * recv_element) {
            throw Error(HCCL_E_PARA, kBadArgument,
                        "rank [" + std::to_string(rank_) + "] sends itself " + std::to_string(send_counts[rank_]) +
                            " elements and expects " + std::to_string(recv_counts[rank_]));
        }
        const Call call = begin(kind, kind == Op::kAllToAll ? send_counts[0] : 0, send_type, HCCL_REDUCE_SUM, 0);
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
            throw Error(HCCL_E_PARA, kBadArgument, "a message to this rank itself is received with another size");
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
            if (congested) wake_sender_();
            outgoing.clear();
            exchange(outgoing, incoming, true);
        });
}

}  // namespace cann_sim::hccl
