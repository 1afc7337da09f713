// At which level an operator is simulated: aten (the CPU's kernel in place of torch_npu's) or aclnn (torch_npu's own kernel,
// whose aclnn functions libopapi.so offers).
#pragma once

#include "runtime/abi.h"

#include <string>
#include <unordered_map>

namespace cann_sim {

// Operators of which all aclnn functions exist, and whether they are at level aclnn by default. Generated.
const std::unordered_map<std::string, bool> &ready_operators();

// Whether torch_npu's own kernel of `op` (aten::add.Tensor) stays, by CANN_SIM_LEVEL. Read once; a value that is none ends
// the process.
bool at_level_aclnn(const std::string &op);

}  // namespace cann_sim

// For tools, whatever CANN_SIM_LEVEL is: 1 for an operator that `aclnn` puts at that level, 2 for one that only `all` does, 0
// for one whose functions do not all exist.
SIM_API int cann_sim_level(const char *op);
