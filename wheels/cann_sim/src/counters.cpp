// libascendcl.so: the counters' state, their attribution to Python lines, and their JSON form.

#include "counters.h"

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <type_traits>
#include <utility>

#include "faults.h"
#include "profiler.h"

namespace cann_sim {

std::atomic<bool> counters_on{false};

namespace {

// ---- the Python line that caused a call ----

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
                   find(this_thread_state, "PyGILState_GetThisThreadState") &&
                   find(ensure, "PyGILState_Ensure") && find(release, "PyGILState_Release") &&
                   find(frame, "PyEval_GetFrame") && find(frame_back, "PyFrame_GetBack") &&
                   find(frame_code, "PyFrame_GetCode") && find(frame_line, "PyFrame_GetLineNumber") &&
                   find(get_attribute, "PyObject_GetAttrString") && find(text, "PyUnicode_AsUTF8") &&
                   find(incref, "Py_IncRef") && find(decref, "Py_DecRef") && find(clear_error, "PyErr_Clear") &&
                   is_finalizing != nullptr;
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

// "file:line" of the innermost Python frame of this thread outside torch and torch_npu. In parentheses where there
// is none: "(torch)" when torch alone is on the stack, "(no Python frame)" on threads of C++ (autograd's).
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

// ---- state ----

struct Volume {
    uint64_t count = 0;
    uint64_t bytes = 0;
};

struct Signature {
    uint64_t count = 0;
    uint64_t first_step = 0;
};

struct DeviceMemory {
    int64_t now = 0, peak = 0;
    std::map<int64_t, int64_t> blocks, peak_blocks;  // size of a block: how many are held
    // After the last launch: what a program frees while it ends is not what it needs.
    int64_t final = 0, tensors = 0, tensors_peak = 0;
};

// What a step is summed up as.
struct Totals {
    uint64_t launches = 0, host_waits = 0, h2d_bytes = 0, d2h_bytes = 0, new_signatures = 0, collective_bytes = 0,
             cpu_fallbacks = 0;
};

struct Counters {
    std::map<std::string, uint64_t> launches, fallbacks;
    std::map<std::pair<std::string, std::string>, uint64_t> waits;  // line, call
    std::map<std::pair<std::string, std::string>, Volume> copies;   // line, direction
    std::map<std::pair<std::string, std::string>, Signature> signatures;
    std::map<std::string, Volume> collectives;
    std::map<int, DeviceMemory> memory;
    std::vector<Totals> steps{Totals()};

    Totals &step() { return steps.back(); }
};

thread_local bool device_is_idle = false;  // nothing was issued since this thread waited

std::mutex mutex;
Counters counters;
const CounterHooks *hooks = nullptr;
std::string output;  // file of CANN_SIM_COUNTERS
pid_t owner = 0;     // the process that writes it; not one forked from it

std::string quoted(const std::string &text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            result += '\\';
            result += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            result += escape;
        } else {
            result += c;
        }
    }
    return result + "\"";
}

using Fields = std::vector<std::pair<const char *, std::string>>;

std::string object(const Fields &fields) {
    std::string text;
    for (const auto &[name, value] : fields) {
        text += (text.empty() ? "{" : ", ") + quoted(name) + ": " + value;
    }
    return text + "}";
}

// {"key": value, …} or [value, …], one entry a line.
template <typename Map, typename Entry>
std::string lines(const Map &map, char open, char close, Entry entry) {
    std::string text(1, open);
    for (const auto &item : map) {
        text += (text.size() == 1 ? "\n    " : ",\n    ") + entry(item);
    }
    return text + (map.empty() ? "" : "\n  ") + close;
}

std::string number(uint64_t value) { return std::to_string(value); }

std::string keyed(const std::pair<const std::string, uint64_t> &item) {
    return quoted(item.first) + ": " + number(item.second);
}

std::string sizes(const std::map<int64_t, int64_t> &blocks) {
    std::string text = "{";
    for (const auto &[size, count] : blocks) {
        text += (text.size() == 1 ? "\"" : ", \"") + std::to_string(size) + "\": " + std::to_string(count);
    }
    return text + "}";
}

