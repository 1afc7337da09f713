// libhccl.so of the simulated CANN: operations on a communicator, in the C ABI.
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "hccl/abi.h"
#include "hccl/reduce.h"

namespace {

using namespace cann_sim::hccl;

// `bytes`: what this rank contributes (or, where it only receives, takes).
template <typename Body>
HcclResult communicate(const char *function, HcclComm handle, uint64_t bytes, Body body) {
    return guard(function, [&] {
        const uint64_t task = cann_sim_task_begin != nullptr ? cann_sim_task_begin() : 0;
        body(*find(handle));
        if (task != 0) {
            cann_sim_task_end(task, "HCCL", function, (std::to_string(bytes) + " bytes").c_str());
        }
        if (cann_sim_count_hccl != nullptr) cann_sim_count_hccl(function, bytes);
    });
}

void require_type(HcclDataType type) {
    if (size_of(type) == 0) {
        throw Error(HCCL_E_NOT_SUPPORT, kBadArgument, "data type " + std::to_string(type) + " is not supported");
    }
}

void require_reduction(HcclDataType type, HcclReduceOp op) {
    require_type(type);
    if (!can_reduce(type, op)) {
        throw Error(HCCL_E_NOT_SUPPORT, kBadArgument,
                    std::string("reduction ") + name_of(op) + " of " + name_of(type) +
                        " is not supported by Atlas A2 and A3 (types: int8, int16, int32, int64, float16, float32, "
                        "bfloat16; prod not for int16 and bfloat16)");
    }
}

uint64_t bytes_of(uint64_t count, HcclDataType type) noexcept { return count * size_of(type); }

std::vector<uint64_t> repeat(uint64_t count, uint32_t ranks) { return std::vector<uint64_t>(ranks, count); }

std::vector<uint64_t> multiples(uint64_t count, uint32_t ranks) {
    std::vector<uint64_t> offsets(ranks);
    for (uint32_t rank = 0; rank < ranks; ++rank) offsets[rank] = rank * count;
    return offsets;
}

uint64_t total(const uint64_t *counts, HcclComm handle) noexcept {
    try {
        return std::accumulate(counts, counts + find(handle)->size(), uint64_t{0});
    } catch (...) {
        return 0;  // the call itself reports the handle
    }
}

}  // namespace

// Like the real library these return at once where the count is 0 ----

HcclResult HcclAllReduce(void *sendBuf, void *recvBuf, uint64_t count, HcclDataType dataType, HcclReduceOp op,
                         HcclComm comm, aclrtStream) {
    return communicate("HcclAllReduce", comm, bytes_of(count, dataType), [&](Communicator &group) {
        require_reduction(dataType, op);
        if (count == 0) return;
        require(sendBuf != nullptr && recvBuf != nullptr, HCCL_E_PTR, "a buffer is null");
        group.all_reduce(sendBuf, recvBuf, count, dataType, op);
    });
}

HcclResult HcclReduce(void *sendBuf, void *recvBuf, uint64_t count, HcclDataType sendType, HcclReduceOp op,
                      uint32_t root, HcclComm comm, aclrtStream) {
    return communicate("HcclReduce", comm, bytes_of(count, sendType), [&](Communicator &group) {
        require_reduction(sendType, op);
        if (count == 0) return;
        require(sendBuf != nullptr && (recvBuf != nullptr || group.rank() != root), HCCL_E_PTR, "a buffer is null");
        group.reduce(sendBuf, recvBuf, count, sendType, op, root);
    });
}

HcclResult HcclReduceScatter(void *sendBuf, void *recvBuf, uint64_t recvCount, HcclDataType dataType, HcclReduceOp op,
                             HcclComm comm, aclrtStream) {
    return communicate("HcclReduceScatter", comm, bytes_of(recvCount, dataType), [&](Communicator &group) {
        require_reduction(dataType, op);
        if (recvCount == 0) return;
        require(sendBuf != nullptr && recvBuf != nullptr, HCCL_E_PTR, "a buffer is null");
        group.reduce_scatter(Op::kReduceScatter, sendBuf, repeat(recvCount, group.size()).data(),
                             multiples(recvCount, group.size()).data(), recvBuf, dataType, op);
    });
}

