// libhccl.so of the simulated CANN: the C ABI that torch_npu links to or looks up by name, over our own
// transport.
//
// A call runs on the thread that issues it and is complete when it returns: the simulated stream has nothing
// pending. Device memory of the simulator is host memory, so buffers are plain pointers.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#pragma GCC visibility push(default)
#include "third_party/hccl/inc/hccl/hccl.h"
extern "C" {
// Hooks of libascendcl; absent when libhccl is used alone.
void cann_sim_count_hccl(const char *op, uint64_t bytes) __attribute__((weak));
uint64_t cann_sim_task_begin() __attribute__((weak));
void cann_sim_task_end(uint64_t begin, const char *kind, const char *name, const char *detail) __attribute__((weak));
int cann_sim_fault(const char *site) __attribute__((weak));  // an HcclResult; site is "hccl:<function>"

// Functions that torch_npu's copy of hccl.h does not declare.
HcclResult HcclCommInitRootInfoConfig(uint32_t nRanks, const HcclRootInfo *rootInfo, uint32_t rank,
                                      const HcclCommConfig *config, HcclComm *comm);
HcclResult HcclCommInitClusterInfoConfig(const char *clusterInfo, uint32_t rank, HcclCommConfig *config,
                                         HcclComm *comm);
HcclResult HcclCreateSubCommConfig(HcclComm *comm, uint32_t rankNum, uint32_t *rankIds, uint64_t subCommId,
                                   uint32_t subCommRankId, HcclCommConfig *config, HcclComm *subComm);
HcclResult HcclGetConfig(HcclConfig config, HcclConfigValue *configValue);
HcclResult HcclGetRankSize(HcclComm comm, uint32_t *rankSize);
HcclResult HcclGetRankId(HcclComm comm, uint32_t *rank);
HcclResult HcclBarrier(HcclComm comm, aclrtStream stream);
const char *HcclGetErrorString(HcclResult code);

// Not HCCL's: writes the counters of this process as JSON and returns the length of the whole text.
size_t cann_sim_hccl_counters(char *text, size_t size);
}
#pragma GCC visibility pop

#include "hccl_comm.h"
#include "hccl_error.h"
#include "hccl_net.h"
#include "hccl_reduce.h"
#include "hccl_registry.h"
#include "one_tree.h"

