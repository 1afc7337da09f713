// Device memory: what aclrtMalloc and aclrtMapMem handed out.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

// Calls count_block for every block that this process holds.
void count_held_blocks();

}  // namespace cann_sim

// Whether `address` lies in device memory.
SIM_API bool cann_sim_is_device_address(const void *address);
