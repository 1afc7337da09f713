// A communicator of the simulated HCCL: connections to all members and the exchange of messages that every
// collective operation is made of.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hccl/error.h"
#include "hccl/gate.h"
#include "hccl/reduce.h"

namespace cann_sim::hccl {

enum class Op : uint8_t {
    kAllReduce,
    kAllGather,
    kAllGatherV,
    kAllToAll,
    kAllToAllV,
    kBarrier,
    kBroadcast,
    kReduce,
    kReduceScatter,
    kReduceScatterV,
    kScatter,
    kSendRecv,
};

const char *name_of(Op op);

// The arguments that must be equal on all ranks of a call. `count` is 0 for operations in which it may differ (…V).
struct Call {
    Op op;
    uint8_t phase;   // distinguishes the messages of one call
    uint8_t type;    // HcclDataType
    uint8_t reduce;  // HcclReduceOp
    uint32_t root;
    uint64_t count;
    uint64_t sequence;
};

inline constexpr uint32_t kMessageMagic = 0x4d434348;  // "HCCM"

struct Header {
    enum class Kind : uint32_t {
        kInline,     // `bytes` of payload follow
        kByAddress,  // the payload is read from `address` in the sender's memory, then acknowledged
        kAcknowledge,
        kAbort,  // the sender gave up: `address` is its HcclResult, `bytes` of text follow
    };
    uint32_t magic;
    Kind kind;
    Call call;
    uint64_t bytes;
    uint64_t address;
};
static_assert(sizeof(Header) == 48, "headers travel between processes");

class Communicator {
public:
    // `wake_sender` is called when messages wait for room to send: another thread is to call try_flush().
    Communicator(std::string name, std::vector<Member> members, uint32_t rank, const Nonce &nonce,
                 std::shared_ptr<Gate> gate, const Settings &settings, Deadline deadline, void (*wake_sender)());
    ~Communicator();

    const std::string &name() const { return name_; }
    uint32_t rank() const { return rank_; }
    uint32_t size() const { return static_cast<uint32_t>(members_.size()); }
    const Nonce &nonce() const { return nonce_; }
    const std::vector<Member> &members() const { return members_; }
    const std::shared_ptr<Gate> &gate() const { return gate_; }

    // Each operation returns when this rank's part is complete and its buffers may be reused. Counts are in
    // elements. In-place calls are allowed where HCCL allows them. Throws Error; after that every call throws
    // it again.
    void all_reduce(const void *send, void *recv, uint64_t count, HcclDataType type, HcclReduceOp op);
    void reduce(const void *send, void *recv, uint64_t count, HcclDataType type, HcclReduceOp op, uint32_t root);
    void reduce_scatter(Op kind, const void *send, const uint64_t *counts, const uint64_t *offsets, void *recv,
                        HcclDataType type, HcclReduceOp op);
    void all_gather(Op kind, const void *send, void *recv, const uint64_t *counts, const uint64_t *offsets,
                    HcclDataType type);
    void broadcast(void *buffer, uint64_t count, HcclDataType type, uint32_t root);
    void scatter(const void *send, void *recv, uint64_t count, HcclDataType type, uint32_t root);
    void all_to_all(Op kind, const void *send, const uint64_t *send_counts, const uint64_t *send_offsets,
                    HcclDataType send_type, void *recv, const uint64_t *recv_counts, const uint64_t *recv_offsets,
                    HcclDataType recv_type);
    void barrier();

    struct Transfer {
        HcclSendRecvType direction;
        void *buffer;
        uint64_t count;
        HcclDataType type;
        uint32_t peer;
    };
    // Sends of `transfers` return once the data is copied or sent; receives when it is here.
    void send_receive(const std::vector<Transfer> &transfers);

    // Ends calls that are under way in other threads, delivers what was sent before, closes the connections.
    void close();

    // Sends what send_receive() left behind, as far as that goes without waiting. False: a call is under way,
    // which does the same.
    bool try_flush();
    // Descriptors of connections whose outbox waits for room in the socket.
    std::vector<int> congested();

private:
    struct Peer {
        Socket socket;
        bool reads_me = false;     // it can read our memory, so an address can be sent instead of a payload
        bool mid_message = false;  // a message to it is sent in part
        pid_t pid = 0;
        Header header{};  // of the message that is arriving
        size_t header_got = 0;
        std::deque<std::vector<char>> outbox;  // messages, or parts of them, that wait for room in the socket
        size_t outbox_sent = 0;                // bytes of the first one that are sent
        uint32_t acknowledgements = 0;         // that we still expect from it
        uint64_t sent = 0;                     // number of point-to-point messages so far
        uint64_t received = 0;
        bool congested() const { return !outbox.empty(); }
    };

    struct Outgoing {
        uint32_t peer;
        Call call;
        const void *data;
        uint64_t bytes;
    };

    struct Incoming {
        uint32_t peer;
        Call call;
        void *data;
        uint64_t bytes;
        bool defer;            // do not read a payload that came as an address: the caller does, with read_remote()
        uint64_t address = 0;  // of such a payload
    };

    // Progress of one exchange with one peer.
    struct Lane {
        std::vector<Outgoing *> outgoing;
        std::vector<Incoming *> incoming;
        size_t out = 0;         // number of messages sent
        size_t in = 0;          // number of messages received
        uint64_t out_done = 0;  // bytes sent of the current message, with its header
        uint64_t in_done = 0;   // payload bytes received of the current message
        bool parked = false;    // a message has arrived that belongs to a later call

        bool sending() const { return out < outgoing.size(); }
        bool receiving() const { return in < incoming.size(); }
    };

    void run(const char *what, const std::function<void()> &body);
    Call begin(Op op, uint64_t count, HcclDataType type, HcclReduceOp reduce, uint32_t root);
    void exchange(std::vector<Outgoing> &outgoing, std::vector<Incoming> &incoming, bool last);
    bool send_some(uint32_t peer, Lane &lane);
    bool receive_some(uint32_t peer, Lane &lane);
    bool flush(Peer &peer);
    bool accept_message(uint32_t peer, Lane &lane);
    void wait_for_peers(const std::vector<Lane> &lanes, Deadline *deadline);
    void read_remote(uint32_t peer, uint64_t address, void *data, uint64_t bytes);
    void acknowledge(uint32_t peer);
    void reduce_sources(const std::vector<Incoming> &incoming, const void *own, void *result, uint64_t count,
                        HcclDataType type, HcclReduceOp op);
    void copy_to_self(const std::vector<Transfer> &transfers) const;
    void probe_memory(const Settings &settings, Deadline deadline);
    void abort(const Error &error);
    [[noreturn]] void lost(uint32_t peer, const std::string &why);
    std::string describe(const Call &call) const;
    void check_rank(uint32_t rank, const char *role) const;
    char *scratch(size_t bytes);

    const std::string name_;
    const std::vector<Member> members_;
    const uint32_t rank_;
    const Nonce nonce_;
    const std::shared_ptr<Gate> gate_;
    const std::chrono::seconds exec_timeout_;
    const int generation_;
    void (*const wake_sender_)();

    std::mutex mutex_;  // held by the call that is under way
    std::atomic<bool> closing_{false};
    std::vector<Peer> peers_;
    uint64_t sequence_ = 0;
    std::string current_;  // name of the call that is under way, for messages
    std::unique_ptr<Error> failure_;
    std::vector<uint64_t> scratch_;
};

}  // namespace cann_sim::hccl
