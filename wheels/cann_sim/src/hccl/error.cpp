#include "hccl/error.h"

#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "third_party/acl/inc/acl/acl_base.h"

namespace cann_sim {
// libascendcl's: keeps the text for aclGetRecentErrMsg, which torch_npu appends to its exceptions. Weak, so
// that libhccl also works alone, as it does for a program that only communicates host memory.
__attribute__((weak, visibility("default"))) aclError fail(aclError code, const std::string &message);
}  // namespace cann_sim

namespace cann_sim::hccl {
namespace {

struct Advice {
    const char *number;
    const char *title;
    const char *solution;
};

constexpr Advice kAdvice[] = {
    {kBadEnvironment, "An environment variable is invalid.", "Correct or unset the variable."},
    {kExecTimeout, "The wait for a remote rank timed out.",
     "1. Look for an earlier error on the rank that is named. 2. Check that all ranks call the same "
     "operations in "
     "the same order and process the same number of samples. 3. Raise HCCL_EXEC_TIMEOUT."},
    {kBadArgument, "The argument of a collective operation is invalid.",
     "Use a data type, reduction, rank and communicator that the operation supports."},
    {kRanksDisagree, "The arguments of a collective operation differ between ranks.",
     "Make all ranks call the same operations in the same order with the same count, data type and root."},
    {kConnectTimeout, "Getting socket times out.",
     "1. Look for an earlier error on the ranks that are named. 2. Check the addresses (HCCL_IF_IP, "
     "HCCL_SOCKET_IFNAME) and the firewall. 3. Raise HCCL_CONNECT_TIMEOUT on all ranks."},
    {kResource, "A resource could not be allocated.", "Check the number of open files and free memory."},
    {kRemote, "The connection to a remote rank is lost.", "Look for the first error on the rank that is named."},
    {kPortInUse, "Failed to enable listening for the host network adapter socket.",
     "Look for another job on this device (ss --listening --tcp --processes), or set HCCL_IF_BASE_PORT to the "
     "first of 16 free ports."},
};

long number_from(const char *name, const char *unit, long fallback, long lowest, long highest) {
    const char *text = std::getenv(name);
    if (text == nullptr || *text == '\0') return fallback;
    char *end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (errno != 0 || *end != '\0' || value < lowest || value > highest) {
        throw Error(HCCL_E_PARA, kBadEnvironment,
                    std::string(name) + "=" + text + " is not a number " + unit + "from " + std::to_string(lowest) +
                        " to " + std::to_string(highest));
    }
    return value;
}

}  // namespace

void report(const Error &error, const char *function) {
    const char *title = "";
    const char *solution = "";
    for (const Advice &advice : kAdvice) {
        if (std::strcmp(advice.number, error.number()) == 0) {
            title = advice.title;
            solution = advice.solution;
        }
    }
    timeval now{};
    gettimeofday(&now, nullptr);
    tm local{};
    localtime_r(&now.tv_sec, &local);
    char time[32];
    std::strftime(time, sizeof time, "%Y-%m-%d-%H:%M:%S", &local);
    char head[160];
    std::snprintf(head, sizeof head, "%s: [PID: %d] %s.%03ld.%03ld ", error.number(), static_cast<int>(getpid()), time,
                  static_cast<long>(now.tv_usec / 1000), static_cast<long>(now.tv_usec % 1000));
    const std::string text = std::string(head) + title + " Reason: " + error.what() + " [" + function + " -> " +
                             std::to_string(error.result()) + ", " + result_text(error.result()) +
                             ", simulated by cann_sim]\n        Solution: " + solution + "\n";
    // One write, so that reports of several ranks on one terminal do not interleave.
    const ssize_t ignored = write(STDERR_FILENO, text.data(), text.size());
    static_cast<void>(ignored);
    if (cann_sim::fail != nullptr) cann_sim::fail(ACL_ERROR_INTERNAL_ERROR, text);
}

const char *result_text(HcclResult result) {
    switch (result) {
        case HCCL_SUCCESS: return "no error";
        case HCCL_E_PARA: return "parameter error";
        case HCCL_E_PTR: return "empty pointer";
        case HCCL_E_MEMORY: return "memory error";
        case HCCL_E_INTERNAL: return "internal error";
        case HCCL_E_NOT_SUPPORT: return "not support feature";
        case HCCL_E_NOT_FOUND: return "not found specific resource";
        case HCCL_E_UNAVAIL: return "resource unavailable";
        case HCCL_E_SYSCALL: return "call system interface error";
        case HCCL_E_TIMEOUT: return "timeout";
        case HCCL_E_OPEN_FILE_FAILURE: return "open file fail";
        case HCCL_E_TCP_CONNECT: return "tcp connect fail";
        case HCCL_E_ROCE_CONNECT: return "roce connect fail";
        case HCCL_E_TCP_TRANSFER: return "tcp transfer fail";
        case HCCL_E_ROCE_TRANSFER: return "roce transfer fail";
        case HCCL_E_RUNTIME: return "call runtime api fail";
        case HCCL_E_DRV: return "call driver api fail";
        case HCCL_E_PROFILING: return "call profiling api fail";
        case HCCL_E_CCE: return "call cce api fail";
        case HCCL_E_NETWORK: return "call network api fail";
        case HCCL_E_AGAIN: return "try again";
        case HCCL_E_REMOTE: return "error cqe";
        default: return "unknow error";  // the real library's spelling; scripts match on it
    }
}

Settings Settings::from_environment() {
    Settings settings{};
    // The real library refuses connect timeouts below 120 s; short ones are allowed here so that a test of a
    // missing rank need not wait for two minutes.
    settings.connect_timeout = std::chrono::seconds(number_from("HCCL_CONNECT_TIMEOUT", "of seconds ", 120, 1, 7200));
    settings.exec_timeout = std::chrono::seconds(number_from("HCCL_EXEC_TIMEOUT", "of seconds ", 1836, 0, 2147483647));
    // Default and limits as CANN's reference of environment variables gives them.
    settings.base_port = static_cast<int>(number_from("HCCL_IF_BASE_PORT", "", 60000, 1024, 65520));
    const char *transport = std::getenv("CANN_SIM_HCCL_TRANSPORT");
    if (transport != nullptr && std::strcmp(transport, "tcp") != 0 && std::strcmp(transport, "auto") != 0) {
        throw Error(HCCL_E_PARA, kBadEnvironment,
                    std::string("CANN_SIM_HCCL_TRANSPORT=") + transport + " is neither auto nor tcp");
    }
    settings.shared_memory = transport == nullptr || std::strcmp(transport, "auto") == 0;
    return settings;
}

}  // namespace cann_sim::hccl
