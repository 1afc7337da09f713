// Python's global interpreter lock across a call that fails.
//
// Without its task queue torch_npu gives the lock up around each operator (OpParamMaker.cpp: Py_BEGIN_ALLOW_THREADS) and
// throws between there and Py_END_ALLOW_THREADS when CANN returns an error: who called it with the lock then runs
// Python's functions without it, and the process ends with "Fatal Python error: PyThreadState_Get". On a card too. Here
// the call that fails takes the lock back first, so that the error arrives as the RuntimeError that it is.
#pragma once

namespace cann_sim {

// torch_npu prepares an operator on this thread: notes whether the thread has the lock.
__attribute__((visibility("default"))) void note_interpreter_lock();

// The operator ends in an error: takes the lock back if it was given up since it was noted. Call it last.
__attribute__((visibility("default"))) void retake_interpreter_lock();

}  // namespace cann_sim
