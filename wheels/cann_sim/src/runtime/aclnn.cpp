// libascendcl.so: where the compute plug-in leaves its entry points for libopapi.so.

#include "runtime/aclnn.h"

#include <atomic>

namespace {

std::atomic<const cann_sim::AclnnHooks *> aclnn_hooks{nullptr};

}  // namespace

SIM_API void cann_sim_set_aclnn(const cann_sim::AclnnHooks *hooks) { aclnn_hooks = hooks; }
SIM_API const cann_sim::AclnnHooks *cann_sim_get_aclnn() { return aclnn_hooks; }