namespace {

using namespace cann_sim::hccl;

struct Counter {
    const char *function;
    std::atomic<uint64_t> calls{0};
    std::atomic<uint64_t> bytes{0};
};

Counter counters[] = {{"HcclAllGather"}, {"HcclAllGatherV"}, {"HcclAllReduce"},     {"HcclAlltoAll"},
                      {"HcclAlltoAllV"}, {"HcclBarrier"},    {"HcclBatchSendRecv"}, {"HcclBroadcast"},
                      {"HcclRecv"},      {"HcclReduce"},     {"HcclReduceScatter"}, {"HcclReduceScatterV"},
                      {"HcclScatter"},   {"HcclSend"}};

// The boundary to C: nothing is thrown through it, and every failure is reported once.
template <typename Body>
HcclResult guard(const char *function, Body body) {
    try {
        if (cann_sim_fault != nullptr) {
            const int result = cann_sim_fault((std::string("hccl:") + function).c_str());
            if (result != HCCL_SUCCESS) {
                throw Error(static_cast<HcclResult>(result),
                            result == HCCL_E_TIMEOUT ? kExecTimeout : kRemote,
                            "a fault was asked for (CANN_SIM_FAULT)");
            }
        }
        body();
        return HCCL_SUCCESS;
    } catch (const Error &error) {
        report(error, function);
        return error.result();
    } catch (const std::bad_alloc &) {
        report(Error(HCCL_E_MEMORY, kResource, "out of host memory"), function);
        return HCCL_E_MEMORY;
    } catch (const std::exception &error) {
        report(Error(HCCL_E_INTERNAL, kResource, error.what()), function);
        return HCCL_E_INTERNAL;
    }
}

// `bytes`: what this rank contributes (or, where it only receives, takes).
template <typename Body>
HcclResult communicate(const char *function, HcclComm handle, uint64_t bytes, Body body) {
    return guard(function, [&] {
        const uint64_t task = cann_sim_task_begin != nullptr ? cann_sim_task_begin() : 0;
        body(*find(handle));
        if (task != 0) {
            cann_sim_task_end(task, "HCCL", function, (std::to_string(bytes) + " bytes").c_str());
        }
        for (Counter &counter : counters) {
            if (std::strcmp(counter.function, function) != 0) continue;
            ++counter.calls;
            counter.bytes += bytes;
        }
        if (cann_sim_count_hccl != nullptr) cann_sim_count_hccl(function, bytes);
    });
}

void require(bool condition, HcclResult result, const char *what) {
    if (!condition) throw Error(result, kBadArgument, what);
}

void require_type(HcclDataType type) {
    if (size_of(type) == 0) {
        throw Error(HCCL_E_NOT_SUPPORT, kBadArgument,
                    "data type " + std::to_string(type) + " is not supported");
    }
}

void require_reduction(HcclDataType type, HcclReduceOp op) {
    require_type(type);
    if (!can_reduce(type, op)) {
        throw Error(
            HCCL_E_NOT_SUPPORT, kBadArgument,
            std::string("reduction ") + name_of(op) + " of " + name_of(type) +
                " is not supported by Atlas A2 and A3 (types: int8, int16, int32, int64, float16, float32, "
                "bfloat16; prod not for int16 and bfloat16)");
    }
}

uint64_t bytes_of(uint64_t count, HcclDataType type) { return count * size_of(type); }

std::vector<uint64_t> repeat(uint64_t count, uint32_t ranks) { return std::vector<uint64_t>(ranks, count); }

std::vector<uint64_t> multiples(uint64_t count, uint32_t ranks) {
    std::vector<uint64_t> offsets(ranks);
    for (uint32_t rank = 0; rank < ranks; ++rank) offsets[rank] = rank * count;
    return offsets;
}

uint64_t total(const uint64_t *counts, HcclComm handle) {
    try {
        return std::accumulate(counts, counts + find(handle)->size(), uint64_t{0});
    } catch (const Error &) {
        return 0;  // the call itself reports the handle
    }
}

// A name that the caller chose, or an empty string.
std::string configured_name(const HcclCommConfig *config) {
    if (config == nullptr) return {};
    struct Info {
        size_t size;
        uint32_t magic;
        uint32_t version;
        uint64_t reserved;
    } info;
    std::memcpy(&info, config, sizeof info);
    require(info.magic == HCCL_COMM_CONFIG_MAGIC_WORD, HCCL_E_PARA,
            "the communicator configuration was not set up by HcclCommConfigInit");
    // Version 1 of the structure ends before the name.
    const size_t end = offsetof(HcclCommConfig, hcclCommName) + COMM_NAME_MAX_LENGTH;
    if (info.size < end) return {};
    const size_t length = strnlen(config->hcclCommName, COMM_NAME_MAX_LENGTH);
    require(length < COMM_NAME_MAX_LENGTH, HCCL_E_PARA, "hcclCommName has no end");
    return {config->hcclCommName, length};
}

HcclComm connect(uint32_t ranks, const HcclRootInfo *root_info, uint32_t rank,
                 const std::string &chosen_name) {
    require(root_info != nullptr, HCCL_E_PTR, "rootInfo is null");
    require(ranks > 0 && rank < ranks, HCCL_E_PARA, "rank is not below nRanks");
    RootInfo root;
    std::memcpy(&root, root_info->internal, sizeof root);
    root.endpoint.address[sizeof root.endpoint.address - 1] = '\0';
    const Settings settings = Settings::from_environment();
    const Deadline deadline = std::chrono::steady_clock::now() + settings.connect_timeout;
    auto gate = std::make_shared<Gate>();
    const Member self{gate->endpoint(), static_cast<int32_t>(getpid()), rank};
    std::vector<Member> members = join_root(root, ranks, self, deadline);
    std::string name = chosen_name;
    if (name.empty()) {
        char id[20];
        std::snprintf(id, sizeof id, "%016lx", static_cast<unsigned long>(root.nonce[0]));
        name = std::string(root.endpoint.address) + "%" + std::to_string(root.endpoint.port) + "_" + id;
    }
    // Members connect after the last one has registered, which may have used up the time.
    const Deadline connected = std::chrono::steady_clock::now() + settings.connect_timeout;
    return add(std::make_shared<Communicator>(name, std::move(members), rank, root.nonce, std::move(gate),
                                              settings, connected));
}

// Different for every sub-communicator of one parent, equal for all its members.
Nonce derive(const Nonce &parent, uint64_t id, const uint32_t *ranks, uint32_t count) {
    const auto mix = [](uint64_t state, uint64_t value) {
        state ^= value + 0x9e3779b97f4a7c15 + (state << 6) + (state >> 2);
        state *= 0xff51afd7ed558ccd;
        return state ^ (state >> 33);
    };
    Nonce nonce{mix(parent[0], id), mix(parent[1], ~id)};
    for (uint32_t i = 0; i < count; ++i) nonce = {mix(nonce[0], ranks[i]), mix(nonce[1], ~ranks[i])};
    return nonce;
}

int32_t deterministic = 0;  // HcclSetConfig's only setting; results here always are

}  // namespace

