// The profiler's tasks: what ran on a device, and when. Nothing is recorded, and no clock is read, unless aclprofStart
// ran.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

// Whether aclprofStart ran and aclprofStop did not: the compute plug-in's operators then report their launches.
__attribute__((visibility("default"))) bool profiling();

}  // namespace cann_sim

// The clock of the profiler when a task of this thread's device begins; 0 while there is nothing to record.
SIM_API uint64_t cann_sim_task_begin();

// The task ends. `kind` is CANN's task type or SIMULATED; `detail` has no tabs: dtypes and shapes, or bytes.
SIM_API void cann_sim_task_end(uint64_t begin, const char *kind, const char *name, const char *detail);
