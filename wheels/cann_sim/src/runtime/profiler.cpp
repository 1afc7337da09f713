// The profiler's switch, acl_prof.h: torch_npu looks for it in libascendcl.so. A session writes the folder that CANN's
// does, PROF_<n>_<time>_<letters>/, with the tasks of each device in a format of its own; tools/profiler's msprof turns
// them into the files that torch_npu.profiler reads. Times are the host's: that is where the kernels run.

#include "runtime/profiler.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/launches.h"
#include "runtime/state.h"
#include "third_party/acl/inc/acl/acl_prof.h"

using cann_sim::fail;

struct aclprofConfig {
    std::vector<uint32_t> devices;
};
struct aclprofStepInfo {};

namespace {

struct Task {
    uint64_t begin, end;  // ns
    pid_t thread;
    std::string kind, name, detail;
};

enum class Session { kClosed, kOpen, kRunning };

std::mutex mutex;
Session session = Session::kClosed;
std::string result_path;                 // aclprofInit's
std::map<int, std::vector<Task>> tasks;  // by logical device
std::atomic<bool> running{false};

uint64_t clock_ns(clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<uint64_t>(time.tv_sec) * 1000000000U + static_cast<uint64_t>(time.tv_nsec);
}

aclError change(const char *call, Session from, Session to) {
    static const char *const kNames[] = {"closed", "open", "running"};
    if (session != from) {
        return fail(session < from ? ACL_ERROR_PROF_NOT_RUN : ACL_ERROR_PROF_ALREADY_RUN,
                    std::string(call) + ": the profiler is " + kNames[static_cast<int>(session)]);
    }
    session = to;
    return ACL_SUCCESS;
}

// PROF_000001_20251231235959123_ABCDEFGH: the time, and the process in letters.
std::string session_name() {
    const uint64_t now = clock_ns(CLOCK_REALTIME);
    const time_t seconds = static_cast<time_t>(now / 1000000000U);
    tm local{};
    localtime_r(&seconds, &local);
    char date[16], milliseconds[4], process[9] = "AAAAAAAA";
    std::strftime(date, sizeof date, "%Y%m%d%H%M%S", &local);
    std::snprintf(milliseconds, sizeof milliseconds, "%03u", static_cast<unsigned>(now / 1000000U % 1000U));
    unsigned id = static_cast<unsigned>(getpid());
    for (size_t i = 0; i < 8; ++i, id /= 26) {
        process[7 - i] = static_cast<char>('A' + id % 26);
    }
    return std::string("PROF_000001_") + date + milliseconds + "_" + process;
}

bool write_file(const std::string &path, const std::string &text) {
    FILE *file = std::fopen(path.c_str(), "w");
    const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    return file != nullptr && std::fclose(file) == 0 && written;
}

bool make_folders(const std::string &root, std::initializer_list<const char *> parts) {
    std::string path = root;
    bool made = true;
    for (const char *part : parts) {
        path += std::string("/") + part;
        made = mkdir(path.c_str(), 0750) == 0 || errno == EEXIST;
    }
    return made;
}

bool write_session(const std::string &root) {
    // What msprof and torch_npu need to tell the time of day of the profiler's clock: microseconds and nanoseconds.
    const std::string start = "{\"collectionTimeBegin\": \"" + std::to_string(clock_ns(CLOCK_REALTIME) / 1000) +
                              "\", \"clockMonotonicRaw\": \"" + std::to_string(clock_ns(CLOCK_MONOTONIC_RAW)) + "\"}\n";
    bool written =
        mkdir(root.c_str(), 0750) == 0 && make_folders(root, {"host"}) && write_file(root + "/host/start_info", start);
    for (const auto &[device, list] : tasks) {
        std::string text;
        for (const Task &task : list) {
            text += std::to_string(task.begin) + "\t" + std::to_string(task.end) + "\t" + std::to_string(task.thread) +
                    "\t" + task.kind + "\t" + task.name + "\t" + task.detail + "\n";
        }
        const std::string folder = "device_" + std::to_string(device);
        written = written && make_folders(root, {folder.c_str(), "data"}) &&
                  write_file(root + "/" + folder + "/data/cann_sim_tasks.tsv", text);
    }
    return written;
}

}  // namespace

