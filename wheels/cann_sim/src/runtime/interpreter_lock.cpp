#include "runtime/interpreter_lock.h"

#include <dlfcn.h>

#include <type_traits>

namespace cann_sim {

namespace {

// CPython's stable C API, looked up in the process: this library also serves programs without an interpreter.
struct Python {
    int (*has_lock)();
    void *(*this_thread_state)();
    void (*restore)(void *);
    bool complete;

    Python() {
        const auto find = [](auto &function, const char *name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
            return function != nullptr;
        };
        complete = find(has_lock, "PyGILState_Check") && find(this_thread_state, "PyGILState_GetThisThreadState") &&
                   find(restore, "PyEval_RestoreThread");
    }
};

const Python &python() {
    static const Python functions;
    return functions;
}

// PyGILState_Check is also true where there is no interpreter or it has ended; no thread has a state then.
bool has_lock() { return python().complete && python().this_thread_state() != nullptr && python().has_lock() != 0; }

thread_local bool had_lock = false;

}  // namespace

void note_interpreter_lock() { had_lock = has_lock(); }

void retake_interpreter_lock() {
    if (had_lock && !has_lock()) {
        python().restore(python().this_thread_state());
    }
    had_lock = false;
}

}  // namespace cann_sim
