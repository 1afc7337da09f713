// libascendcl.so: initialisation, devices, contexts, streams, events and what a program may ask about them.
//
// A simulated stream has nothing pending when a call returns: kernels, copies and collectives run on the thread
// that issues them. What torch_npu defers, it defers on its own task-queue thread, in program order.

#include "runtime/counters.h"
#include "runtime/counting.h"
#include "runtime/faults.h"
#include "runtime/one_tree.h"
#include "runtime/state.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace cann_sim {

namespace {

std::atomic<bool> initialised{false};

// The compute plug-in is for processes that run torch_npu; a pure pyACL program has no libtorch to link it to.
aclError load_compute() {
    static std::once_flag once;
    static std::string error;
    std::call_once(once, [] {
        void *torch_npu = dlopen("libtorch_npu.so", RTLD_NOLOAD | RTLD_LAZY);
        if (torch_npu == nullptr) {
            return;
        }
        dlclose(torch_npu);
        if (dlopen("libcann_sim_compute.so", RTLD_NOW | RTLD_LOCAL) == nullptr) {
            error = dlerror();
        }
    });
    if (error.empty()) {
        return ACL_SUCCESS;
    }
    std::fprintf(stderr,
                 "error[cann-sim-torch-npu]: the compute plug-in of cann_sim does not fit this torch or torch_npu\n"
                 "  expected: every symbol that it was built against\n  found:    %s\n"
                 "  next:     rebuild it against the installed pair: make cann-sim\n",
                 error.c_str());
    return fail(ACL_ERROR_INTERNAL_ERROR, "cann_sim: " + error);
}

// Where there is an interpreter, the package's Python part says why torch.compile has no kernels (compiling.py), and at level
// aclnn keeps torch_npu from private formats (formats.py). A tree without the package, or with another package of that
// name, only lacks these.
void import_package() {
    const auto is_initialized = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
    const auto ensure = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Ensure"));
    const auto release = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "PyGILState_Release"));
    const auto import = reinterpret_cast<void *(*)(const char *)>(dlsym(RTLD_DEFAULT, "PyImport_ImportModule"));
    const auto clear_error = reinterpret_cast<void (*)()>(dlsym(RTLD_DEFAULT, "PyErr_Clear"));
    if (is_initialized == nullptr || is_initialized() == 0 || ensure == nullptr || release == nullptr ||
        import == nullptr || clear_error == nullptr) {
        return;
    }
    const int state = ensure();
    for (const char *module : {"cann_sim.compiling", "cann_sim.formats"}) {
        if (import(module) == nullptr) {
            clear_error();
        }
    }
    release(state);
}

// The host waits for the device, which has nothing pending unless a fault says so.
aclError wait(const char *call, int timeout_ms = -1) {
    if (is_lost_fork()) {
        return lost_by_fork();
    }
    if (counting()) {
        count_wait(call);
    }
    return fault_at_wait(current_device(), timeout_ms);
}

}  // namespace

}  // namespace cann_sim

using cann_sim::fail;

// ---- initialisation ----

SIM_API aclError aclInit(const char *) try {
    if (cann_sim::initialised.exchange(true)) {
        return fail(ACL_ERROR_REPEAT_INITIALIZE, "aclInit was called before");
    }
    cann_sim::start_counters_from_environment();
    cann_sim::read_faults();
    const aclError loaded = cann_sim::load_compute();
    if (loaded == ACL_SUCCESS) {
        cann_sim::import_package();
    }
    return loaded;
}
SIM_CATCH

SIM_API aclError aclFinalize() try {
    if (!cann_sim::initialised.exchange(false)) {
        return fail(ACL_ERROR_REPEAT_FINALIZE, "aclFinalize without aclInit");
    }
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtGetVersion(int32_t *major, int32_t *minor, int32_t *patch) {
    *major = ACL_MAJOR_VERSION;
    *minor = ACL_MINOR_VERSION;
    *patch = ACL_PATCH_VERSION;
    return ACL_SUCCESS;
}

SIM_API aclError aclsysGetCANNVersion(aclCANNPackageName name, aclCANNPackageVersion *version) try {
    if (version == nullptr || name < ACL_PKG_NAME_CANN || name > ACL_PKG_NAME_DRIVER) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclsysGetCANNVersion: unknown package");
    }
    std::memset(version, 0, sizeof(*version));
    std::strcpy(version->version, "8.5.0");
    std::strcpy(version->majorVersion, "8");
    std::strcpy(version->minorVersion, "5");
    std::strcpy(version->releaseVersion, "0");
    return ACL_SUCCESS;
}
SIM_CATCH

// ---- devices and contexts ----

