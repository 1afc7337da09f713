// libascendcl.so: where the compute plug-in leaves its entry point for libacl_op_compiler.so.

#include "runtime/operators.h"

#include <atomic>

namespace {

std::atomic<cann_sim_execute_fn> execute_operator{nullptr};

}  // namespace

SIM_API void cann_sim_set_execute(cann_sim_execute_fn execute) { execute_operator = execute; }
SIM_API cann_sim_execute_fn cann_sim_get_execute() { return execute_operator; }
