// libascendcl.so: reads the interpreter's stack, where the process has an interpreter.

#include "runtime/python_line.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <type_traits>
#include <utility>

namespace cann_sim {

namespace {

// CPython's stable C API, looked up in the process: this library also serves programs without an interpreter.
struct Python {
    int (*is_initialized)();
    int (*is_finalizing)();
    void *(*this_thread_state)();
    int (*ensure)();
    void (*release)(int);
    void *(*frame)();
    void *(*frame_back)(void *);
    void *(*frame_code)(void *);
    int (*frame_line)(void *);
    void *(*get_attribute)(void *, const char *);
    const char *(*text)(void *);
    void (*incref)(void *);
    void (*decref)(void *);
    void (*clear_error)();

    Python() {
        const auto find = [](auto &function, const char *name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
            return function != nullptr;
        };
        if (!find(is_finalizing, "Py_IsFinalizing")) {  // its name since 3.13
            find(is_finalizing, "_Py_IsFinalizing");
        }
        complete = find(is_initialized, "Py_IsInitialized") &&
                   find(this_thread_state, "PyGILState_GetThisThreadState") && find(ensure, "PyGILState_Ensure") &&
                   find(release, "PyGILState_Release") && find(frame, "PyEval_GetFrame") &&
                   find(frame_back, "PyFrame_GetBack") && find(frame_code, "PyFrame_GetCode") &&
                   find(frame_line, "PyFrame_GetLineNumber") && find(get_attribute, "PyObject_GetAttrString") &&
                   find(text, "PyUnicode_AsUTF8") && find(incref, "Py_IncRef") && find(decref, "Py_DecRef") &&
                   find(clear_error, "PyErr_Clear") && is_finalizing != nullptr;
    }

    bool complete;
};

// The package folder (with a slash) whose lib/ holds `library`; empty when it is not loaded.
std::string package_of(const char *library) {
    void *handle = dlopen(library, RTLD_NOLOAD | RTLD_LAZY);
    if (handle == nullptr) {
        return {};
    }
    link_map *map = nullptr;
    dlinfo(handle, RTLD_DI_LINKMAP, &map);
    std::string path = map->l_name;
    dlclose(handle);
    for (int up = 0; up < 2; ++up) {
        path.resize(std::min(path.size(), path.rfind('/')));
    }
    return path + "/";
}

bool is_framework(const char *file) {
    static const std::array<std::string, 2> packages = {package_of("libtorch_cpu.so"), package_of("libtorch_npu.so")};
    for (const std::string &package : packages) {
        if (!package.empty() && std::strncmp(file, package.c_str(), package.size()) == 0) {
            return true;
        }
    }
    // importlib and zipimport run between a program and what it imports.
    return std::strncmp(file, "<frozen ", 8) == 0;
}

std::mutex issued_mutex;
std::string issued_from;  // see IssuedHere

}  // namespace

std::string python_line() {
    static const Python python;
    if (!python.complete || python.is_initialized() == 0 || python.is_finalizing() != 0) {
        return "(no Python frame)";
    }
    if (python.this_thread_state() == nullptr) {
        const std::lock_guard<std::mutex> lock(issued_mutex);
        return issued_from.empty() ? "(no Python frame)" : issued_from;
    }
    // torch lets go of the interpreter before it dispatches an operator.
    const int state = python.ensure();
    std::string line = "(no Python frame)";
    void *frame = python.frame();
    if (frame != nullptr) {
        python.incref(frame);
        line = "(torch)";
    }
    while (frame != nullptr) {
        void *code = python.frame_code(frame);
        void *name = python.get_attribute(code, "co_filename");
        const char *file = name == nullptr ? nullptr : python.text(name);
        if (file != nullptr && !is_framework(file)) {
            line = std::string(file) + ":" + std::to_string(python.frame_line(frame));
        }
        const bool found = line != "(torch)";
        if (file == nullptr) {
            python.clear_error();
        }
        if (name != nullptr) {
            python.decref(name);
        }
        python.decref(code);
        void *back = found ? nullptr : python.frame_back(frame);
        python.decref(frame);
        frame = back;
    }
    python.release(state);
    return line;
}

IssuedHere::IssuedHere() {
    std::string line = python_line();
    const std::lock_guard<std::mutex> lock(issued_mutex);
    issued_from = std::move(line);
}

IssuedHere::~IssuedHere() {
    const std::lock_guard<std::mutex> lock(issued_mutex);
    issued_from.clear();
}

}  // namespace cann_sim