// ---- communicators ----

HcclResult HcclGetRootInfo(HcclRootInfo *rootInfo) {
    return guard("HcclGetRootInfo", [&] {
        require(rootInfo != nullptr, HCCL_E_PTR, "rootInfo is null");
        const RootInfo root = open_root();
        std::memset(rootInfo->internal, 0, sizeof rootInfo->internal);
        std::memcpy(rootInfo->internal, &root, sizeof root);
    });
}

HcclResult HcclCommInitRootInfo(uint32_t nRanks, const HcclRootInfo *rootInfo, uint32_t rank,
                                HcclComm *comm) {
    return guard("HcclCommInitRootInfo", [&] {
        require(comm != nullptr, HCCL_E_PTR, "comm is null");
        *comm = connect(nRanks, rootInfo, rank, {});
    });
}

HcclResult HcclCommInitRootInfoConfig(uint32_t nRanks, const HcclRootInfo *rootInfo, uint32_t rank,
                                      const HcclCommConfig *config, HcclComm *comm) {
    return guard("HcclCommInitRootInfoConfig", [&] {
        require(comm != nullptr && config != nullptr, HCCL_E_PTR, "comm or config is null");
        *comm = connect(nRanks, rootInfo, rank, configured_name(config));
    });
}

HcclResult HcclCommInitClusterInfoConfig(const char *, uint32_t, HcclCommConfig *, HcclComm *) {
    return guard("HcclCommInitClusterInfoConfig", [&] {
        throw Error(
            HCCL_E_NOT_SUPPORT, kBadArgument,
            "rank tables are not simulated; unset RANK_TABLE_FILE (torch_npu goes on with a root info)");
    });
}

HcclResult HcclCommInitClusterInfo(const char *clusterInfo, uint32_t rank, HcclComm *comm) {
    return HcclCommInitClusterInfoConfig(clusterInfo, rank, nullptr, comm);
}

HcclResult HcclCommInitAll(uint32_t ndev, int32_t *devices, HcclComm *comms) {
    return guard("HcclCommInitAll", [&] {
        require(ndev > 0 && devices != nullptr && comms != nullptr, HCCL_E_PARA,
                "ndev is 0 or an array is null");
        HcclRootInfo root;
        require(HcclGetRootInfo(&root) == HCCL_SUCCESS, HCCL_E_NETWORK, "no root info");
        std::vector<HcclResult> results(ndev);
        std::vector<std::thread> threads;
        for (uint32_t rank = 0; rank < ndev; ++rank) {
            threads.emplace_back(
                [&, rank] { results[rank] = HcclCommInitRootInfo(ndev, &root, rank, &comms[rank]); });
        }
        for (std::thread &thread : threads) thread.join();
        for (HcclResult result : results) {
            if (result != HCCL_SUCCESS) throw Error(result, kConnectTimeout, "a device did not join");
        }
    });
}

