// The counters' switch, and the interface of cann_sim/counters.py.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

// Reads CANN_SIM_COUNTERS and arranges for the file to be written at exit; aclInit calls it.
void start_counters_from_environment();

}  // namespace cann_sim

SIM_API void cann_sim_counters_start();
SIM_API void cann_sim_counters_stop();
SIM_API void cann_sim_counters_step();
// Writes the counters as JSON, ending in a zero byte if there is room, and returns the length of the whole text.
SIM_API size_t cann_sim_counters_snapshot(char *text, size_t size);

// libhccl's hook: one collective of this rank ended.
SIM_API void cann_sim_count_hccl(const char *op, uint64_t bytes);