namespace {

struct Context {
    int device;
};

// One primary context per device, as the runtime's aclrtSetDevice creates it.
Context primary_contexts[cann_sim::kMaxDevices];
thread_local Context *thread_context = nullptr;

// Where the list of visible devices is wrong: what every question about devices ends in.
aclError no_devices() { return fail(ACL_ERROR_RT_NO_DEVICE, cann_sim::config().visible_fault); }

aclError select_device(int device) {
    if (cann_sim::is_lost_fork()) {
        return cann_sim::lost_by_fork();
    }
    if (!cann_sim::config().visible_fault.empty()) {
        return no_devices();
    }
    if (device < 0 || device >= cann_sim::logical_device_count()) {
        return fail(ACL_ERROR_RT_INVALID_DEVICEID,
                    "EE1001: device id " + std::to_string(device) +
                        " is invalid: " + std::to_string(cann_sim::logical_device_count()) +
                        " device(s) are visible, numbered from 0, of " +
                        std::to_string(cann_sim::config().physical_devices) +
                        " that this simulated host has (ASCEND_RT_VISIBLE_DEVICES, CANN_SIM_DEVICES)");
    }
    primary_contexts[device].device = device;
    thread_context = &primary_contexts[device];
    cann_sim::set_current_device(device);
    return ACL_SUCCESS;
}

}  // namespace

SIM_API aclError aclrtGetDeviceCount(uint32_t *count) try {
    if (!cann_sim::config().visible_fault.empty()) {
        return no_devices();
    }
    *count = static_cast<uint32_t>(cann_sim::logical_device_count());
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtSetDevice(int32_t device) try { return select_device(device); }
SIM_CATCH

SIM_API aclError aclrtResetDevice(int32_t device) try {
    if (cann_sim::current_device() == device) {
        cann_sim::set_current_device(-1);
        thread_context = nullptr;
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
    if (thread_context == nullptr) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: this thread has no context");
    }
    *context = thread_context;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtSetCurrentContext(aclrtContext context) try {
    if (context == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclrtSetCurrentContext: context is null");
    }
    return select_device(static_cast<Context *>(context)->device);
}
SIM_CATCH

SIM_API aclError aclrtCreateContext(aclrtContext *context, int32_t device) try {
    const aclError ret = select_device(device);
    if (ret == ACL_SUCCESS) {
        *context = new Context{device};
        thread_context = static_cast<Context *>(*context);
    }
    return ret;
}
SIM_CATCH

SIM_API aclError aclrtDestroyContext(aclrtContext context) try {
    Context *c = static_cast<Context *>(context);
    const bool primary = c >= primary_contexts && c < primary_contexts + cann_sim::kMaxDevices;
    if (c == nullptr || primary) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclrtDestroyContext: not a context that aclrtCreateContext made");
    }
    if (thread_context == c) {
        thread_context = nullptr;
    }
    delete c;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtSynchronizeDevice() try { return cann_sim::wait("aclrtSynchronizeDevice"); }
SIM_CATCH
SIM_API aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) try {
    return cann_sim::wait("aclrtSynchronizeDevice", timeout_ms);
}
SIM_CATCH
SIM_API aclError aclrtDeviceTaskAbort(int32_t, uint32_t) { return ACL_SUCCESS; }

SIM_API aclError aclrtDeviceCanAccessPeer(int32_t *can, int32_t device, int32_t peer) {
    *can = device != peer ? 1 : 0;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }
SIM_API aclError aclrtDeviceDisablePeerAccess(int32_t) { return ACL_SUCCESS; }

SIM_API aclError aclrtGetRunMode(aclrtRunMode *mode) {
    *mode = ACL_HOST;
    return ACL_SUCCESS;
}

SIM_API const char *aclrtGetSocName() try { return cann_sim::config().soc.c_str(); }
SIM_CATCH

SIM_API aclError aclrtGetDeviceUtilizationRate(int32_t, aclrtUtilizationInfo *info) {
    info->cubeUtilization = info->vectorUtilization = info->aicpuUtilization = DEVICE_UTILIZATION_NOT_SUPPORT;
    info->memoryUtilization = DEVICE_UTILIZATION_NOT_SUPPORT;
    return ACL_SUCCESS;
}

SIM_API aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo info, int64_t *value) try {
    // Atlas A2 (910B): 20-24 cube cores with two vector cores each, 192 MiB L2; the product page's numbers.
    switch (info) {
        case ACL_DEVICE_INFO_AI_CORE_NUM: *value = 20; return ACL_SUCCESS;
        case ACL_DEVICE_INFO_VECTOR_CORE_NUM: *value = 40; return ACL_SUCCESS;
        case ACL_DEVICE_INFO_L2_SIZE: *value = 192LL << 20; return ACL_SUCCESS;
        default: return fail(ACL_ERROR_INVALID_PARAM, "aclGetDeviceCapability: unknown capability");
    }
}
SIM_CATCH

