// What a program is told of a task that failed.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

// A task of this thread's stream ended in an error: tells the callback of aclrtSetExceptionInfoCallback.
void report_exception(uint32_t task, uint32_t stream, aclError code);

}  // namespace cann_sim
