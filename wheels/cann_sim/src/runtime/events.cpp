// libascendcl.so: events, and what the host waits for.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "runtime/counters.h"
#include "runtime/faults.h"
#include "runtime/state.h"
#include "runtime/streams.h"

using cann_sim::fail;

namespace {

// Shared with the tasks that record it or wait for it: the program may destroy an event before they ran.
struct State {
    std::atomic<uint64_t> recorded_ns{0};         // of the last record that is complete; 0: none, or reset
    std::atomic<uint64_t> asked{0}, complete{0};  // records, by number
    cann_sim::Failure failure;                    // of its stream when it was recorded; guarded
};

struct Event {
    std::shared_ptr<State> state = std::make_shared<State>();
    bool resettable;
};

// Of all events: few wait at a time. Never destroyed: a stream may still wait when a process ends, and the end of a
// condition variable waits for all who wait for it.
std::mutex &mutex = *new std::mutex;
std::condition_variable &recorded = *new std::condition_variable;

// Null after fail().
Event *checked(aclrtEvent event) {
    if (event == nullptr) {
        fail(ACL_ERROR_INVALID_PARAM, "EH0002: the event is null");
    }
    return static_cast<Event *>(event);
}

void finish_record(State &state, uint64_t number, const cann_sim::Failure &failure) {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        if (state.complete >= number) {
            return;  // a later record, in another stream, was faster
        }
        state.recorded_ns = cann_sim::now_ns();
        state.failure = failure;
        state.complete = number;
    }
    recorded.notify_all();
}

void wait_for_record(State &state, uint64_t number) {
    std::unique_lock<std::mutex> lock(mutex);
    recorded.wait(lock, [&] { return state.complete >= number; });
}

// The host waits for the device: for what `queued` waits for, and for what a fault makes of it.
template <typename Wait>
aclError host_waits(const char *call, int timeout_ms, Wait queued) {
    if (cann_sim::is_lost_fork()) {
        return cann_sim::lost_by_fork();
    }
    if (cann_sim::counting()) {
        cann_sim::count_wait(call);
    }
    const aclError error = queued();
    return error == ACL_SUCCESS ? cann_sim::fault_at_wait(cann_sim::current_device(), timeout_ms) : error;
}

aclError create(aclrtEvent *event, bool resettable) {
    if (event == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclrtCreateEvent: the event's place is null");
    }
    *event = new Event{std::make_shared<State>(), resettable};
    return ACL_SUCCESS;
}

}  // namespace

SIM_API aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) try {
    return host_waits("aclrtSynchronizeDevice", timeout_ms,
                      [&] { return cann_sim::drain_device(cann_sim::current_device(), timeout_ms); });
}
SIM_CATCH
SIM_API aclError aclrtSynchronizeDevice() try { return aclrtSynchronizeDeviceWithTimeout(-1); }
SIM_CATCH

SIM_API aclError aclrtSynchronizeStream(aclrtStream stream) try {
    return aclrtSynchronizeStreamWithTimeout(stream, -1);
}
SIM_CATCH
SIM_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout_ms) try {
    return host_waits("aclrtSynchronizeStream", timeout_ms,
                      [&] { return cann_sim::drain(stream, timeout_ms, "aclrtSynchronizeStream"); });
}
SIM_CATCH

SIM_API aclError aclrtCreateEvent(aclrtEvent *event) try { return create(event, false); }
SIM_CATCH
SIM_API aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t) try { return create(event, true); }
SIM_CATCH
SIM_API aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t) try { return create(event, true); }
SIM_CATCH