std::string to_json() {
    const char *rank = std::getenv("RANK");  // torchrun's
    const Fields fields = {
        {"schema", "1"},
        {"simulated", quoted("cann_sim")},
        {"rank", rank == nullptr || *rank == '\0' ? "null" : std::to_string(std::atoi(rank))},
        {"launches", lines(counters.launches, '{', '}', keyed)},
        {"host_syncs", lines(counters.waits, '[', ']', [](const auto &item) {
             return object({{"line", quoted(item.first.first)}, {"call", quoted(item.first.second)},
                            {"count", number(item.second)}});
         })},
        {"copies", lines(counters.copies, '[', ']', [](const auto &item) {
             return object({{"line", quoted(item.first.first)}, {"direction", quoted(item.first.second)},
                            {"count", number(item.second.count)}, {"bytes", number(item.second.bytes)}});
         })},
        {"signatures", lines(counters.signatures, '[', ']', [](const auto &item) {
             return object({{"op", quoted(item.first.first)}, {"signature", quoted(item.first.second)},
                            {"count", number(item.second.count)}, {"first_step", number(item.second.first_step)}});
         })},
        {"memory", lines(counters.memory, '{', '}', [](const auto &item) {
             const DeviceMemory &held = item.second;
             return quoted(std::to_string(item.first)) + ": " +
                    object({{"tensor_bytes", std::to_string(held.tensors)},
                            {"tensor_bytes_peak", std::to_string(held.tensors_peak)},
                            {"device_bytes", std::to_string(held.final)},
                            {"device_bytes_peak", std::to_string(held.peak)},
                            {"blocks_peak", sizes(held.peak_blocks)}});
         })},
        {"collectives", lines(counters.collectives, '{', '}', [](const auto &item) {
             return quoted(item.first) + ": " + object({{"count", number(item.second.count)},
                                                        {"bytes", number(item.second.bytes)}});
         })},
        {"cpu_fallbacks", lines(counters.fallbacks, '{', '}', keyed)},
        {"steps", lines(counters.steps, '[', ']', [](const Totals &step) {
             return object({{"launches", number(step.launches)}, {"host_syncs", number(step.host_waits)},
                            {"h2d_bytes", number(step.h2d_bytes)}, {"d2h_bytes", number(step.d2h_bytes)},
                            {"new_signatures", number(step.new_signatures)},
                            {"collective_bytes", number(step.collective_bytes)},
                            {"cpu_fallbacks", number(step.cpu_fallbacks)}});
         })},
    };
    std::string text;
    for (const auto &[name, value] : fields) {
        text += (text.empty() ? "{\n  " : ",\n  ") + quoted(name) + ": " + value;
    }
    return text + "\n}\n";
}

void finish_queued() {
    if (hooks != nullptr && current_device() >= 0) {
        hooks->finish_queued();
    }
}

// %p becomes the process id; without it a rank of a distributed job puts ".rank<R>" before the extension.
std::string output_name(std::string name) {
    const size_t place = name.find("%p");
    if (place != std::string::npos) {
        return name.replace(place, 2, std::to_string(getpid()));
    }
    const char *rank = std::getenv("RANK");
    if (rank == nullptr || *rank == '\0') {
        return name;
    }
    const size_t base = name.rfind('/') == std::string::npos ? 0 : name.rfind('/') + 1;
    const size_t dot = name.rfind('.');
    return name.insert(dot == std::string::npos || dot <= base ? name.size() : dot, std::string(".rank") + rank);
}

void write_output() {
    if (output.empty() || owner != getpid()) {
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    FILE *file = std::fopen(output.c_str(), "w");
    const std::string text = to_json();
    const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if ((file != nullptr && std::fclose(file) != 0) || !written) {
        std::fprintf(stderr, "error[cann-sim-counters]: %s cannot be written: %s\n", output.c_str(),
                     std::strerror(errno));
    }
    output.clear();
}

}  // namespace

void start_counters_from_environment() {
    const char *name = std::getenv("CANN_SIM_COUNTERS");
    if (name == nullptr || *name == '\0') {
        return;
    }
    output = output_name(name);
    owner = getpid();
    std::atexit(write_output);
    cann_sim_counters_start();
}

void watch_launches() {
    static std::mutex switching;
    static bool watched = false;
    const std::lock_guard<std::mutex> lock(switching);
    const bool wanted = counting() || faults_watch_launches() || profiling();
    if (hooks != nullptr && wanted != watched) {
        (wanted ? hooks->wrap_operators : hooks->unwrap_operators)();
        watched = wanted;
    }
}