HcclResult reduce_scatter_v(const void *sendBuf, const void *sendCounts, const void *sdispls, void *recvBuf,
                            uint64_t recvCount, HcclDataType dataType, HcclReduceOp op, HcclComm comm, aclrtStream) {
    return communicate("HcclReduceScatterV", comm, bytes_of(recvCount, dataType), [&](Communicator &group) {
        require_reduction(dataType, op);
        require(sendCounts != nullptr && sdispls != nullptr, HCCL_E_PTR, "an array is null");
        auto *counts = static_cast<const uint64_t *>(sendCounts);
        require(counts[group.rank()] == recvCount, HCCL_E_PARA, "recvCount is not sendCounts[rank]");
        group.reduce_scatter(Op::kReduceScatterV, sendBuf, counts, static_cast<const uint64_t *>(sdispls), recvBuf,
                             dataType, op);
    });
}

HcclResult HcclAllGather(void *sendBuf, void *recvBuf, uint64_t sendCount, HcclDataType dataType, HcclComm comm,
                         aclrtStream) {
    return communicate("HcclAllGather", comm, bytes_of(sendCount, dataType), [&](Communicator &group) {
        require_type(dataType);
        if (sendCount == 0) return;
        require(sendBuf != nullptr && recvBuf != nullptr, HCCL_E_PTR, "a buffer is null");
        group.all_gather(Op::kAllGather, sendBuf, recvBuf, repeat(sendCount, group.size()).data(),
                         multiples(sendCount, group.size()).data(), dataType);
    });
}

HcclResult all_gather_v(const void *sendBuf, uint64_t sendCount, void *recvBuf, const void *recvCounts,
                        const void *rdispls, HcclDataType dataType, HcclComm comm, aclrtStream) {
    return communicate("HcclAllGatherV", comm, bytes_of(sendCount, dataType), [&](Communicator &group) {
        require_type(dataType);
        require(recvCounts != nullptr && rdispls != nullptr, HCCL_E_PTR, "an array is null");
        auto *counts = static_cast<const uint64_t *>(recvCounts);
        require(counts[group.rank()] == sendCount, HCCL_E_PARA, "sendCount is not recvCounts[rank]");
        group.all_gather(Op::kAllGatherV, sendBuf, recvBuf, counts, static_cast<const uint64_t *>(rdispls), dataType);
    });
}

HcclResult HcclBroadcast(void *buf, uint64_t count, HcclDataType dataType, uint32_t root, HcclComm comm, aclrtStream) {
    return communicate("HcclBroadcast", comm, bytes_of(count, dataType), [&](Communicator &group) {
        require_type(dataType);
        if (count == 0) return;
        require(buf != nullptr, HCCL_E_PTR, "buf is null");
        group.broadcast(buf, count, dataType, root);
    });
}

HcclResult HcclScatter(void *sendBuf, void *recvBuf, uint64_t count, HcclDataType dataType, uint32_t root,
                       HcclComm comm, aclrtStream) {
    return communicate("HcclScatter", comm, bytes_of(count, dataType), [&](Communicator &group) {
        require_type(dataType);
        if (count == 0) return;
        require(recvBuf != nullptr && (sendBuf != nullptr || group.rank() != root), HCCL_E_PTR, "a buffer is null");
        group.scatter(sendBuf, recvBuf, count, dataType, root);
    });
}

HcclResult HcclAlltoAll(const void *sendBuf, uint64_t sendCount, HcclDataType sendType, const void *recvBuf,
                        uint64_t recvCount, HcclDataType recvType, HcclComm comm, aclrtStream) {
    return communicate("HcclAlltoAll", comm, bytes_of(sendCount, sendType), [&](Communicator &group) {
        require_type(sendType);
        require(sendCount == recvCount && sendType == recvType, HCCL_E_PARA,
                "send and receive counts and types must be equal");
        if (sendCount == 0) return;
        require(sendBuf != nullptr && recvBuf != nullptr, HCCL_E_PTR, "a buffer is null");
        const std::vector<uint64_t> counts = repeat(sendCount, group.size());
        const std::vector<uint64_t> offsets = multiples(sendCount, group.size());
        group.all_to_all(Op::kAllToAll, sendBuf, counts.data(), offsets.data(), sendType, const_cast<void *>(recvBuf),
                         counts.data(), offsets.data(), recvType);
    });
}

