// libascendcl.so: initialisation, and what a program may ask about devices.

#include "runtime/counters.h"
#include "runtime/counting.h"
#include "runtime/faults.h"
#include "runtime/one_tree.h"
#include "runtime/state.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
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
    static std::mutex mutex;
    static bool tried = false;
    static std::string error;
    const std::lock_guard<std::mutex> lock(mutex);
    void *const torch_npu = tried ? nullptr : dlopen("libtorch_npu.so", RTLD_NOLOAD | RTLD_LAZY);
    if (torch_npu != nullptr) {
        tried = true;
        dlclose(torch_npu);
        if (dlopen("libcann_sim_compute.so", RTLD_NOW | RTLD_LOCAL) == nullptr) {
            error = dlerror();
        }
    }
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

}  // namespace

}  // namespace cann_sim

using cann_sim::fail;

// ---- initialisation ----

SIM_API aclError aclInit(const char *) try {
    if (cann_sim::initialised.exchange(true)) {
        // A program of pyACL that imports torch_npu later: this is torch_npu's call, which takes that answer for success.
        if (cann_sim::load_compute() == ACL_SUCCESS) {
            cann_sim::import_package();
        }
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

// No one counts initialisations: the second aclInit is refused.
SIM_API aclError finalize_reference(uint64_t *count) __asm__("aclFinalizeReference");
aclError finalize_reference(uint64_t *count) {
    if (count != nullptr) {
        *count = 0;
    }
    return aclFinalize();
}

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

// ---- devices ----

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