HcclResult HcclCreateSubCommConfig(HcclComm *comm, uint32_t rankNum, uint32_t *rankIds, uint64_t subCommId,
                                   uint32_t subCommRankId, HcclCommConfig *config, HcclComm *subComm) {
    return guard("HcclCreateSubCommConfig", [&] {
        require(comm != nullptr && subComm != nullptr, HCCL_E_PTR, "comm or subComm is null");
        const auto parent = find(*comm);
        // HCCL's way to say that this rank is in no part of the split.
        if (rankIds == nullptr && subCommId == 0xffffffff) {
            *subComm = nullptr;
            return;
        }
        require(rankIds != nullptr && rankNum > 0 && subCommRankId < rankNum, HCCL_E_PARA,
                "rankIds is null or subCommRankId is not below rankNum");
        require(rankIds[subCommRankId] == parent->rank(), HCCL_E_PARA,
                "rankIds[subCommRankId] is not this rank of the parent");
        std::vector<Member> members;
        for (uint32_t i = 0; i < rankNum; ++i) {
            require(rankIds[i] < parent->size(), HCCL_E_PARA, "rankIds holds a rank that the parent has not");
            require(std::count(rankIds, rankIds + rankNum, rankIds[i]) == 1, HCCL_E_PARA,
                    "rankIds repeats a rank");
            members.push_back(parent->members()[rankIds[i]]);
        }
        std::string name = configured_name(config);
        if (name.empty()) name = parent->name() + "_sub_" + std::to_string(subCommId);
        const Settings settings = Settings::from_environment();
        const Deadline deadline = std::chrono::steady_clock::now() + settings.connect_timeout;
        *subComm = add(std::make_shared<Communicator>(name, std::move(members), subCommRankId,
                                                      derive(parent->nonce(), subCommId, rankIds, rankNum),
                                                      parent->gate(), settings, deadline));
    });
}

HcclResult HcclCommDestroy(HcclComm comm) {
    return guard("HcclCommDestroy", [&] { remove(comm)->close(); });
}

HcclResult HcclGetCommName(HcclComm commHandle, char *commName) {
    return guard("HcclGetCommName", [&] {
        require(commName != nullptr, HCCL_E_PTR, "commName is null");
        std::snprintf(commName, COMM_NAME_MAX_LENGTH, "%s", find(commHandle)->name().c_str());
    });
}

HcclResult HcclGetRankSize(HcclComm comm, uint32_t *rankSize) {
    return guard("HcclGetRankSize", [&] {
        require(rankSize != nullptr, HCCL_E_PTR, "rankSize is null");
        *rankSize = find(comm)->size();
    });
}

HcclResult HcclGetRankId(HcclComm comm, uint32_t *rank) {
    return guard("HcclGetRankId", [&] {
        require(rank != nullptr, HCCL_E_PTR, "rank is null");
        *rank = find(comm)->rank();
    });
}

// Every error is the result of the call that met it, so none is left to be found out later.
HcclResult HcclGetCommAsyncError(HcclComm comm, HcclResult *asyncError) {
    return guard("HcclGetCommAsyncError", [&] {
        require(asyncError != nullptr, HCCL_E_PTR, "asyncError is null");
        find(comm);
        *asyncError = HCCL_SUCCESS;
    });
}

HcclResult HcclCommResume(HcclComm comm) {
    return guard("HcclCommResume", [&] { find(comm); });
}

HcclResult HcclCommWorkingDevNicSet(HcclComm, uint32_t *, bool *, uint32_t) {
    return guard("HcclCommWorkingDevNicSet",
                 [&] { throw Error(HCCL_E_NOT_SUPPORT, kBadArgument, "device NICs are not simulated"); });
}

