// libascendcl.so: contexts, streams and their threads.

#include "runtime/streams.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "runtime/exceptions.h"
#include "runtime/operators.h"
#include "runtime/state.h"

namespace cann_sim {

struct Context {
    int device = 0;
    Stream *default_stream = nullptr;
};

class Stream {
public:
    Stream(Context *owner, int32_t number) : context(owner), device(owner->device), id(number) {}

    uint64_t push(std::function<aclError()> task) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!thread_.joinable()) {
            thread_ = std::thread(&Stream::work, this);
        }
        queued_ = true;
        tasks_.push_back(std::move(task));
        changed_.notify_all();
        return ++pushed_;
    }

    // False after `timeout_ms`.
    bool wait(uint64_t number, int timeout_ms) {
        std::unique_lock<std::mutex> lock(mutex_);
        const auto ready = [&] { return done_ >= number; };
        if (timeout_ms < 0) {
            changed_.wait(lock, ready);
            return true;
        }
        return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready);
    }

    uint64_t pushed() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return pushed_;
    }

    bool queued() const { return queued_; }

    bool idle() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return done_ == pushed_;
    }

    Failure failure(bool clear) {
        const std::lock_guard<std::mutex> lock(mutex_);
        Failure result = failure_;
        if (clear) {
            failure_ = {};
        }
        return result;
    }

    // Ends the thread after the task that it runs; what is queued is dropped.
    void stop() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            done_ += tasks_.size();
            tasks_.clear();
            changed_.notify_all();
        }
        if (thread_.joinable()) {
            thread_.join();
        }
    }

    Context *const context;
    const int device;
    const int32_t id;
    uint32_t overflow_switch = 0;
    std::atomic<bool> stops_on_failure{false};

private:
    void work() {
        set_current_device(device);
        std::unique_lock<std::mutex> lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
            if (tasks_.empty()) {
                return;
            }
            const std::function<aclError()> task = std::move(tasks_.front());
            tasks_.pop_front();
            const bool skip = stops_on_failure && failure_.code != ACL_SUCCESS;
            lock.unlock();
            const aclError code = skip ? ACL_SUCCESS : run(task);
            lock.lock();
            if (code != ACL_SUCCESS && failure_.code == ACL_SUCCESS) {
                failure_ = {code, take_recent_error()};
            }
            ++done_;
            changed_.notify_all();
            if (code != ACL_SUCCESS) {
                // After `done_`: the callback may need the interpreter's lock, and who waits for the task may hold it.
                const auto number = static_cast<uint32_t>(done_);
                lock.unlock();
                report_exception(number, static_cast<uint32_t>(id), code);
                lock.lock();
            }
        }
    }

    static aclError run(const std::function<aclError()> &task) try { return task(); }
    SIM_CATCH

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<aclError()>> tasks_;
    uint64_t pushed_ = 0, done_ = 0;
    std::atomic<bool> queued_{false};  // had a task
    bool stopping_ = false;
    Failure failure_;
    std::thread thread_;
};

