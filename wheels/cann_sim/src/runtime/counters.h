// Counters: what a program asked of the device, exactly and reproducibly. Off unless CANN_SIM_COUNTERS is set or
// cann_sim.counters.start() is called; while they are off a call costs one load and one branch that is never taken.
//
// The runtime's own calls (copies, waits, memory) are counted where they are implemented; operators are counted by
// the compute plug-in (counted.cpp), which wraps their kernels only while counters are on. What switches them:
// counting.h.
#pragma once

#include <atomic>
#include <string>

#include "runtime/abi.h"

namespace cann_sim {

extern __attribute__((visibility("default"))) std::atomic<bool> counters_on;

inline bool counting() { return __builtin_expect(counters_on.load(std::memory_order_relaxed), false); }

// Bytes in tensors on a device, now and at most since the process began (torch.npu.memory_allocated).
struct TensorBytes {
    int device;
    int64_t now;
    int64_t peak;
};

// `op` launched a kernel; `signature` names the dtypes and shapes of its tensors.
__attribute__((visibility("default"))) void count_launch(const std::string &op, const std::string &signature);

// This thread queued a launch, which another one counts: a wait that follows is one of its own.
__attribute__((visibility("default"))) void issue_launch();

// After a launch: what the tensors of its device hold.
__attribute__((visibility("default"))) void count_tensor_bytes(const TensorBytes &bytes);

// torch_npu's own fallback ran `op` on the CPU.
__attribute__((visibility("default"))) void count_fallback(const std::string &op);

// A call broke a rule of an aclnn function that may be none: a card may refuse it.
__attribute__((visibility("default"))) void count_uncertain(const std::string &rule);

// The host waited for the device in `call`, an ACL function or an operator whose result the host needs.
__attribute__((visibility("default"))) void count_wait(const char *call);

// A block of device memory of `bytes` came (> 0) or went (< 0).
void count_block(int device, int64_t bytes);

// A copy between host and device; `blocking`: the call returns when the data has arrived.
void count_copy(aclrtMemcpyKind kind, size_t bytes, bool blocking);

// One collective of this rank ended.
void count_collective(const char *op, uint64_t bytes);

// From zero.
void reset_counters();

// What follows belongs to the next step.
void begin_step();

std::string counters_json();

}  // namespace cann_sim
