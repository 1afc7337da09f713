// Contexts, and streams as queues: each stream has a thread that runs its tasks in order.
//
// Where torch_npu is in the process, a stream has nothing pending when a call returns, because kernels, copies and
// collectives run on the thread that issues them, and what torch_npu defers it defers on its own task-queue thread.
// Such a stream gets a queue with its first task that needs one: a model's execution, or an event that one of those
// leads to. Without torch_npu (pyACL, ais_bench, programs in C++) every asynchronous call queues.
#pragma once

#include <functional>
#include <string>

#include "runtime/abi.h"

namespace cann_sim {

struct Context;
class Stream;

// The calling thread's context, null where it has none; its device is current_device().
Context *current_context();

// An error and its text, as they travel from a stream's thread to the thread that waits for it.
struct Failure {
    aclError code = ACL_SUCCESS;
    std::string message;
};

// Finds the stream of a handle for a call of the current context: the context's default stream for null. 107002 where
// the thread has no context, 107003 where the handle is no stream or another context's.
aclError find_stream(aclrtStream handle, const char *call, Stream **stream);

// Whether a call on this stream is to run at once on the thread that issues it. False for a handle that is none.
bool runs_at_once(aclrtStream handle);

// Runs `task` on the stream's thread after all that was queued before, on the stream's device. An error that it returns
// (with fail()) is the stream's, and the next wait for the stream returns it. Returns the task's number.
uint64_t enqueue(Stream &stream, std::function<aclError()> task);

// Waits until the stream's task `number` is done; -1 waits for ever. 507046 after `timeout_ms`.
aclError wait_for(Stream &stream, uint64_t number, int timeout_ms);

// The error of the stream's tasks so far, which becomes that of the calling thread; `clear`: it was reported.
aclError error_of(Stream &stream, bool clear);

// Waits for all that is queued and returns the first error of its tasks.
aclError drain(aclrtStream handle, int timeout_ms, const char *call);
aclError drain_device(int device, int timeout_ms);

uint64_t now_ns();  // of the clock of events

}  // namespace cann_sim
