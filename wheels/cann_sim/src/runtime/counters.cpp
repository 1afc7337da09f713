// libascendcl.so: the counters and their JSON form.

#include "runtime/counters.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "runtime/json.h"
#include "runtime/python_line.h"

namespace cann_sim {

std::atomic<bool> counters_on{false};

namespace {

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
    std::map<int64_t, int64_t> blocks, peak_blocks;  // number of blocks by size
    // Bytes after the last launch: memory that a program frees while it ends was needed before.
    int64_t final = 0, tensors = 0, tensors_peak = 0;
};

// The counters of one step.
struct Totals {
    uint64_t launches = 0, host_waits = 0, h2d_bytes = 0, d2h_bytes = 0, new_signatures = 0, collective_bytes = 0,
             cpu_fallbacks = 0;
};

struct Counters {
    std::map<std::string, uint64_t> launches, fallbacks, uncertain;
    std::map<std::pair<std::string, std::string>, uint64_t> waits;  // line, call
    std::map<std::pair<std::string, std::string>, Volume> copies;   // line, direction
    std::map<std::pair<std::string, std::string>, Signature> signatures;
    std::map<std::string, Volume> collectives;
    std::map<int, DeviceMemory> memory;
    std::vector<Totals> steps{Totals()};

    Totals &step() { return steps.back(); }
};

thread_local bool device_is_idle = false;  // this thread has issued nothing since it last waited for the device

std::mutex mutex;
Counters counters;

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

}  // namespace

std::string counters_json() {
    const std::lock_guard<std::mutex> lock(mutex);
    const char *rank = std::getenv("RANK");  // torchrun's
    const Fields fields = {
        {"schema", "1"},
        {"simulated", quoted("cann_sim")},
        {"rank", rank == nullptr || *rank == '\0' ? "null" : std::to_string(std::atoi(rank))},
        {"launches", lines(counters.launches, '{', '}', keyed)},
        {"host_syncs", lines(counters.waits, '[', ']',
                             [](const auto &item) {
                                 return object({{"line", quoted(item.first.first)},
                                                {"call", quoted(item.first.second)},
                                                {"count", number(item.second)}});
                             })},
        {"copies", lines(counters.copies, '[', ']',
                         [](const auto &item) {
                             return object({{"line", quoted(item.first.first)},
                                            {"direction", quoted(item.first.second)},
                                            {"count", number(item.second.count)},
                                            {"bytes", number(item.second.bytes)}});
                         })},
        {"signatures", lines(counters.signatures, '[', ']',
                             [](const auto &item) {
                                 return object({{"op", quoted(item.first.first)},
                                                {"signature", quoted(item.first.second)},
                                                {"count", number(item.second.count)},
                                                {"first_step", number(item.second.first_step)}});
                             })},
        {"memory", lines(counters.memory, '{', '}',
                         [](const auto &item) {
                             const DeviceMemory &held = item.second;
                             return quoted(std::to_string(item.first)) + ": " +
                                    object({{"tensor_bytes", std::to_string(held.tensors)},
                                            {"tensor_bytes_peak", std::to_string(held.tensors_peak)},
                                            {"device_bytes", std::to_string(held.final)},
                                            {"device_bytes_peak", std::to_string(held.peak)},
                                            {"blocks_peak", sizes(held.peak_blocks)}});
                         })},
        {"collectives", lines(counters.collectives, '{', '}',
                              [](const auto &item) {
                                  return quoted(item.first) + ": " +
                                         object({{"count", number(item.second.count)},
                                                 {"bytes", number(item.second.bytes)}});
                              })},
        {"cpu_fallbacks", lines(counters.fallbacks, '{', '}', keyed)},
        {"uncertain", lines(counters.uncertain, '{', '}', keyed)},
        {"steps", lines(counters.steps, '[', ']',
                        [](const Totals &step) {
                            return object({{"launches", number(step.launches)},
                                           {"host_syncs", number(step.host_waits)},
                                           {"h2d_bytes", number(step.h2d_bytes)},
                                           {"d2h_bytes", number(step.d2h_bytes)},
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

void reset_counters() {
    const std::lock_guard<std::mutex> lock(mutex);
    counters = {};
}

void begin_step() {
    const std::lock_guard<std::mutex> lock(mutex);
    counters.steps.emplace_back();
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

void issue_launch() { device_is_idle = false; }

void count_uncertain(const std::string &rule) {
    const std::lock_guard<std::mutex> lock(mutex);
    ++counters.uncertain[rule];
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

void count_collective(const char *op, uint64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    Volume &volume = counters.collectives[op];
    ++volume.count;
    volume.bytes += bytes;
    counters.step().collective_bytes += bytes;
}

}  // namespace cann_sim