// The enumeration is aclrtDevResModelType in torch_npu 2.8.0's headers and aclrtDevResLimitType in 2.8.0.post2's and
// 2.9.0's; its values are the same.
SIM_API aclError aclrtGetDeviceResLimit(int32_t, cann_sim::Parameter<1, decltype(aclrtGetDeviceResLimit)> type,
                                        uint32_t *value) {
    *value = type == ACL_RT_DEV_RES_CUBE_CORE ? 20 : 40;
    return ACL_SUCCESS;
}

SIM_API aclError aclGetCannAttributeList(const aclCannAttr **list, size_t *num) try {
    static const aclCannAttr attributes[] = {ACL_CANN_ATTR_JIT_COMPILE, ACL_CANN_ATTR_INF_NAN, ACL_CANN_ATTR_BF16};
    *list = attributes;
    *num = cann_sim::has_inf_nan() ? 3 : 1;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclGetCannAttribute(aclCannAttr attribute, int32_t *value) try {
    switch (attribute) {
        case ACL_CANN_ATTR_INF_NAN:
        case ACL_CANN_ATTR_BF16: *value = cann_sim::has_inf_nan() ? 1 : 0; return ACL_SUCCESS;
        case ACL_CANN_ATTR_JIT_COMPILE: *value = 0; return ACL_SUCCESS;
        default: return fail(ACL_ERROR_INVALID_PARAM, "aclGetCannAttribute: unknown attribute");
    }
}
SIM_CATCH

SIM_API aclError aclrtCtxSetSysParamOpt(aclSysParamOpt, int64_t) { return ACL_SUCCESS; }
SIM_API aclError aclrtSetSysParamOpt(aclSysParamOpt, int64_t) { return ACL_SUCCESS; }
SIM_API aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
SIM_API aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) try {
    cann_sim::set_operator_timeout(seconds);
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode mode) try {
    cann_sim::set_overflow_saturates(mode == ACL_RT_OVERFLOW_MODE_SATURATION);
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
SIM_API aclError aclrtGetLastError(aclrtLastErrLevel) { return ACL_SUCCESS; }
SIM_API aclError aclrtGetMemUceInfo(int32_t, aclrtMemUceInfo *, size_t, size_t *found) {
    *found = 0;
    return ACL_SUCCESS;
}

// ---- streams ----

namespace {

struct Stream {
    int device;
    int32_t id;
    uint32_t overflow_switch = 0;
};

std::atomic<int32_t> next_stream_id{0};

uint64_t now_ns() {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
            .count());
}

}  // namespace

SIM_API aclError aclrtCreateStream(aclrtStream *stream) try {
    if (cann_sim::current_device() < 0) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: aclrtCreateStream before aclrtSetDevice");
    }
    *stream = new Stream{cann_sim::current_device(), next_stream_id++};
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t, uint32_t) {
    return aclrtCreateStream(stream);
}

SIM_API aclError aclrtDestroyStream(aclrtStream stream) {
    delete static_cast<Stream *>(stream);
    return ACL_SUCCESS;
}
SIM_API aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }

SIM_API aclError aclrtStreamGetId(aclrtStream stream, int32_t *id) {
    *id = stream == nullptr ? -1 : static_cast<Stream *>(stream)->id;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSynchronizeStream(aclrtStream) try { return cann_sim::wait("aclrtSynchronizeStream"); }
SIM_CATCH
SIM_API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream, int32_t timeout_ms) try {
    return cann_sim::wait("aclrtSynchronizeStream", timeout_ms);
}
SIM_CATCH
SIM_API aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }

