// The line of Python that caused a call.
#pragma once

#include <string>

namespace cann_sim {

// "file:line" of the innermost Python frame of this thread outside torch and torch_npu. In parentheses where there
// is none: "(torch)" when torch alone is on the stack, "(no Python frame)" on threads of C++ (autograd's).
std::string python_line();

// While one lives, what torch_npu's own threads do is attributed to the Python line of the thread that made it.
// Such a thread has no Python frames, and the thread that made it waits in the meantime.
class __attribute__((visibility("default"))) IssuedHere {
public:
    IssuedHere();
    ~IssuedHere();
    IssuedHere(const IssuedHere &) = delete;
    IssuedHere &operator=(const IssuedHere &) = delete;
};

}  // namespace cann_sim