namespace cann_sim {

bool profiling() { return running.load(std::memory_order_relaxed); }

}  // namespace cann_sim

SIM_API uint64_t cann_sim_task_begin() try { return cann_sim::profiling() ? clock_ns(CLOCK_MONOTONIC_RAW) : 0; }
SIM_CATCH

SIM_API void cann_sim_task_end(uint64_t begin, const char *kind, const char *name, const char *detail) try {
    const uint64_t end = cann_sim_task_begin();
    if (begin == 0 || end == 0) {
        return;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    tasks[cann_sim::current_device()].push_back({begin, end, gettid(), kind, name, detail});
}
SIM_CATCH_VOID

extern "C" {

aclError aclprofInit(const char *path, size_t length) try {
    const std::lock_guard<std::mutex> lock(mutex);
    if (path == nullptr || length == 0) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclprofInit: no path");
    }
    const aclError changed = change("aclprofInit", Session::kClosed, Session::kOpen);
    if (changed == ACL_SUCCESS) {
        result_path.assign(path, length);
        result_path.resize(std::strlen(result_path.c_str()));  // `length` may count the zero byte
    }
    return changed;
}
SIM_CATCH

aclError aclprofStart(const aclprofConfig *config) try {
    if (config == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclprofStart: no configuration");
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        const aclError changed = change("aclprofStart", Session::kOpen, Session::kRunning);
        if (changed != ACL_SUCCESS) {
            return changed;
        }
        for (const uint32_t device : config->devices) {
            tasks[static_cast<int>(device)];  // a device has its folder also where nothing ran on it
        }
        running = true;
    }
    cann_sim::watch_launches(cann_sim::Watcher::kProfiler, true);
    return ACL_SUCCESS;
}
SIM_CATCH

aclError aclprofStop(const aclprofConfig *config) try {
    if (config == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclprofStop: no configuration");
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        const aclError changed = change("aclprofStop", Session::kRunning, Session::kOpen);
        if (changed != ACL_SUCCESS) {
            return changed;
        }
        running = false;
    }
    cann_sim::watch_launches(cann_sim::Watcher::kProfiler, false);
    return ACL_SUCCESS;
}
SIM_CATCH

aclError aclprofFinalize() try {
    const std::lock_guard<std::mutex> lock(mutex);
    const aclError changed = change("aclprofFinalize", Session::kOpen, Session::kClosed);
    if (changed != ACL_SUCCESS || tasks.empty()) {  // opened, never started: nothing to tell
        return changed;
    }
    const std::string root = result_path + "/" + session_name();
    const bool written = write_session(root);
    tasks.clear();
    return written ? ACL_SUCCESS
                   : fail(ACL_ERROR_PROFILING_FAILURE, root + " cannot be written: " + std::strerror(errno));
}
SIM_CATCH

// The events are const from torch_npu 2.9.0's headers on.
aclprofConfig *aclprofCreateConfig(uint32_t *devices, uint32_t count, aclprofAicoreMetrics,
                                   cann_sim::Parameter<3, decltype(aclprofCreateConfig)>, uint64_t) try {
    return std::make_unique<aclprofConfig>(aclprofConfig{{devices, devices + count}}).release();
}
SIM_CATCH

aclError aclprofDestroyConfig(const aclprofConfig *config) try {
    const std::unique_ptr<const aclprofConfig> gone(config);
    return gone ? ACL_SUCCESS : fail(ACL_ERROR_INVALID_PARAM, "aclprofDestroyConfig: no configuration");
}
SIM_CATCH

aclprofStepInfo *aclprofCreateStepInfo() try { return std::make_unique<aclprofStepInfo>().release(); }
SIM_CATCH
void aclprofDestroyStepInfo(aclprofStepInfo *info) try { const std::unique_ptr<aclprofStepInfo> gone(info); }
SIM_CATCH_VOID
aclError aclprofGetStepTimestamp(aclprofStepInfo *, aclprofStepTag, aclrtStream) { return ACL_SUCCESS; }

}  // extern "C"
