// libascendcl.so: callbacks in a stream, which the thread that subscribed to it processes.

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "runtime/state.h"
#include "runtime/streams.h"

using cann_sim::fail;

namespace {

struct Report {
    aclrtCallback callback;
    void *user_data;
    bool done = false;
};

struct Subscriptions {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<aclrtStream, uint64_t> thread_of;
    std::map<uint64_t, std::deque<std::shared_ptr<Report>>> reports;  // by thread
};

// Never destroyed: threads of streams outlive the statics of a process that ends.
Subscriptions &subscriptions() {
    static Subscriptions &all = *new Subscriptions;
    return all;
}

}  // namespace

SIM_API aclError aclrtSubscribeReport(uint64_t thread, aclrtStream stream) try {
    Subscriptions &all = subscriptions();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.thread_of.count(stream) != 0) {
        return fail(ACL_ERROR_RT_STREAM_SUBSCRIBE, "EE1001: aclrtSubscribeReport: the stream has a subscriber");
    }
    all.thread_of[stream] = thread;
    all.reports[thread];
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtUnSubscribeReport(uint64_t thread, aclrtStream stream) try {
    Subscriptions &all = subscriptions();
    {
        const std::lock_guard<std::mutex> lock(all.mutex);
        const auto found = all.thread_of.find(stream);
        if (found == all.thread_of.end() || found->second != thread) {
            return fail(ACL_ERROR_RT_STREAM_NO_CB_REG,
                        "EE1001: aclrtUnSubscribeReport: this thread did not subscribe to the stream");
        }
        all.thread_of.erase(found);
        bool others = false;
        for (const auto &[other, subscriber] : all.thread_of) {
            others = others || subscriber == thread;
        }
        if (!others) {
            for (const std::shared_ptr<Report> &report : all.reports[thread]) {
                report->done = true;  // nobody processes it any more
            }
            all.reports.erase(thread);
        }
    }
    all.changed.notify_all();
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtLaunchCallback(aclrtCallback callback, void *user_data, aclrtCallbackBlockType block,
                                     aclrtStream handle) try {
    if (callback == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclrtLaunchCallback: the callback is null");
    }
    if (cann_sim::runs_at_once(handle)) {
        callback(user_data);
        return ACL_SUCCESS;
    }
    cann_sim::Stream *stream = nullptr;
    const aclError found_stream = cann_sim::find_stream(handle, "aclrtLaunchCallback", &stream);
    if (found_stream != ACL_SUCCESS) {
        return found_stream;
    }
    uint64_t thread = 0;
    {
        const std::lock_guard<std::mutex> lock(subscriptions().mutex);
        const auto found = subscriptions().thread_of.find(handle);
        if (found == subscriptions().thread_of.end()) {
            return fail(ACL_ERROR_RT_STREAM_NO_CB_REG,
                        "EE1001: aclrtLaunchCallback: no thread subscribed to the stream (aclrtSubscribeReport)");
        }
        thread = found->second;
    }
    cann_sim::enqueue(*stream, [=] {
        Subscriptions &all = subscriptions();
        const auto report = std::make_shared<Report>(Report{callback, user_data});
        std::unique_lock<std::mutex> lock(all.mutex);
        const auto queue = all.reports.find(thread);
        if (queue == all.reports.end()) {
            return ACL_SUCCESS;
        }
        queue->second.push_back(report);
        all.changed.notify_all();
        if (block == ACL_CALLBACK_BLOCK) {
            all.changed.wait(lock, [&] { return report->done; });
        }
        return ACL_SUCCESS;
    });
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtProcessReport(int32_t timeout_ms) try {
    if (timeout_ms < -1 || timeout_ms == 0) {
        return fail(ACL_ERROR_RT_PARAM_INVALID, "EE1001: aclrtProcessReport: the timeout is -1 or positive, in ms");
    }
    Subscriptions &all = subscriptions();
    const auto thread = static_cast<uint64_t>(pthread_self());
    std::unique_lock<std::mutex> lock(all.mutex);
    if (all.reports.count(thread) == 0) {
        return fail(ACL_ERROR_RT_THREAD_SUBSCRIBE, "EE1001: aclrtProcessReport: this thread subscribed to no stream");
    }
    const auto ready = [&] {
        const auto queue = all.reports.find(thread);
        return queue == all.reports.end() || !queue->second.empty();
    };
    if (timeout_ms < 0) {
        all.changed.wait(lock, ready);
    } else if (!all.changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), ready)) {
        return fail(ACL_ERROR_RT_REPORT_TIMEOUT, "EE1002: aclrtProcessReport: no report in time");
    }
    const auto queue = all.reports.find(thread);
    if (queue == all.reports.end()) {
        return fail(ACL_ERROR_RT_THREAD_SUBSCRIBE, "EE1001: aclrtProcessReport: the subscription ended");
    }
    const std::shared_ptr<Report> report = queue->second.front();
    queue->second.pop_front();
    lock.unlock();
    report->callback(report->user_data);
    lock.lock();
    report->done = true;
    all.changed.notify_all();
    return ACL_SUCCESS;
}
SIM_CATCH
