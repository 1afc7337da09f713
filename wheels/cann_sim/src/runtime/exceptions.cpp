// libascendcl.so: what a program is told of a task that failed.

#include "runtime/exceptions.h"

#include <pthread.h>

#include <atomic>

#include "runtime/state.h"

// aclrtExceptionInfo, which acl_rt.h leaves opaque.
struct rtExceptionInfo {
    uint32_t task, stream, thread, device, code;
};

namespace {

std::atomic<aclrtExceptionInfoCallback> exception_callback{nullptr};

}  // namespace

void cann_sim::report_exception(uint32_t task, uint32_t stream, aclError code) {
    if (const aclrtExceptionInfoCallback callback = exception_callback) {
        rtExceptionInfo info{task, stream, static_cast<uint32_t>(pthread_self()),
                             static_cast<uint32_t>(current_device()), static_cast<uint32_t>(code)};
        callback(&info);
    }
}

SIM_API aclError aclrtSetExceptionInfoCallback(aclrtExceptionInfoCallback callback) {
    exception_callback = callback;
    return ACL_SUCCESS;
}
SIM_API uint32_t aclrtGetTaskIdFromExceptionInfo(const aclrtExceptionInfo *info) {
    return info == nullptr ? UINT32_MAX : info->task;
}
SIM_API uint32_t aclrtGetStreamIdFromExceptionInfo(const aclrtExceptionInfo *info) {
    return info == nullptr ? UINT32_MAX : info->stream;
}
SIM_API uint32_t aclrtGetThreadIdFromExceptionInfo(const aclrtExceptionInfo *info) {
    return info == nullptr ? UINT32_MAX : info->thread;
}
SIM_API uint32_t aclrtGetDeviceIdFromExceptionInfo(const aclrtExceptionInfo *info) {
    return info == nullptr ? UINT32_MAX : info->device;
}
SIM_API uint32_t aclrtGetErrorCodeFromExceptionInfo(const aclrtExceptionInfo *info) {
    return info == nullptr ? UINT32_MAX : info->code;
}
