// libascendcl.so: the host's settings, and what each thread has of the runtime.

#include "runtime/state.h"

#include <pthread.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

namespace cann_sim {

namespace {

thread_local std::string recent_error;       // not yet read
thread_local std::string recent_error_text;  // backs the pointer that aclGetRecentErrMsg returned last
thread_local int thread_device = -1;
bool lost_fork = false;  // written where the process has one thread

[[noreturn]] void refuse(const char *variable, const std::string &expected, const char *found) {
    std::fprintf(stderr,
                 "error[cann-sim-config]: %s is not valid\n  expected: %s\n  found:    %s\n"
                 "  next:     unset %s, or set it to a valid value\n",
                 variable, expected.c_str(), found, variable);
    std::exit(90);
}

long read_number(const char *variable, long fallback, long low, long high) {
    const char *text = std::getenv(variable);
    if (text == nullptr || *text == '\0') {
        return fallback;
    }
    char *end = nullptr;
    const long value = std::strtol(text, &end, 10);
    if (*end != '\0' || value < low || value > high) {
        refuse(variable, "an integer from " + std::to_string(low) + " to " + std::to_string(high), text);
    }
    return value;
}

// SoC names that torch_npu 2.8/2.9 tell apart (torch_npu/csrc/core/npu/NpuVariables.cpp: its table of names).
const char *const kSocNames[] = {
    "Ascend910A",     "Ascend910B",     "Ascend910PremiumA", "Ascend910ProA",  "Ascend910ProB",  "Ascend310P1",
    "Ascend310P2",    "Ascend310P3",    "Ascend310P4",       "Ascend310P5",    "Ascend310P7",    "Ascend910B1",
    "Ascend910B2",    "Ascend910B2C",   "Ascend910B3",       "Ascend910B4",    "Ascend910B4-1",  "Ascend310B1",
    "Ascend310B2",    "Ascend310B3",    "Ascend310B4",       "Ascend910_9391", "Ascend910_9392", "Ascend910_9381",
    "Ascend910_9382", "Ascend910_9372", "Ascend910_9362"};

std::string read_soc() {
    const char *text = std::getenv("CANN_SIM_SOC");
    if (text == nullptr || *text == '\0') {
        return "Ascend910B3";
    }
    std::string known;
    for (const char *name : kSocNames) {
        if (std::strcmp(name, text) == 0) {
            return text;
        }
        known += std::string(known.empty() ? "" : ", ") + name;
    }
    refuse("CANN_SIM_SOC", "one of " + known, text);
}

// ASCEND_RT_VISIBLE_DEVICES: integers separated by commas, in ascending order. CANN's environment-variable reference says
// that the list ends without a word at the first entry that breaks a rule (a space, a repeated, descending or absent id);
// the devices before it are numbered from 0. Cards do so at a repeated or absent id after a valid one, but take none of a
// list that descends or has no valid id: aclrtGetDeviceCount is then 207004 with EE1001 and the list (gpustack's issues
// 2527, 3352). That is the default here; CANN_SIM_VISIBLE_DEVICES=cut follows the reference.
void read_visible(Config &c) {
    const char *mode = std::getenv("CANN_SIM_VISIBLE_DEVICES");
    const bool cut = mode != nullptr && std::strcmp(mode, "cut") == 0;
    if (!cut && mode != nullptr && *mode != '\0' && std::strcmp(mode, "refuse") != 0) {
        refuse("CANN_SIM_VISIBLE_DEVICES", "refuse or cut", mode);
    }
    const char *text = std::getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (text == nullptr) {
        for (int i = 0; i < c.physical_devices; ++i) {
            c.visible.push_back(i);
        }
        return;
    }
    bool descends = false;
    const char *p = text;
    while (*p >= '0' && *p <= '9') {
        char *end = nullptr;
        const long id = std::strtol(p, &end, 10);
        const bool entry_ends = *end == ',' || *end == '\0';
        descends = !c.visible.empty() && id < c.visible.back();
        if (!entry_ends || id >= c.physical_devices || (!c.visible.empty() && id <= c.visible.back())) {
            break;
        }
        c.visible.push_back(static_cast<int>(id));
        if (*end == '\0') {
            break;
        }
        p = end + 1;
    }
    if (!cut && (descends || c.visible.empty())) {
        c.visible.clear();
        c.visible_fault = std::string("EE1001: The argument is invalid. Reason: ASCEND_RT_VISIBLE_DEVICES=") + text +
                          (descends ? " is not in ascending order"
                                    : " has no device of this host at its head; ids range from 0 to " +
                                          std::to_string(c.physical_devices - 1));
    }
}

Config read_config() {
    Config c;
    c.physical_devices = static_cast<int>(read_number("CANN_SIM_DEVICES", 8, 0, kMaxDevices));
    c.hbm_bytes = static_cast<size_t>(read_number("CANN_SIM_HBM_GB", 64, 1, 1024)) << 30;
    c.soc = read_soc();
    read_visible(c);
    return c;
}

}  // namespace

const Config &config() {
    static const Config c = read_config();
    return c;
}

aclError fail(aclError code, const std::string &message) {
    recent_error = message;
    return code;
}

std::string take_recent_error() { return std::exchange(recent_error, {}); }

Thrown::Thrown(const char *function) : code_(ACL_ERROR_INTERNAL_ERROR) {
    try {
        throw;
    } catch (const std::bad_alloc &) {
        code_ = ACL_ERROR_BAD_ALLOC;  // no text: that needs memory too
    } catch (const std::exception &error) {
        fail(code_, std::string("cann_sim: ") + function + ": " + error.what());
    } catch (...) {
        fail(code_, std::string("cann_sim: ") + function + " threw what is no std::exception");
    }
}

int current_device() { return thread_device; }

void set_current_device(int device) {
    // The first device of the process; a fork before it is one that may use devices itself.
    static const int watched = pthread_atfork(nullptr, nullptr, [] {
        lost_fork = true;
        thread_device = -1;
    });
    static_cast<void>(watched);
    thread_device = device;
}

bool has_inf_nan() {
    const std::string &soc = config().soc;
    const std::string a2 = "Ascend910B", a3 = "Ascend910_";
    return soc.compare(0, a3.size(), a3) == 0 || (soc.compare(0, a2.size(), a2) == 0 && soc.size() > a2.size());
}

namespace {

std::atomic<bool> &saturates() {
    static std::atomic<bool> mode{!has_inf_nan()};
    return mode;
}

}  // namespace

bool overflow_saturates() { return saturates(); }

void set_overflow_saturates(bool wanted) { saturates() = wanted; }

bool is_lost_fork() { return lost_fork; }

aclError lost_by_fork() {
    return fail(ACL_ERROR_RT_CONTEXT_NULL,
                "EE1001: this process is a fork of one that uses devices, and has none of them: start it by spawn");
}

int logical_device_count() { return static_cast<int>(config().visible.size()); }

}  // namespace cann_sim

SIM_API const char *aclGetRecentErrMsg() try {
    if (cann_sim::recent_error.empty()) {
        return nullptr;
    }
    cann_sim::recent_error_text.swap(cann_sim::recent_error);
    cann_sim::recent_error.clear();
    return cann_sim::recent_error_text.c_str();
}
SIM_CATCH

SIM_API int cann_sim_physical_device() try {
    return cann_sim::thread_device < 0 ? 0 : cann_sim::config().visible[static_cast<size_t>(cann_sim::thread_device)];
}
SIM_CATCH
