// The boundary to C: what libhccl.so exports beyond hccl.h, and how every exported function begins and ends.
#pragma once

#include <cstdint>
#include <exception>
#include <new>
#include <string>

#include "hccl/communicator.h"
#include "hccl/error.h"
#include "hccl/registry.h"

#pragma GCC visibility push(default)
#include "third_party/hccl/inc/hccl/hccl.h"
extern "C" {
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
// torch_npu's copies of hccl.h do not agree on what is const here; in C it is the same function.
HcclResult reduce_scatter_v(const void *sendBuf, const void *sendCounts, const void *sdispls, void *recvBuf,
                            uint64_t recvCount, HcclDataType dataType, HcclReduceOp op, HcclComm comm,
                            aclrtStream stream) __asm__("HcclReduceScatterV");
HcclResult all_gather_v(const void *sendBuf, uint64_t sendCount, void *recvBuf, const void *recvCounts,
                        const void *rdispls, HcclDataType dataType, HcclComm comm,
                        aclrtStream stream) __asm__("HcclAllGatherV");
const char *HcclGetErrorString(HcclResult code);
}
#pragma GCC visibility pop

extern "C" {
// Hooks of libascendcl; absent when libhccl is used alone.
void cann_sim_count_hccl(const char *op, uint64_t bytes) __attribute__((weak));
uint64_t cann_sim_task_begin() __attribute__((weak));
void cann_sim_task_end(uint64_t begin, const char *kind, const char *name, const char *detail) __attribute__((weak));
int cann_sim_fault(const char *site) __attribute__((weak));  // an HcclResult; site is "hccl:<function>"
}

namespace cann_sim::hccl {

// The boundary to C: nothing is thrown through it, and every failure is reported once.
template <typename Body>
HcclResult guard(const char *function, Body body) {
    try {
        if (cann_sim_fault != nullptr) {
            const int result = cann_sim_fault((std::string("hccl:") + function).c_str());
            if (result != HCCL_SUCCESS) {
                throw Error(static_cast<HcclResult>(result), result == HCCL_E_TIMEOUT ? kExecTimeout : kRemote,
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
    } catch (...) {
        report(Error(HCCL_E_INTERNAL, kResource, "what was thrown is no std::exception"), function);
        return HCCL_E_INTERNAL;
    }
}

void require(bool condition, HcclResult result, const char *what);

}  // namespace cann_sim::hccl