namespace {

// One primary context per device, as the runtime's aclrtSetDevice creates it.
Context primary_contexts[kMaxDevices];
thread_local Context *thread_context = nullptr;
std::atomic<int32_t> next_stream_id{0};

// Never destroyed: threads of streams outlive the statics of a process that ends.
struct Registry {
    std::mutex mutex;
    std::set<void *> contexts;  // those of aclrtCreateContext
    std::set<Stream *> streams;
};

Registry &registry() {
    static Registry &all = *new Registry;
    return all;
}

bool is_primary(const Context *context) {
    return context >= primary_contexts && context < primary_contexts + kMaxDevices;
}

// Where torch_npu is, its kernels run on the thread that issues them.
bool has_torch() { return cann_sim_get_execute() != nullptr; }

Stream *add_stream(Context *context) {
    auto *stream = new Stream(context, next_stream_id++);
    const std::lock_guard<std::mutex> lock(registry().mutex);
    registry().streams.insert(stream);
    return stream;
}

// Null where the handle is no stream.
Stream *known(aclrtStream handle) {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto found = registry().streams.find(static_cast<Stream *>(handle));
    return found == registry().streams.end() ? nullptr : *found;
}

// Where the list of visible devices is wrong: what every question about devices ends in.
aclError no_devices() { return fail(ACL_ERROR_RT_NO_DEVICE, config().visible_fault); }

aclError check_device(int device) {
    if (is_lost_fork()) {
        return lost_by_fork();
    }
    if (!config().visible_fault.empty()) {
        return no_devices();
    }
    if (device < 0 || device >= logical_device_count()) {
        return fail(ACL_ERROR_RT_INVALID_DEVICEID,
                    "EE1001: device id " + std::to_string(device) +
                        " is invalid: " + std::to_string(logical_device_count()) +
                        " device(s) are visible, numbered from 0, of " + std::to_string(config().physical_devices) +
                        " that this simulated host has (ASCEND_RT_VISIBLE_DEVICES, CANN_SIM_DEVICES)");
    }
    return ACL_SUCCESS;
}

void use(Context *context) {
    thread_context = context;
    set_current_device(context->device);
}

aclError timed_out() {
    // ACL_ERROR_RT_STREAM_SYNC_TIMEOUT of CANN 8.5; torch_npu 2.8.0's copy of the header ends before it.
    return fail(507046, "EE1002: the stream was not complete in time");
}

aclError destroy(aclrtStream handle, bool finish) {
    auto *stream = static_cast<Stream *>(handle);
    if (is_lost_fork()) {
        return ACL_SUCCESS;  // its thread is the parent's
    }
    {
        const std::lock_guard<std::mutex> lock(registry().mutex);
        if (registry().streams.erase(stream) == 0) {
            return fail(ACL_ERROR_RT_STREAM_CONTEXT, "EE1001: aclrtDestroyStream of what is no stream (any more)");
        }
    }
    if (finish) {
        stream->wait(stream->pushed(), -1);
    }
    stream->stop();
    delete stream;
    return ACL_SUCCESS;
}

}  // namespace

Context *current_context() { return is_lost_fork() ? nullptr : thread_context; }

aclError find_stream(aclrtStream handle, const char *call, Stream **stream) {
    Context *const context = current_context();
    if (context == nullptr) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, std::string("EE1001: ") + call + ": this thread has no context");
    }
    if (handle == nullptr) {
        static std::mutex mutex;
        const std::lock_guard<std::mutex> lock(mutex);
        if (context->default_stream == nullptr) {
            context->default_stream = add_stream(context);
        }
        *stream = context->default_stream;
        return ACL_SUCCESS;
    }
    *stream = known(handle);
    if (*stream == nullptr || ((*stream)->context != context && !has_torch())) {
        return fail(ACL_ERROR_RT_STREAM_CONTEXT,
                    std::string("EE1001: ") + call + ": the stream " +
                        (*stream == nullptr ? "does not exist (any more)" : "belongs to another context"));
    }
    return ACL_SUCCESS;
}

bool runs_at_once(aclrtStream handle) {
    if (!has_torch()) {
        return false;
    }
    const Stream *const stream = handle == nullptr ? nullptr : known(handle);
    return stream == nullptr || !stream->queued();
}

uint64_t enqueue(Stream &stream, std::function<aclError()> task) { return stream.push(std::move(task)); }

aclError wait_for(Stream &stream, uint64_t number, int timeout_ms) {
    return stream.wait(number, timeout_ms) ? ACL_SUCCESS : timed_out();
}

aclError error_of(Stream &stream, bool clear) {
    const Failure failure = stream.failure(clear);
    return failure.code == ACL_SUCCESS ? ACL_SUCCESS : fail(failure.code, failure.message);
}

aclError drain(aclrtStream handle, int timeout_ms, const char *call) {
    if (has_torch() && runs_at_once(handle)) {
        return ACL_SUCCESS;
    }
    Stream *stream = nullptr;
    const aclError found = find_stream(handle, call, &stream);
    if (found != ACL_SUCCESS) {
        return found;
    }
    const aclError waited = wait_for(*stream, stream->pushed(), timeout_ms);
    return waited == ACL_SUCCESS ? error_of(*stream, true) : waited;
}

aclError drain_device(int device, int timeout_ms) {
    std::set<Stream *> streams;
    {
        const std::lock_guard<std::mutex> lock(registry().mutex);
        streams = registry().streams;
    }
    aclError first = ACL_SUCCESS;
    for (Stream *stream : streams) {
        if (stream->device != device || !stream->queued()) {
            continue;
        }
        if (!stream->wait(stream->pushed(), timeout_ms)) {
            return timed_out();
        }
        const aclError error = error_of(*stream, true);
        first = first == ACL_SUCCESS ? error : first;
    }
    return first;
}

uint64_t now_ns() {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
            .count());
}

}  // namespace cann_sim

using cann_sim::fail;
using cann_sim::Stream;

