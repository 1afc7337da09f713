// The communicators of this process by their handles, and the thread that finishes sends for them.
#pragma once

#include <memory>

#include "third_party/hccl/inc/hccl/hccl_types.h"

namespace cann_sim::hccl {

class Communicator;

HcclComm add(std::shared_ptr<Communicator> communicator);
// Throws Error for a handle that is not (or no longer) one of ours. Two threads may hold a communicator at a
// time: torch_npu asks for asynchronous errors from its watchdog.
std::shared_ptr<Communicator> find(HcclComm handle);
std::shared_ptr<Communicator> remove(HcclComm handle);

// Starts sending what point-to-point calls left behind.
void wake_flusher();

}  // namespace cann_sim::hccl