void count_launch(const std::string &op, const std::string &signature) {
    device_is_idle = false;
    const std::lock_guard<std::mutex> lock(mutex);
    ++counters.launches[op];
    ++counters.step().launches;
    Signature &seen = counters.signatures[{op, signature}];
    if (seen.count++ == 0) {
        seen.first_step = counters.steps.size() - 1;
        ++counters.step().new_signatures;
    }
}

void count_fallback(const std::string &op) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++counters.fallbacks[op];
    ++counters.step().cpu_fallbacks;
}

void count_wait(const char *call) {
    device_is_idle = true;
    const std::string line = python_line();  // takes the interpreter's lock: not under ours
    const std::lock_guard<std::mutex> lock(mutex);
    ++counters.waits[{line, call}];
    ++counters.step().host_waits;
}

void count_copy(aclrtMemcpyKind kind, size_t bytes, bool blocking) {
    if (kind != ACL_MEMCPY_HOST_TO_DEVICE && kind != ACL_MEMCPY_DEVICE_TO_HOST) {
        return;
    }
    const bool onto = kind == ACL_MEMCPY_HOST_TO_DEVICE;
    const std::string line = python_line();
    const std::lock_guard<std::mutex> lock(mutex);
    Volume &volume = counters.copies[{line, onto ? "h2d" : "d2h"}];
    ++volume.count;
    volume.bytes += bytes;
    (onto ? counters.step().h2d_bytes : counters.step().d2h_bytes) += bytes;
    // torch_npu waits for the stream before it copies: with the device idle a copy is no second wait.
    if (blocking && !std::exchange(device_is_idle, false)) {
        ++counters.waits[{line, "aclrtMemcpy"}];
        ++counters.step().host_waits;
    }
}

void count_tensor_bytes(const TensorBytes &bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    DeviceMemory &held = counters.memory[bytes.device];
    held.final = held.now;
    held.tensors = bytes.now;
    held.tensors_peak = bytes.peak;
}

void count_block(int device, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    DeviceMemory &held = counters.memory[device];
    held.now += bytes;
    const auto found = held.blocks.try_emplace(bytes < 0 ? -bytes : bytes).first;
    found->second += bytes < 0 ? -1 : 1;
    if (found->second == 0) {
        held.blocks.erase(found);
    }
    if (held.now > held.peak) {
        held.peak = held.now;
        held.peak_blocks = held.blocks;
    }
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

SIM_API void cann_sim_set_counter_hooks(const cann_sim::CounterHooks *hooks) {
    cann_sim::hooks = hooks;
    cann_sim::watch_launches();  // CANN_SIM_COUNTERS and CANN_SIM_FAULT were read before the plug-in was there
}

SIM_API void cann_sim_counters_start() {
    cann_sim::finish_queued();
    {
        const std::lock_guard<std::mutex> lock(cann_sim::mutex);
        cann_sim::counters = {};
    }
    cann_sim::count_held_blocks();
    cann_sim::counters_on = true;
    cann_sim::watch_launches();
}

SIM_API void cann_sim_counters_stop() {
    cann_sim::finish_queued();
    cann_sim::counters_on = false;
    cann_sim::watch_launches();
}

SIM_API void cann_sim_counters_step() {
    cann_sim::finish_queued();
    const std::lock_guard<std::mutex> lock(cann_sim::mutex);
    cann_sim::counters.steps.emplace_back();
}

SIM_API size_t cann_sim_counters_snapshot(char *text, size_t size) {
    cann_sim::finish_queued();
    const std::lock_guard<std::mutex> lock(cann_sim::mutex);
    const std::string json = cann_sim::to_json();
    if (json.size() < size) {
        std::memcpy(text, json.c_str(), json.size() + 1);
    }
    return json.size();
}

SIM_API void cann_sim_count_hccl(const char *op, uint64_t bytes) {
    cann_sim::delay_link(cann_sim::current_device(), bytes);
    if (!cann_sim::counting()) {
        return;
    }
    const std::lock_guard<std::mutex> lock(cann_sim::mutex);
    cann_sim::Volume &volume = cann_sim::counters.collectives[op];
    ++volume.count;
    volume.bytes += bytes;
    cann_sim::counters.step().collective_bytes += bytes;
}
