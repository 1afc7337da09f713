// libhccl.so of the simulated CANN: communicators, in the C ABI that torch_npu links to or looks up by name.
//
// A call runs on the thread that issues it and is complete when it returns: the simulated stream has nothing
// pending. Device memory of the simulator is host memory, so buffers are plain pointers.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hccl/abi.h"
#include "hccl/gate.h"
#include "hccl/root.h"
#include "runtime/one_tree.h"

namespace cann_sim::hccl {

void require(bool condition, HcclResult result, const char *what) {
    if (!condition) throw Error(result, kBadArgument, what);
}

}  // namespace cann_sim::hccl

namespace {

using namespace cann_sim::hccl;

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

HcclComm connect(uint32_t ranks, const HcclRootInfo *root_info, uint32_t rank, const std::string &chosen_name) {
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
    return add(std::make_shared<Communicator>(name, std::move(members), rank, root.nonce, std::move(gate), settings,
                                              connected, wake_flusher));
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

HcclResult HcclGetRootInfo(HcclRootInfo *rootInfo) {
    return guard("HcclGetRootInfo", [&] {
        require(rootInfo != nullptr, HCCL_E_PTR, "rootInfo is null");
        const RootInfo root = open_root();
        std::memset(rootInfo->internal, 0, sizeof rootInfo->internal);
        std::memcpy(rootInfo->internal, &root, sizeof root);
    });
}

HcclResult HcclCommInitRootInfo(uint32_t nRanks, const HcclRootInfo *rootInfo, uint32_t rank, HcclComm *comm) {
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
        throw Error(HCCL_E_NOT_SUPPORT, kBadArgument,
                    "rank tables are not simulated; unset RANK_TABLE_FILE (torch_npu goes on with a root info)");
    });
}

HcclResult HcclCommInitClusterInfo(const char *clusterInfo, uint32_t rank, HcclComm *comm) {
    return HcclCommInitClusterInfoConfig(clusterInfo, rank, nullptr, comm);
}

HcclResult HcclCommInitAll(uint32_t ndev, int32_t *devices, HcclComm *comms) {
    return guard("HcclCommInitAll", [&] {
        require(ndev > 0 && devices != nullptr && comms != nullptr, HCCL_E_PARA, "ndev is 0 or an array is null");
        HcclRootInfo root;
        require(HcclGetRootInfo(&root) == HCCL_SUCCESS, HCCL_E_NETWORK, "no root info");
        std::vector<HcclResult> results(ndev);
        std::vector<std::thread> threads;
        for (uint32_t rank = 0; rank < ndev; ++rank) {
            threads.emplace_back([&, rank] { results[rank] = HcclCommInitRootInfo(ndev, &root, rank, &comms[rank]); });
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
            require(std::count(rankIds, rankIds + rankNum, rankIds[i]) == 1, HCCL_E_PARA, "rankIds repeats a rank");
            members.push_back(parent->members()[rankIds[i]]);
        }
        std::string name = configured_name(config);
        if (name.empty()) name = parent->name() + "_sub_" + std::to_string(subCommId);
        const Settings settings = Settings::from_environment();
        const Deadline deadline = std::chrono::steady_clock::now() + settings.connect_timeout;
        *subComm = add(std::make_shared<Communicator>(name, std::move(members), subCommRankId,
                                                      derive(parent->nonce(), subCommId, rankIds, rankNum),
                                                      parent->gate(), settings, deadline, wake_flusher));
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

const char *HcclGetErrorString(HcclResult code) try { return result_text(code); } catch (...) {
    return "";
}

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