uint32_t HcclGetCommConfigCapability() { return HCCL_COMM_CONFIG_RESERVED; }

HcclResult HcclSetConfig(HcclConfig config, HcclConfigValue configValue) {
    return guard("HcclSetConfig", [&] {
        require(config == HCCL_DETERMINISTIC, HCCL_E_PARA, "config is unknown");
        deterministic = configValue.value;
    });
}

HcclResult HcclGetConfig(HcclConfig config, HcclConfigValue *configValue) {
    return guard("HcclGetConfig", [&] {
        require(config == HCCL_DETERMINISTIC && configValue != nullptr, HCCL_E_PARA, "config is unknown");
        configValue->value = deterministic;
    });
}

const char *HcclGetErrorString(HcclResult code) { return result_text(code); }

// Zero-copy windows on physical memory: every buffer is readable by every rank here, so there is nothing to
// prepare.
HcclResult HcclCommSetMemoryRange(HcclComm comm, void *, size_t, size_t, uint64_t) {
    return guard("HcclCommSetMemoryRange", [&] { find(comm); });
}

HcclResult HcclCommUnsetMemoryRange(HcclComm comm, void *) {
    return guard("HcclCommUnsetMemoryRange", [&] { find(comm); });
}

HcclResult HcclCommActivateCommMemory(HcclComm comm, void *, size_t, size_t, aclrtDrvMemHandle, uint64_t) {
    return guard("HcclCommActivateCommMemory", [&] { find(comm); });
}

HcclResult HcclCommDeactivateCommMemory(HcclComm comm, void *) {
    return guard("HcclCommDeactivateCommMemory", [&] { find(comm); });
}

// ---- operations; like the real library they return at once where the count is 0 ----

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
        require(sendBuf != nullptr && (recvBuf != nullptr || group.rank() != root), HCCL_E_PTR,
                "a buffer is null");
        group.reduce(sendBuf, recvBuf, count, sendType, op, root);
    });
}

HcclResult HcclReduceScatter(void *sendBuf, void *recvBuf, uint64_t recvCount, HcclDataType dataType,
                             HcclReduceOp op, HcclComm comm, aclrtStream) {
    return communicate("HcclReduceScatter", comm, bytes_of(recvCount, dataType), [&](Communicator &group) {
        require_reduction(dataType, op);
        if (recvCount == 0) return;
        require(sendBuf != nullptr && recvBuf != nullptr, HCCL_E_PTR, "a buffer is null");
        group.reduce_scatter(Op::kReduceScatter, sendBuf, repeat(recvCount, group.size()).data(),
                             multiples(recvCount, group.size()).data(), recvBuf, dataType, op);
    });
}

HcclResult HcclReduceScatterV(const void *sendBuf, const void *sendCounts, const void *sdispls,
                              const void *recvBuf, uint64_t recvCount, HcclDataType dataType, HcclReduceOp op,
                              HcclComm comm, aclrtStream) {
    return communicate("HcclReduceScatterV", comm, bytes_of(recvCount, dataType), [&](Communicator &group) {
        require_reduction(dataType, op);
        require(sendCounts != nullptr && sdispls != nullptr, HCCL_E_PTR, "an array is null");
        auto *counts = static_cast<const uint64_t *>(sendCounts);
        require(counts[group.rank()] == recvCount, HCCL_E_PARA, "recvCount is not sendCounts[rank]");
        group.reduce_scatter(Op::kReduceScatterV, sendBuf, counts, static_cast<const uint64_t *>(sdispls),
                             const_cast<void *>(recvBuf), dataType, op);
    });
}

HcclResult HcclAllGather(void *sendBuf, void *recvBuf, uint64_t sendCount, HcclDataType dataType,
                         HcclComm comm, aclrtStream) {
    return communicate("HcclAllGather", comm, bytes_of(sendCount, dataType), [&](Communicator &group) {
        require_type(dataType);
        if (sendCount == 0) return;
        require(sendBuf != nullptr && recvBuf != nullptr, HCCL_E_PTR, "a buffer is null");
        group.all_gather(Op::kAllGather, sendBuf, recvBuf, repeat(sendCount, group.size()).data(),
                         multiples(sendCount, group.size()).data(), dataType);
    });
}

