// Counters: what a program asked of the device, exactly and reproducibly. Off unless CANN_SIM_COUNTERS is set or
// cann_sim.counters.start() is called; while they are off a call costs one load and one branch that is never taken.
//
// The runtime's own calls (copies, waits, memory) are counted where they are implemented; operators are counted by
// the compute plug-in (counted.cpp), which wraps their kernels only while counters are on.
#pragma once

#include <atomic>
#include <string>

#include "sim.h"

namespace cann_sim {

extern __attribute__((visibility("default"))) std::atomic<bool> counters_on;

inline bool counting() { return __builtin_expect(counters_on.load(std::memory_order_relaxed), false); }

// Reads CANN_SIM_COUNTERS and arranges for the file to be written at exit; aclInit calls it.
void start_counters_from_environment();

// Has the compute plug-in's operators report their launches, or no longer, as counters, faults and the profiler need.
void watch_launches();

// Bytes in tensors on a device, now and at most since the process began (torch.npu.memory_allocated).
struct TensorBytes {
    int device;
    int64_t now;
    int64_t peak;
};

// `op` launched a kernel; `signature` names the dtypes and shapes of its tensors.
__attribute__((visibility("default"))) void count_launch(const std::string &op, const std::string &signature);

// After a launch: what the tensors of its device hold.
__attribute__((visibility("default"))) void count_tensor_bytes(const TensorBytes &bytes);

// torch_npu's own fallback ran `op` on the CPU.
__attribute__((visibility("default"))) void count_fallback(const std::string &op);

// The host waited for the device in `call`, an ACL function or an operator whose result the host needs.
__attribute__((visibility("default"))) void count_wait(const char *call);

// A block of device memory of `bytes` came (> 0) or went (< 0).
void count_block(int device, int64_t bytes);

// memory.cpp: calls count_block for every block that this process holds.
void count_held_blocks();

// A copy between host and device; `blocking`: the call returns when the data has arrived.
void count_copy(aclrtMemcpyKind kind, size_t bytes, bool blocking);

// While one lives, what torch_npu's own threads do is attributed to the Python line of the thread that made it.
// Such a thread has no Python frames, and the thread that made it waits in the meantime.
class __attribute__((visibility("default"))) IssuedHere {
public:
    IssuedHere();
    ~IssuedHere();
    IssuedHere(const IssuedHere &) = delete;
    IssuedHere &operator=(const IssuedHere &) = delete;
};

// What only the compute plug-in can do; it fills this in when it is loaded.
struct CounterHooks {
    void (*wrap_operators)();    // counting starts
    void (*unwrap_operators)();  // counting stops
    void (*finish_queued)();     // waits for what torch_npu has queued on its own thread
};

}  // namespace cann_sim

SIM_API void cann_sim_set_counter_hooks(const cann_sim::CounterHooks *hooks);

// The interface of cann_sim/counters.py.
SIM_API void cann_sim_counters_start();
SIM_API void cann_sim_counters_stop();
SIM_API void cann_sim_counters_step();
// Writes the counters as JSON, ending in a zero byte if there is room, and returns the length of the whole text.
SIM_API size_t cann_sim_counters_snapshot(char *text, size_t size);

// libhccl's hook: one collective of this rank ended.
SIM_API void cann_sim_count_hccl(const char *op, uint64_t bytes);
