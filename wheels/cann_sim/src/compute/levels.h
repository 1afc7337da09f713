// At which level an operator is simulated: aten (the CPU's kernel in place of torch_npu's) or aclnn (torch_npu's own kernel,
// whose aclnn functions libopapi.so offers).
#pragma once

#include "runtime/abi.h"

#include <string>
#include <unordered_map>

namespace cann_sim {

// Which calls of an operator are at level aten by default although all its aclnn functions exist.
struct Held {
    enum Calls : uint8_t { kNone, kSome, kAll } calls;
    const char *argument;  // kSome: those that give it
};

// Operators of which all aclnn functions exist. Generated.
const std::unordered_map<std::string, Held> &ready_operators();

// Whether torch_npu's own kernel of `op` (aten::add.Tensor) stays, for all calls, by CANN_SIM_LEVEL. Read once; a value that
// is none ends the process.
bool at_level_aclnn(const std::string &op);

// The argument whose presence holds a call of `op` back, by CANN_SIM_LEVEL; empty if its calls are all at one level.
std::string held_argument(const std::string &op);

}  // namespace cann_sim

// For tools, whatever CANN_SIM_LEVEL is: 1 for an operator that `aclnn` puts at that level, 2 for one that only `all` does, 3
// for one of which `aclnn` holds back some calls, 0 for one whose functions do not all exist.
SIM_API int cann_sim_level(const char *op);