HcclResult HcclAllGatherV(const void *sendBuf, uint64_t sendCount, const void *recvBuf,
                          const void *recvCounts, const void *rdispls, HcclDataType dataType, HcclComm comm,
                          aclrtStream) {
    return communicate("HcclAllGatherV", comm, bytes_of(sendCount, dataType), [&](Communicator &group) {
        require_type(dataType);
        require(recvCounts != nullptr && rdispls != nullptr, HCCL_E_PTR, "an array is null");
        auto *counts = static_cast<const uint64_t *>(recvCounts);
        require(counts[group.rank()] == sendCount, HCCL_E_PARA, "sendCount is not recvCounts[rank]");
        group.all_gather(Op::kAllGatherV, sendBuf, const_cast<void *>(recvBuf), counts,
                         static_cast<const uint64_t *>(rdispls), dataType);
    });
}

HcclResult HcclBroadcast(void *buf, uint64_t count, HcclDataType dataType, uint32_t root, HcclComm comm,
                         aclrtStream) {
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
        require(recvBuf != nullptr && (sendBuf != nullptr || group.rank() != root), HCCL_E_PTR,
                "a buffer is null");
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
        group.all_to_all(Op::kAllToAll, sendBuf, counts.data(), offsets.data(), sendType,
                         const_cast<void *>(recvBuf), counts.data(), offsets.data(), recvType);
    });
}

HcclResult HcclAlltoAllV(const void *sendBuf, const void *sendCounts, const void *sdispls,
                         HcclDataType sendType, const void *recvBuf, const void *recvCounts,
                         const void *rdispls, HcclDataType recvType, HcclComm comm, aclrtStream) {
    auto *send_counts = static_cast<const uint64_t *>(sendCounts);
    const uint64_t count = sendCounts == nullptr ? 0 : total(send_counts, comm);
    return communicate("HcclAlltoAllV", comm, bytes_of(count, sendType), [&](Communicator &group) {
        require_type(sendType);
        require(sendType == recvType, HCCL_E_PARA, "send and receive types must be equal");
        require(sendCounts != nullptr && sdispls != nullptr && recvCounts != nullptr && rdispls != nullptr,
                HCCL_E_PTR, "an array is null");
        group.all_to_all(Op::kAllToAllV, sendBuf, send_counts, static_cast<const uint64_t *>(sdispls),
                         sendType, const_cast<void *>(recvBuf), static_cast<const uint64_t *>(recvCounts),
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

HcclResult HcclBatchSendRecv(HcclSendRecvItemDef *sendRecvInfo, uint32_t itemNum, HcclComm comm,
                             aclrtStream) {
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
            require(item.sendRecvType < HCCL_SEND_RECV_RESERVED, HCCL_E_PARA,
                    "an item neither sends nor receives");
            require_type(item.dataType);
            if (item.count == 0) continue;
            require(item.buf != nullptr, HCCL_E_PTR, "the buffer of an item is null");
            transfers.push_back({item.sendRecvType, item.buf, item.count, item.dataType, item.remoteRank});
        }
        if (!transfers.empty()) group.send_receive(transfers);
    });
}

size_t cann_sim_hccl_counters(char *text, size_t size) {
    std::string json = "{";
    for (const Counter &counter : counters) {
        if (counter.calls == 0) continue;
        json += "\"" + std::string(counter.function) + "\": {\"calls\": " + std::to_string(counter.calls) +
                ", \"bytes\": " + std::to_string(counter.bytes) + "}, ";
    }
    json += "\"transport\": {\"socket_bytes\": " + std::to_string(traffic().socket_bytes) +
            ", \"memory_bytes\": " + std::to_string(traffic().memory_bytes) + "}}";
    if (text != nullptr && size > 0) std::snprintf(text, size, "%s", json.c_str());
    return json.size();
}
