// libascendcl.so: the faults that CANN_SIM_FAULT asks for, and when each strikes.

#include "runtime/faults.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "runtime/launches.h"
#include "runtime/state.h"
#include "third_party/hccl/inc/hccl/hccl_types.h"

namespace cann_sim {

namespace {

// ACL_ERROR_RT_STREAM_SYNC_TIMEOUT of CANN 8.5's rt_error_codes.h; torch_npu 2.8.0's copy of the header ends before it.
constexpr aclError kStreamSyncTimeout = 507046;

enum class Kind {
    kOutOfMemory,
    kDeviceLost,
    kEcc,
    kStuckStream,
    kHcclTimeout,
    kLinkDown,
    kSlowDevice,
    kSlowLink,
    kCorrupt,
};

struct Fault {
    Kind kind;
    std::string op;      // the operator, for corrupt
    double amount = 0;   // number of the call that fails, a factor, or MB/s
    int device = -1;     // logical id; -1: any
    uint64_t calls = 0;  // counted so far
    bool struck = false;

    bool concerns(int current) const { return device < 0 || device == current; }

    // Counts one call; true for the call with number `amount` and all later ones.
    bool strikes() {
        struck = struck || static_cast<double>(++calls) >= amount;
        return struck;
    }
    // Counts one call; true only for the call with number `amount`.
    bool strikes_once() { return static_cast<double>(++calls) == amount; }
};

struct Form {
    Kind kind;
    const char *head;  // the text before the number; for corrupt, the operator stands between the two
};

constexpr Form kForms[] = {
    {Kind::kOutOfMemory, "oom@alloc:"},
    {Kind::kDeviceLost, "device-lost@launch:"},
    {Kind::kEcc, "ecc@launch:"},
    {Kind::kStuckStream, "stuck-stream@launch:"},
    {Kind::kHcclTimeout, "hccl-timeout@collective:"},
    {Kind::kLinkDown, "link-down@collective:"},
    {Kind::kSlowDevice, "slow-device:"},
    {Kind::kSlowLink, "slow-link:"},
    {Kind::kCorrupt, "corrupt@"},
};

constexpr char kGrammar[] =
    "FAULT[,FAULT]... with FAULT one of\n"
    "              oom@alloc:N  device-lost@launch:N  ecc@launch:N  stuck-stream@launch:N\n"
    "              hccl-timeout@collective:N  link-down@collective:N\n"
    "              slow-device:FACTOR  slow-link:MB_PER_S  corrupt@OP:N (OP such as aten::mm)\n"
    "            each optionally followed by /dev=K; N counts from 1";

std::mutex mutex;
std::vector<Fault> faults;
std::atomic<bool> any{false};
std::atomic<uint32_t> operator_timeout_s{0};

// A whole number from 1, or any number from 1 for a factor.
bool parse_amount(const std::string &text, bool whole, double *amount) {
    char *end = nullptr;
    *amount = std::strtod(text.c_str(), &end);
    const bool is_number = !text.empty() && text.find_first_not_of("0123456789.") == std::string::npos && *end == '\0';
    return is_number && *amount > 0 && (!whole || text.find('.') == std::string::npos);
}

bool parse(std::string text, Fault *fault) {
    const size_t at_device = text.find("/dev=");
    if (at_device != std::string::npos) {
        double device = 0;
        const std::string id = text.substr(at_device + 5);
        if (id != "0" && !parse_amount(id, true, &device)) {
            return false;
        }
        fault->device = static_cast<int>(device);
        text.resize(at_device);
    }
    for (const Form &form : kForms) {
        if (text.compare(0, std::strlen(form.head), form.head) != 0) {
            continue;
        }
        fault->kind = form.kind;
        std::string rest = text.substr(std::strlen(form.head));
        if (form.kind == Kind::kCorrupt) {
            const size_t colon = rest.rfind(':');
            if (colon == std::string::npos || colon == 0) {
                return false;
            }
            fault->op = rest.substr(0, colon);
            rest = rest.substr(colon + 1);
        }
        const bool whole = form.kind != Kind::kSlowDevice && form.kind != Kind::kSlowLink;
        return parse_amount(rest, whole, &fault->amount) && (form.kind != Kind::kSlowDevice || fault->amount >= 1);
    }
    return false;
}

aclError error_of(Kind kind) {
    switch (kind) {
        case Kind::kDeviceLost:
            return fail(ACL_ERROR_RT_LOST_HEARTBEAT,
                        "EE9999: the task scheduler lost the heartbeat (CANN_SIM_FAULT, cann_sim)");
        case Kind::kEcc:
            return fail(ACL_ERROR_RT_HBM_MULTI_BIT_ECC_ERROR,
                        "EE9999: HBM multi-bit ECC error (CANN_SIM_FAULT, cann_sim)");
        default: return ACL_SUCCESS;
    }
}

}  // namespace

void read_faults() {
    const char *text = std::getenv("CANN_SIM_FAULT");
    if (text == nullptr || *text == '\0') {
        return;
    }
    const std::string list = text;
    for (size_t begin = 0; begin <= list.size();) {
        const size_t end = std::min(list.find(',', begin), list.size());
        Fault fault{};
        fault.device = -1;
        if (!parse(list.substr(begin, end - begin), &fault)) {
            std::fprintf(stderr,
                         "error[cann-sim-config]: CANN_SIM_FAULT is not valid\n  expected: %s\n  found:    %s\n"
                         "  next:     unset CANN_SIM_FAULT, or set it to a valid value\n",
                         kGrammar, text);
            std::exit(90);
        }
        faults.push_back(fault);
        begin = end + 1;
    }
    any = true;
    watch_launches(Watcher::kFaults, faults_watch_launches());
}

aclError fault_at_allocation(int device) {
    if (!any) {
        return ACL_SUCCESS;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (Fault &fault : faults) {
        if (fault.kind == Kind::kOutOfMemory && fault.concerns(device) && fault.strikes()) {
            return ACL_ERROR_RT_MEMORY_ALLOCATION;
        }
    }
    return ACL_SUCCESS;
}

aclError fault_at_wait(int device, int timeout_ms) {
    if (!any) {
        return ACL_SUCCESS;
    }
    bool stuck = false;
    {
        const std::lock_guard<std::mutex> lock(mutex);
        for (const Fault &fault : faults) {
            if (!fault.struck || !fault.concerns(device)) {
                continue;
            }
            if (fault.kind == Kind::kDeviceLost || fault.kind == Kind::kEcc) {
                return error_of(fault.kind);
            }
            stuck = stuck || fault.kind == Kind::kStuckStream;
        }
    }
    if (!stuck) {
        return ACL_SUCCESS;
    }
    if (timeout_ms >= 0) {
        usleep(static_cast<useconds_t>(timeout_ms) * 1000);
        return fail(kStreamSyncTimeout, "EE1002: the stream was not complete in time (CANN_SIM_FAULT, cann_sim)");
    }
    sleep(operator_timeout_s);
    return fail(ACL_ERROR_RT_AICORE_TIMEOUT, "EE1002: the operator did not end in time (CANN_SIM_FAULT, cann_sim)");
}

void delay_link(int device, size_t bytes) {
    if (!any) {
        return;
    }
    double seconds = 0;
    {
        const std::lock_guard<std::mutex> lock(mutex);
        for (const Fault &fault : faults) {
            if (fault.kind == Kind::kSlowLink && fault.concerns(device)) {
                seconds += static_cast<double>(bytes) / (fault.amount * 1e6);
            }
        }
    }
    usleep(static_cast<useconds_t>(seconds * 1e6));
}

void set_operator_timeout(uint32_t seconds) { operator_timeout_s = seconds; }

bool faults_watch_launches() {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const Fault &fault : faults) {
        switch (fault.kind) {
            case Kind::kDeviceLost:
            case Kind::kEcc:
            case Kind::kStuckStream:
            case Kind::kSlowDevice:
            case Kind::kCorrupt: return true;
            default: break;
        }
    }
    return false;
}

LaunchFault fault_at_launch(const std::string &op, int device) {
    LaunchFault result{1, false};
    const std::lock_guard<std::mutex> lock(mutex);
    for (Fault &fault : faults) {
        if (!fault.concerns(device)) {
            continue;
        }
        switch (fault.kind) {
            case Kind::kDeviceLost:
            case Kind::kEcc:
            case Kind::kStuckStream: fault.strikes(); break;
            case Kind::kSlowDevice: result.slow_down *= fault.amount; break;
            case Kind::kCorrupt: result.corrupt = result.corrupt || (fault.op == op && fault.strikes_once()); break;
            default: break;
        }
    }
    return result;
}

}  // namespace cann_sim

SIM_API int cann_sim_fault(const char *site) try {
    using cann_sim::Kind;
    if (!cann_sim::any) {
        return HCCL_SUCCESS;
    }
    // Set-up and queries are no collectives.
    static const char *const collectives[] = {"AllGather", "AllReduce", "AlltoAll", "Barrier", "BatchSendRecv",
                                              "Broadcast", "Recv",      "Reduce",   "Scatter", "Send"};
    const char *function = site + std::strlen("hccl:Hccl");
    bool collective = false;
    for (const char *name : collectives) {
        collective = collective || std::strncmp(function, name, std::strlen(name)) == 0;
    }
    if (!collective) {
        return HCCL_SUCCESS;
    }
    const std::lock_guard<std::mutex> lock(cann_sim::mutex);
    for (cann_sim::Fault &fault : cann_sim::faults) {
        if (!fault.concerns(cann_sim::current_device())) {
            continue;
        }
        if (fault.kind == Kind::kHcclTimeout && fault.strikes_once()) {
            return HCCL_E_TIMEOUT;
        }
        if (fault.kind == Kind::kLinkDown && fault.strikes()) {
            return HCCL_E_REMOTE;
        }
    }
    return HCCL_SUCCESS;
}
SIM_CATCH
