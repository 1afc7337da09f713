// Faults on demand (CANN_SIM_FAULT): each becomes the error code that the real runtime returns for it.
#pragma once

#include <string>

#include "runtime/abi.h"

namespace cann_sim {

// Parses CANN_SIM_FAULT, ending the process with the grammar where it is malformed; aclInit calls it.
void read_faults();

// A device allocation begins: the error that it is to end in.
aclError fault_at_allocation(int device);

// A wait or a copy begins: the error of the device, or of its stream that is stuck (after `timeout_ms`, or after the
// operator timeout of aclrtSetOpExecuteTimeOut where that is negative).
aclError fault_at_wait(int device, int timeout_ms);

// `bytes` pass between host and device, or between devices: takes the time that a slow link takes.
void delay_link(int device, size_t bytes);

void set_operator_timeout(uint32_t seconds);

// Whether a fault counts launches or changes their results; the compute plug-in then reports each.
__attribute__((visibility("default"))) bool faults_watch_launches();

struct LaunchFault {
    double slow_down;  // 1: none
    bool corrupt;      // zero the results
};

// `op` was launched on `device`.
__attribute__((visibility("default"))) LaunchFault fault_at_launch(const std::string &op, int device);

}  // namespace cann_sim

// libhccl's hook: 0 or the HcclResult in which the call of "hccl:<function>" is to end.
SIM_API int cann_sim_fault(const char *site);
