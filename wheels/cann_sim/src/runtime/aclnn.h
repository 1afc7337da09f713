// The way from libopapi.so, which knows no libtorch, to the compute plug-in, which computes its functions.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

struct AclnnHooks;  // opapi/call.h

}  // namespace cann_sim

// Filled in by the compute plug-in; nullptr while it is not loaded.
SIM_API void cann_sim_set_aclnn(const cann_sim::AclnnHooks *hooks);
SIM_API const cann_sim::AclnnHooks *cann_sim_get_aclnn();
