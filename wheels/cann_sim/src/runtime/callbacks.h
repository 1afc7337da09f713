// What the host is told by a stream: callbacks that a thread processes, and the exception of a task.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

// A task of this thread's stream ended in an error: tells the callback of aclrtSetExceptionInfoCallback.
void report_exception(uint32_t task, uint32_t stream, aclError code);

}  // namespace cann_sim