SIM_API aclError aclrtDestroyEvent(aclrtEvent event) try {
    delete checked(event);
    return event == nullptr ? ACL_ERROR_INVALID_PARAM : ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtRecordEvent(aclrtEvent event, aclrtStream handle) try {
    if (checked(event) == nullptr) {
        return ACL_ERROR_INVALID_PARAM;
    }
    const std::shared_ptr<State> state = static_cast<Event *>(event)->state;
    if (cann_sim::runs_at_once(handle)) {
        state->recorded_ns = cann_sim::now_ns();
        state->complete = ++state->asked;
        return ACL_SUCCESS;
    }
    cann_sim::Stream *stream = nullptr;
    const aclError found = cann_sim::find_stream(handle, "aclrtRecordEvent", &stream);
    if (found != ACL_SUCCESS) {
        return found;
    }
    const uint64_t number = ++state->asked;
    cann_sim::enqueue(*stream, [state, number, stream] {
        const aclError code = cann_sim::error_of(*stream, false);
        finish_record(*state, number, {code, code == ACL_SUCCESS ? "" : cann_sim::take_recent_error()});
        return ACL_SUCCESS;
    });
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtResetEvent(aclrtEvent event, aclrtStream handle) try {
    if (checked(event) == nullptr) {
        return ACL_ERROR_INVALID_PARAM;
    }
    const std::shared_ptr<State> state = static_cast<Event *>(event)->state;
    if (cann_sim::runs_at_once(handle)) {
        state->recorded_ns = 0;
        return ACL_SUCCESS;
    }
    if (!static_cast<Event *>(event)->resettable) {
        return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
                    "EE1001: aclrtResetEvent: an event of aclrtCreateEvent cannot be reset: create it with a flag");
    }
    cann_sim::Stream *stream = nullptr;
    const aclError found = cann_sim::find_stream(handle, "aclrtResetEvent", &stream);
    if (found != ACL_SUCCESS) {
        return found;
    }
    cann_sim::enqueue(*stream, [state] {
        state->recorded_ns = 0;
        return ACL_SUCCESS;
    });
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtQueryEvent(aclrtEvent event, aclrtEventStatus *status) {
    const State &state = *static_cast<Event *>(event)->state;
    *status = state.complete == state.asked ? ACL_EVENT_STATUS_COMPLETE : ACL_EVENT_STATUS_NOT_READY;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
    const State &state = *static_cast<Event *>(event)->state;
    *status = state.recorded_ns != 0 && state.complete == state.asked ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                                                      : ACL_EVENT_RECORDED_STATUS_NOT_READY;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus *status) {
    const State &state = *static_cast<Event *>(event)->state;
    *status = state.complete == state.asked ? ACL_EVENT_WAIT_STATUS_COMPLETE : ACL_EVENT_WAIT_STATUS_NOT_READY;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSynchronizeEvent(aclrtEvent event) try {
    if (checked(event) == nullptr) {
        return ACL_ERROR_INVALID_PARAM;
    }
    return host_waits("aclrtSynchronizeEvent", -1, [&] {
        const std::shared_ptr<State> state = static_cast<Event *>(event)->state;
        wait_for_record(*state, state->asked);
        const std::lock_guard<std::mutex> lock(mutex);
        return state->failure.code == ACL_SUCCESS ? ACL_SUCCESS : fail(state->failure.code, state->failure.message);
    });
}
SIM_CATCH

SIM_API aclError aclrtStreamWaitEvent(aclrtStream handle, aclrtEvent event) try {
    if (checked(event) == nullptr) {
        return ACL_ERROR_INVALID_PARAM;
    }
    const std::shared_ptr<State> state = static_cast<Event *>(event)->state;
    const uint64_t number = state->asked;
    if (state->complete >= number && cann_sim::runs_at_once(handle)) {
        return ACL_SUCCESS;
    }
    cann_sim::Stream *stream = nullptr;
    const aclError found = cann_sim::find_stream(handle, "aclrtStreamWaitEvent", &stream);
    if (found != ACL_SUCCESS) {
        return found;
    }
    cann_sim::enqueue(*stream, [state, number] {
        wait_for_record(*state, number);
        return ACL_SUCCESS;
    });
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtEventElapsedTime(float *ms, aclrtEvent start, aclrtEvent end) try {
    if (checked(start) == nullptr || checked(end) == nullptr) {
        return ACL_ERROR_INVALID_PARAM;
    }
    const State &a = *static_cast<Event *>(start)->state, &b = *static_cast<Event *>(end)->state;
    if (a.complete != a.asked || b.complete != b.asked) {
        return fail(ACL_ERROR_RT_EVENT_NOT_COMPLETE,
                    "EE1001: aclrtEventElapsedTime on an event that its stream has not reached");
    }
    if (a.recorded_ns == 0 || b.recorded_ns == 0) {
        return fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID,
                    "EE1001: aclrtEventElapsedTime on an event that was not recorded");
    }
    *ms = static_cast<float>((static_cast<double>(b.recorded_ns) - static_cast<double>(a.recorded_ns)) * 1e-6);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t *microseconds) {
    *microseconds = static_cast<Event *>(event)->state->recorded_ns / 1000;
    return ACL_SUCCESS;
}