// ---- devices and contexts ----

SIM_API aclError aclrtGetDeviceCount(uint32_t *count) try {
    if (!cann_sim::config().visible_fault.empty()) {
        return cann_sim::no_devices();
    }
    *count = static_cast<uint32_t>(cann_sim::logical_device_count());
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtSetDevice(int32_t device) try {
    const aclError ret = cann_sim::check_device(device);
    if (ret == ACL_SUCCESS) {
        cann_sim::primary_contexts[device].device = device;
        cann_sim::use(&cann_sim::primary_contexts[device]);
    }
    return ret;
}
SIM_CATCH

SIM_API aclError aclrtResetDevice(int32_t device) try {
    cann_sim::drain_device(device, -1);  // a reset does not tell what went wrong before it
    if (cann_sim::current_device() == device) {
        cann_sim::set_current_device(-1);
        cann_sim::thread_context = nullptr;
    }
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtGetDevice(int32_t *device) try {
    if (cann_sim::current_device() < 0) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: no device was set on this thread");
    }
    *device = cann_sim::current_device();
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtGetCurrentContext(aclrtContext *context) try {
    if (cann_sim::thread_context == nullptr) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: this thread has no context");
    }
    *context = cann_sim::thread_context;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtSetCurrentContext(aclrtContext handle) try {
    if (handle == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclrtSetCurrentContext: context is null");
    }
    auto *context = static_cast<cann_sim::Context *>(handle);
    if (!cann_sim::is_primary(context)) {
        const std::lock_guard<std::mutex> lock(cann_sim::registry().mutex);
        if (cann_sim::registry().contexts.count(handle) == 0) {
            return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: aclrtSetCurrentContext: the context was destroyed");
        }
    }
    const aclError ret = cann_sim::check_device(context->device);
    if (ret == ACL_SUCCESS) {
        cann_sim::use(context);
    }
    return ret;
}
SIM_CATCH

SIM_API aclError aclrtCreateContext(aclrtContext *context, int32_t device) try {
    const aclError ret = cann_sim::check_device(device);
    if (ret == ACL_SUCCESS) {
        auto *created = new cann_sim::Context{device};
        {
            const std::lock_guard<std::mutex> lock(cann_sim::registry().mutex);
            cann_sim::registry().contexts.insert(created);
        }
        cann_sim::use(created);
        *context = created;
    }
    return ret;
}
SIM_CATCH

SIM_API aclError aclrtDestroyContext(aclrtContext handle) try {
    auto *context = static_cast<cann_sim::Context *>(handle);
    {
        const std::lock_guard<std::mutex> lock(cann_sim::registry().mutex);
        if (cann_sim::registry().contexts.erase(handle) == 0) {
            return fail(ACL_ERROR_INVALID_PARAM, "aclrtDestroyContext: not a context that aclrtCreateContext made");
        }
    }
    if (cann_sim::thread_context == context) {
        cann_sim::thread_context = nullptr;
        cann_sim::set_current_device(-1);
    }
    if (context->default_stream != nullptr) {
        cann_sim::destroy(context->default_stream, true);
    }
    delete context;
    return ACL_SUCCESS;
}
SIM_CATCH

// ---- streams ----

SIM_API aclError aclrtCreateStream(aclrtStream *stream) try {
    if (cann_sim::current_context() == nullptr) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: aclrtCreateStream before aclrtSetDevice");
    }
    *stream = cann_sim::add_stream(cann_sim::current_context());
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t, uint32_t) {
    return aclrtCreateStream(stream);
}

SIM_API aclError aclrtDestroyStream(aclrtStream stream) try { return cann_sim::destroy(stream, true); }
SIM_CATCH
SIM_API aclError aclrtDestroyStreamForce(aclrtStream stream) try { return cann_sim::destroy(stream, false); }
SIM_CATCH

SIM_API aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) {
    *id = stream == nullptr ? -1 : static_cast<Stream *>(stream)->id;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) {
    if (stream != nullptr) {
        static_cast<Stream *>(stream)->stops_on_failure = mode == ACL_STOP_ON_FAILURE;
    }
    return ACL_SUCCESS;
}

SIM_API aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus *status) try {
    Stream *const stream = handle == nullptr ? nullptr : cann_sim::known(handle);
    *status = stream == nullptr || stream->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t flag) {
    static_cast<Stream *>(stream)->overflow_switch = flag;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag) {
    *flag = static_cast<Stream *>(stream)->overflow_switch;
    return ACL_SUCCESS;
}
