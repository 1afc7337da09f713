// acl.rt: devices, contexts, streams, events, memory, callbacks.

#include <memory>

#include "pyacl/call.h"

namespace pyacl {

namespace {

// A Python function and the list that it gets as its one argument, until the stream reaches it.
struct Callback {
    PyObject *function, *list;
};

// Runs on the thread that processes reports, which gave the interpreter's lock up.
void run_callback(void *data) {
    const PyGILState_STATE lock = PyGILState_Ensure();
    auto *const callback = static_cast<Callback *>(data);
    PyObject *const result = PyObject_CallFunctionObjArgs(callback->function, callback->list, nullptr);
    if (result == nullptr) {
        PyErr_WriteUnraisable(callback->function);
    }
    Py_XDECREF(result);
    Py_DECREF(callback->function);
    Py_DECREF(callback->list);
    delete callback;
    PyGILState_Release(lock);
}

PyObject *launch_callback(PyObject *, PyObject *args) {
    PyObject *function = nullptr, *list = nullptr;
    int block = 0;
    unsigned long stream = 0;
    if (!parse(args, "acl.rt.launch_callback", "OOik", &function, &list, &block, &stream)) {
        return nullptr;
    }
    if (PyCallable_Check(function) == 0) {
        return PyErr_Format(PyExc_TypeError, "acl.rt.launch_callback args parse failed: a function is needed, not %s",
                            Py_TYPE(function)->tp_name);
    }
    Py_INCREF(function);
    Py_INCREF(list);
    auto *const callback = new Callback{function, list};
    const aclError ret = aclrtLaunchCallback(run_callback, callback, static_cast<aclrtCallbackBlockType>(block),
                                             reinterpret_cast<aclrtStream>(stream));
    if (ret != ACL_SUCCESS) {
        Py_DECREF(function);
        Py_DECREF(list);
        delete callback;
    }
    return object_of(ret);
}

PyObject *exception_callback = nullptr;

// Runs on a stream's thread.
void run_exception_callback(aclrtExceptionInfo *info) {
    const PyGILState_STATE lock = PyGILState_Ensure();
    if (exception_callback != nullptr) {
        PyObject *const result = PyObject_CallFunction(exception_callback, "k", reinterpret_cast<unsigned long>(info));
        if (result == nullptr) {
            PyErr_WriteUnraisable(exception_callback);
        }
        Py_XDECREF(result);
    }
    PyGILState_Release(lock);
}

PyObject *set_exception_info_callback(PyObject *, PyObject *args) {
    PyObject *function = nullptr;
    if (!parse(args, "acl.rt.set_exception_info_callback", "O", &function)) {
        return nullptr;
    }
    PyObject *const former = exception_callback;
    exception_callback = function == Py_None ? nullptr : function;
    Py_XINCREF(exception_callback);
    Py_XDECREF(former);
    return object_of(aclrtSetExceptionInfoCallback(exception_callback == nullptr ? nullptr : run_exception_callback));
}

PyObject *event_status(PyObject *args, const char *name, aclError (*query)(aclrtEvent, int *)) {
    unsigned long event = 0;
    int status = 0;
    if (!parse(args, name, "k", &event)) {
        return nullptr;
    }
    const aclError ret = query(reinterpret_cast<aclrtEvent>(event), &status);
    return tuple_of(status, ret);
}

// aclrtQueryEvent is deprecated in C, and Python has it still.
PyObject *query_event(PyObject *, PyObject *args) {
    return event_status(args, "acl.rt.query_event", [](aclrtEvent event, int *status) {
        aclrtEventWaitStatus waited{};
        const aclError ret = aclrtQueryEventWaitStatus(event, &waited);
        *status = waited;
        return ret;
    });
}

}  // namespace

std::vector<PyMethodDef> rt_functions() {
    return {
        entry<&aclrtSetDevice>("acl.rt.set_device", "(device) -> ret"),
        entry<&aclrtResetDevice>("acl.rt.reset_device", "(device) -> ret"),
        entry<&aclrtGetDevice, 1>("acl.rt.get_device", "() -> (device, ret)"),
        entry<&aclrtGetDeviceCount, 1>("acl.rt.get_device_count", "() -> (count, ret)"),
        entry<&aclrtGetRunMode, 1>("acl.rt.get_run_mode", "() -> (0 device or 1 host, ret)"),
        entry<&aclrtSynchronizeDevice, 0, UNLOCKED>("acl.rt.synchronize_device", "() -> ret"),
        first_is_result<&aclrtCreateContext>("acl.rt.create_context", "(device) -> (context, ret)"),
        entry<&aclrtDestroyContext>("acl.rt.destroy_context", "(context) -> ret"),
        entry<&aclrtSetCurrentContext>("acl.rt.set_context", "(context) -> ret"),
        entry<&aclrtGetCurrentContext, 1>("acl.rt.get_context", "() -> (context, ret)"),
        entry<&aclrtCreateStream, 1>("acl.rt.create_stream", "() -> (stream, ret)"),
        first_is_result<&aclrtCreateStreamWithConfig>("acl.rt.create_stream_with_config",
                                                      "(priority, flag) -> (stream, ret)"),
        entry<&aclrtDestroyStream>("acl.rt.destroy_stream", "(stream) -> ret"),
        entry<&aclrtDestroyStreamForce>("acl.rt.destroy_stream_force", "(stream) -> ret"),
        entry<&aclrtSetStreamFailureMode>("acl.rt.set_stream_failure_mode", "(stream, mode) -> ret"),
        entry<&aclrtStreamQuery, 1>("acl.rt.stream_query", "(stream) -> (0 complete or 1, ret)"),
        entry<&aclrtSynchronizeStream, 0, UNLOCKED>("acl.rt.synchronize_stream", "(stream) -> ret"),
        entry<&aclrtSynchronizeStreamWithTimeout, 0, UNLOCKED>("acl.rt.synchronize_stream_with_timeout",
                                                               "(stream, ms) -> ret"),
        entry<&aclrtStreamWaitEvent, 0, UNLOCKED>("acl.rt.stream_wait_event", "(stream, event) -> ret"),
        entry<&aclrtCreateEvent, 1>("acl.rt.create_event", "() -> (event, ret)"),
        first_is_result<&aclrtCreateEventWithFlag>("acl.rt.create_event_with_flag", "(flag) -> (event, ret)"),
        first_is_result<&aclrtCreateEventExWithFlag>("acl.rt.create_event_ex_with_flag", "(flag) -> (event, ret)"),
        entry<&aclrtDestroyEvent>("acl.rt.destroy_event", "(event) -> ret"),
        entry<&aclrtRecordEvent>("acl.rt.record_event", "(event, stream) -> ret"),
        entry<&aclrtResetEvent>("acl.rt.reset_event", "(event, stream) -> ret"),
        {"acl.rt.query_event", query_event, METH_VARARGS, "(event) -> (0 complete or 1, ret)"},
        entry<&aclrtQueryEventStatus, 1>("acl.rt.query_event_status", "(event) -> (1 complete or 0, ret)"),
        entry<&aclrtQueryEventWaitStatus, 1>("acl.rt.query_event_wait_status", "(event) -> (0 complete or 1, ret)"),
        entry<&aclrtSynchronizeEvent, 0, UNLOCKED>("acl.rt.synchronize_event", "(event) -> ret"),
        first_is_result<&aclrtEventElapsedTime>("acl.rt.event_elapsed_time", "(start, end) -> (ms, ret)"),
        first_is_result<&aclrtMalloc>("acl.rt.malloc", "(size, policy) -> (ptr, ret)"),
        first_is_result<&aclrtMallocCached>("acl.rt.malloc_cached", "(size, policy) -> (ptr, ret)"),
        first_is_result<&aclrtMallocAlign32>("acl.rt.malloc_align32", "(size, policy) -> (ptr, ret)"),
        entry<&aclrtMemFlush>("acl.rt.mem_flush", "(ptr, size) -> ret"),
        entry<&aclrtMemInvalidate>("acl.rt.mem_invalidate", "(ptr, size) -> ret"),
        entry<&aclrtFree>("acl.rt.free", "(ptr) -> ret"),
        first_is_result<&aclrtMallocHost>("acl.rt.malloc_host", "(size) -> (ptr, ret), pinned"),
        entry<&aclrtFreeHost>("acl.rt.free_host", "(ptr) -> ret"),
        entry<&aclrtMemcpy>("acl.rt.memcpy", "(dst, dst_max, src, count, kind) -> ret"),
        entry<&aclrtMemcpyAsync>("acl.rt.memcpy_async", "(dst, dst_max, src, count, kind, stream) -> ret"),
        entry<&aclrtMemset>("acl.rt.memset", "(ptr, max, value, count) -> ret"),
        entry<&aclrtMemsetAsync>("acl.rt.memset_async", "(ptr, max, value, count, stream) -> ret"),
        entry<&aclrtGetMemInfo, 2>("acl.rt.get_mem_info", "(attr) -> (free, total, ret)"),
        entry<&aclrtSetOpWaitTimeout>("acl.rt.set_op_wait_timeout", "(seconds) -> ret"),
        entry<&aclrtSetOpExecuteTimeOut>("acl.rt.set_op_execute_timeout", "(seconds) -> ret"),
        first_is_result<&aclrtDeviceCanAccessPeer>("acl.rt.device_can_access_peer", "(device, peer) -> (can, ret)"),
        entry<&aclrtDeviceEnablePeerAccess>("acl.rt.device_enable_peer_access", "(peer, flags) -> ret"),
        entry<&aclrtDeviceDisablePeerAccess>("acl.rt.device_disable_peer_access", "(peer) -> ret"),
        entry<&aclrtSubscribeReport>("acl.rt.subscribe_report", "(thread, stream) -> ret"),
        entry<&aclrtUnSubscribeReport>("acl.rt.unsubscribe_report", "(thread, stream) -> ret"),
        {"acl.rt.launch_callback", launch_callback, METH_VARARGS, "(function, list, block, stream) -> ret"},
        entry<&aclrtProcessReport, 0, UNLOCKED>("acl.rt.process_report", "(ms) -> ret"),
        {"acl.rt.set_exception_info_callback", set_exception_info_callback, METH_VARARGS, "(function or None) -> ret"},
        entry<&aclrtGetTaskIdFromExceptionInfo>("acl.rt.get_task_id_from_exception_info", "(info) -> id"),
        entry<&aclrtGetStreamIdFromExceptionInfo>("acl.rt.get_stream_id_from_exception_info", "(info) -> id"),
        entry<&aclrtGetThreadIdFromExceptionInfo>("acl.rt.get_thread_id_from_exception_info", "(info) -> id"),
        entry<&aclrtGetDeviceIdFromExceptionInfo>("acl.rt.get_device_id_from_exception_info", "(info) -> id"),
        entry<&aclrtGetErrorCodeFromExceptionInfo>("acl.rt.get_error_code_from_exception_info", "(info) -> code"),
    };
}

}  // namespace pyacl