SIM_API aclError aclrtStreamQuery(aclrtStream, aclrtStreamStatus *status) {
    *status = ACL_STREAM_STATUS_COMPLETE;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtSetStreamOverflowSwitch(aclrtStream stream, uint32_t flag) {
    static_cast<Stream *>(stream)->overflow_switch = flag;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtGetStreamOverflowSwitch(aclrtStream stream, uint32_t *flag) {
    *flag = static_cast<Stream *>(stream)->overflow_switch;
    return ACL_SUCCESS;
}

// ---- captured graphs (torch.npu.NPUGraph): refused where a capture begins ----
// torch_npu asks for a capture's state at each later allocation, also of the process that was refused one.

namespace {

aclError refuse_graph() {
    return fail(ACL_ERROR_FEATURE_UNSUPPORTED,
                "EE1001: cann_sim does not simulate captured graphs (torch.npu.NPUGraph, torch.npu.graph, "
                "make_graphed_callables): run the operators one by one");
}

}  // namespace

// torch_npu 2.9 sets an attribute of the stream before a capture. 2.8's headers do not have the function, nor its types.
SIM_API aclError set_stream_attribute(aclrtStream, int, const void *) __asm__("aclrtSetStreamAttribute");
aclError set_stream_attribute(aclrtStream, int, const void *) { return ACL_SUCCESS; }
SIM_API aclError aclmdlRICaptureBegin(aclrtStream, aclmdlRICaptureMode) try { return refuse_graph(); }
SIM_CATCH
SIM_API aclError aclmdlRICaptureEnd(aclrtStream, aclmdlRI *) try { return refuse_graph(); }
SIM_CATCH
SIM_API aclError aclmdlRIExecuteAsync(aclmdlRI, aclrtStream) try { return refuse_graph(); }
SIM_CATCH
SIM_API aclError aclmdlRICaptureGetInfo(aclrtStream, aclmdlRICaptureStatus *status, aclmdlRI *graph) {
    *status = ACL_MODEL_RI_CAPTURE_STATUS_NONE;
    *graph = nullptr;
    return ACL_SUCCESS;
}

// ---- events ----

namespace {

struct Event {
    std::atomic<uint64_t> recorded_ns{0};
};

}  // namespace

SIM_API aclError aclrtCreateEvent(aclrtEvent *event) try {
    *event = new Event;
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t) { return aclrtCreateEvent(event); }
SIM_API aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t) { return aclrtCreateEvent(event); }

SIM_API aclError aclrtDestroyEvent(aclrtEvent event) {
    delete static_cast<Event *>(event);
    return ACL_SUCCESS;
}

SIM_API aclError aclrtRecordEvent(aclrtEvent event, aclrtStream) try {
    static_cast<Event *>(event)->recorded_ns = now_ns();
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclrtResetEvent(aclrtEvent event, aclrtStream) {
    static_cast<Event *>(event)->recorded_ns = 0;
    return ACL_SUCCESS;
}

SIM_API aclError aclrtQueryEvent(aclrtEvent, aclrtEventStatus *status) {
    *status = ACL_EVENT_STATUS_COMPLETE;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus *status) {
    *status = static_cast<Event *>(event)->recorded_ns != 0 ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                                            : ACL_EVENT_RECORDED_STATUS_NOT_READY;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus *status) {
    *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
    return ACL_SUCCESS;
}
SIM_API aclError aclrtSynchronizeEvent(aclrtEvent) try { return cann_sim::wait("aclrtSynchronizeEvent"); }
SIM_CATCH
SIM_API aclError aclrtStreamWaitEvent(aclrtStream, aclrtEvent) { return ACL_SUCCESS; }

SIM_API aclError aclrtEventElapsedTime(float *ms, aclrtEvent start, aclrtEvent end) try {
    const uint64_t a = static_cast<Event *>(start)->recorded_ns, b = static_cast<Event *>(end)->recorded_ns;
    if (a == 0 || b == 0) {
        return fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID,
                    "EE1001: aclrtEventElapsedTime on an event that was not recorded");
    }
    *ms = static_cast<float>((static_cast<double>(b) - static_cast<double>(a)) * 1e-6);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t *microseconds) {
    *microseconds = static_cast<Event *>(event)->recorded_ns / 1000;
    return ACL_SUCCESS;
}

// Callbacks run at once, like everything else on a simulated stream; a subscription therefore has no reports left.
SIM_API aclError aclrtSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
SIM_API aclError aclrtUnSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
SIM_API aclError aclrtLaunchCallback(aclrtCallback callback, void *user_data, aclrtCallbackBlockType, aclrtStream) try {
    callback(user_data);
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclrtProcessReport(int32_t timeout_ms) try {
    usleep(timeout_ms > 0 ? static_cast<useconds_t>(timeout_ms) * 1000 : 0);
    return ACL_ERROR_WAIT_CALLBACK_TIMEOUT;
}
SIM_CATCH

// ---- log, dump: the device has nothing to dump; the application log goes to stderr when it is asked for ----

SIM_API void aclAppLog(aclLogLevel level, const char *function, const char *file, uint32_t line, const char *format,
                       ...) try {
    const char *text = std::getenv("ASCEND_SLOG_PRINT_TO_STDOUT");
    if (text == nullptr || *text != '1') {
        return;
    }
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    static const char *const names[] = {"DEBUG", "INFO", "WARNING", "ERROR"};
    std::fprintf(stderr, "[%s] APP(%d) %s:%u %s: %s\n", names[level & 3], getpid(), file, line, function, message);
}
SIM_CATCH_VOID

SIM_API aclError aclmdlInitDump() { return ACL_SUCCESS; }
SIM_API aclError aclmdlSetDump(const char *) try {
    return fail(ACL_ERROR_FEATURE_UNSUPPORTED, "cann_sim: operator dump is not simulated");
}
SIM_CATCH
SIM_API aclError aclmdlFinalizeDump() { return ACL_SUCCESS; }