HcclResult HcclAlltoAllV(const void *sendBuf, const void *sendCounts, const void *sdispls, HcclDataType sendType,
                         const void *recvBuf, const void *recvCounts, const void *rdispls, HcclDataType recvType,
                         HcclComm comm, aclrtStream) {
    auto *send_counts = static_cast<const uint64_t *>(sendCounts);
    const uint64_t count = sendCounts == nullptr ? 0 : total(send_counts, comm);
    return communicate("HcclAlltoAllV", comm, bytes_of(count, sendType), [&](Communicator &group) {
        require_type(sendType);
        require(sendType == recvType, HCCL_E_PARA, "send and receive types must be equal");
        require(sendCounts != nullptr && sdispls != nullptr && recvCounts != nullptr && rdispls != nullptr, HCCL_E_PTR,
                "an array is null");
        group.all_to_all(Op::kAllToAllV, sendBuf, send_counts, static_cast<const uint64_t *>(sdispls), sendType,
                         const_cast<void *>(recvBuf), static_cast<const uint64_t *>(recvCounts),
                         static_cast<const uint64_t *>(rdispls), recvType);
    });
}

HcclResult HcclBarrier(HcclComm comm, aclrtStream) {
    return communicate("HcclBarrier", comm, 0, [&](Communicator &group) { group.barrier(); });
}

HcclResult HcclSend(void *sendBuf, uint64_t count, HcclDataType dataType, uint32_t destRank, HcclComm comm,
                    aclrtStream) {
    return communicate("HcclSend", comm, bytes_of(count, dataType), [&](Communicator &group) {
        require_type(dataType);
        if (count == 0) return;
        require(sendBuf != nullptr, HCCL_E_PTR, "sendBuf is null");
        group.send_receive({{HCCL_SEND, sendBuf, count, dataType, destRank}});
    });
}

HcclResult HcclRecv(void *recvBuf, uint64_t count, HcclDataType dataType, uint32_t srcRank, HcclComm comm,
                    aclrtStream) {
    return communicate("HcclRecv", comm, bytes_of(count, dataType), [&](Communicator &group) {
        require_type(dataType);
        if (count == 0) return;
        require(recvBuf != nullptr, HCCL_E_PTR, "recvBuf is null");
        group.send_receive({{HCCL_RECV, recvBuf, count, dataType, srcRank}});
    });
}

HcclResult HcclBatchSendRecv(HcclSendRecvItemDef *sendRecvInfo, uint32_t itemNum, HcclComm comm, aclrtStream) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; sendRecvInfo != nullptr && i < itemNum; ++i) {
        if (sendRecvInfo[i].sendRecvType == HCCL_SEND)
            bytes += bytes_of(sendRecvInfo[i].count, sendRecvInfo[i].dataType);
    }
    return communicate("HcclBatchSendRecv", comm, bytes, [&](Communicator &group) {
        require(sendRecvInfo != nullptr || itemNum == 0, HCCL_E_PTR, "sendRecvInfo is null");
        std::vector<Communicator::Transfer> transfers;
        for (uint32_t i = 0; i < itemNum; ++i) {
            const HcclSendRecvItemDef &item = sendRecvInfo[i];
            require(item.sendRecvType < HCCL_SEND_RECV_RESERVED, HCCL_E_PARA, "an item neither sends nor receives");
            require_type(item.dataType);
            if (item.count == 0) continue;
            require(item.buf != nullptr, HCCL_E_PTR, "the buffer of an item is null");
            transfers.push_back({item.sendRecvType, item.buf, item.count, item.dataType, item.remoteRank});
        }
        if (!transfers.empty()) group.send_receive(transfers);
    });
}
