// acl.util: pointers of Python's objects, and threads.

#include <pthread.h>

#include <map>

#include "pyacl/call.h"

namespace pyacl {

namespace {

PyObject *bytes_to_ptr(PyObject *, PyObject *args) {
    PyObject *bytes = nullptr;
    if (!parse(args, "acl.util.bytes_to_ptr", "O", &bytes)) {
        return nullptr;
    }
    if (PyBytes_Check(bytes) == 0) {
        return PyErr_Format(PyExc_ValueError, "acl.util.bytes_to_ptr takes bytes, not %s", Py_TYPE(bytes)->tp_name);
    }
    return object_of(static_cast<const void *>(PyBytes_AsString(bytes)));
}

PyObject *ptr_to_bytes(PyObject *, PyObject *args) {
    unsigned long pointer = 0, size = 0;
    if (!parse(args, "acl.util.ptr_to_bytes", "kk", &pointer, &size)) {
        return nullptr;
    }
    return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(pointer), static_cast<Py_ssize_t>(size));
}

bool warn(const char *name, const char *instead) {
    return PyErr_WarnFormat(PyExc_Warning, 1, "%s is deprecated: use acl.util.%s", name, instead) == 0;
}

// The address of an array's first element, by NumPy's array interface; null with an exception.
PyObject *address_of(PyObject *array, const char *name) {
    PyObject *const interface = PyObject_GetAttrString(array, "__array_interface__");
    if (interface == nullptr) {
        return PyErr_Format(PyExc_TypeError, "%s args parse failed: a NumPy array is needed, not %s", name,
                            Py_TYPE(array)->tp_name);
    }
    PyObject *const data = PyDict_GetItemString(interface, "data");  // (address, read only)
    PyObject *const address = data == nullptr ? nullptr : PySequence_GetItem(data, 0);
    Py_DECREF(interface);
    if (address == nullptr && PyErr_Occurred() == nullptr) {
        PyErr_Format(PyExc_ValueError, "%s: the array has no address", name);
    }
    return address;
}

PyObject *numpy_to_ptr(PyObject *, PyObject *args) {
    const char *const name = "acl.util.numpy_to_ptr";
    PyObject *array = nullptr;
    return parse(args, name, "O", &array) && warn(name, "bytes_to_ptr") ? address_of(array, name) : nullptr;
}

PyObject *numpy_contiguous_to_ptr(PyObject *, PyObject *args) {
    const char *const name = "acl.util.numpy_contiguous_to_ptr";
    PyObject *array = nullptr;
    if (!parse(args, name, "O", &array) || !warn(name, "bytes_to_ptr")) {
        return nullptr;
    }
    PyObject *const numpy = PyImport_ImportModule("numpy");
    PyObject *const contiguous =
        numpy == nullptr ? nullptr : PyObject_CallMethod(numpy, "ascontiguousarray", "O", array);
    Py_XDECREF(numpy);
    if (contiguous == nullptr) {
        return nullptr;
    }
    PyObject *const address = address_of(contiguous, name);
    if (address == nullptr) {
        Py_DECREF(contiguous);
        return nullptr;
    }
    return tuple_of(address, contiguous);
}

// NumPy's numbers of types; the bytes of one element.
const char *dtype_name(int number) {
    switch (number) {
        case 0: return "bool";
        case 1: return "int8";
        case 2: return "uint8";
        case 3: return "int16";
        case 4: return "uint16";
        case 5: return "int32";
        case 6: return "uint32";
        case 7: return "int64";
        case 8: return "uint64";
        case 11: return "float32";
        case 12: return "float64";
        case 23: return "float16";
        default: return nullptr;
    }
}

// An array on foreign memory, which must outlive it.
PyObject *ptr_to_numpy(PyObject *, PyObject *args) {
    const char *const name = "acl.util.ptr_to_numpy";
    unsigned long pointer = 0;
    PyObject *shape = nullptr;
    int number = 0;
    if (!parse(args, name, "kO!i", &pointer, &PyTuple_Type, &shape, &number) || !warn(name, "ptr_to_bytes")) {
        return nullptr;
    }
    if (dtype_name(number) == nullptr) {
        return PyErr_Format(PyExc_ValueError, "%s: %d is no number of a NumPy type", name, number);
    }
    PyObject *const numpy = PyImport_ImportModule("numpy");
    PyObject *const dtype = numpy == nullptr ? nullptr : PyObject_CallMethod(numpy, "dtype", "s", dtype_name(number));
    PyObject *const itemsize = dtype == nullptr ? nullptr : PyObject_GetAttrString(dtype, "itemsize");
    PyObject *result = nullptr;
    if (itemsize != nullptr) {
        Py_ssize_t bytes = PyLong_AsSsize_t(itemsize);
        for (Py_ssize_t i = 0; i < PyTuple_Size(shape); ++i) {
            bytes *= PyLong_AsSsize_t(PyTuple_GetItem(shape, i));
        }
        PyObject *const memory = PyErr_Occurred() != nullptr
                                     ? nullptr
                                     : PyMemoryView_FromMemory(reinterpret_cast<char *>(pointer), bytes, PyBUF_WRITE);
        PyObject *const flat =
            memory == nullptr ? nullptr : PyObject_CallMethod(numpy, "frombuffer", "OO", memory, dtype);
        result = flat == nullptr ? nullptr : PyObject_CallMethod(flat, "reshape", "O", shape);
        Py_XDECREF(memory);
        Py_XDECREF(flat);
    }
    Py_XDECREF(itemsize);
    Py_XDECREF(dtype);
    Py_XDECREF(numpy);
    return result;
}

// ---- threads ----

struct Call {
    PyObject *function, *list;
};

void *run(void *data) {
    const PyGILState_STATE lock = PyGILState_Ensure();
    auto *const call = static_cast<Call *>(data);
    PyObject *const result = PyObject_CallFunctionObjArgs(call->function, call->list, nullptr);
    if (result == nullptr) {
        PyErr_WriteUnraisable(call->function);
    }
    Py_XDECREF(result);
    Py_DECREF(call->function);
    Py_DECREF(call->list);
    delete call;
    PyGILState_Release(lock);
    return nullptr;
}

std::map<unsigned long, pthread_t> threads;  // that were started and not stopped; under the interpreter's lock

PyObject *start_thread(PyObject *, PyObject *args) {
    PyObject *function = nullptr, *list = nullptr;
    if (!parse(args, "acl.util.start_thread", "OO!", &function, &PyList_Type, &list)) {
        return nullptr;
    }
    Py_INCREF(function);
    Py_INCREF(list);
    auto *const call = new Call{function, list};
    pthread_t thread{};
    if (pthread_create(&thread, nullptr, run, call) != 0) {
        Py_DECREF(function);
        Py_DECREF(list);
        delete call;
        return tuple_of(0UL, ACL_ERROR_FAILURE);
    }
    threads[thread] = thread;
    return tuple_of(static_cast<unsigned long>(thread), ACL_SUCCESS);
}

// Waits for the end of the thread's function.
PyObject *stop_thread(PyObject *, PyObject *args) {
    unsigned long number = 0;
    if (!parse(args, "acl.util.stop_thread", "k", &number)) {
        return nullptr;
    }
    const auto found = threads.find(number);
    if (found == threads.end()) {
        return object_of(ACL_ERROR_INVALID_PARAM);
    }
    const pthread_t thread = found->second;
    threads.erase(found);
    PyThreadState *const state = PyEval_SaveThread();
    const int ended = pthread_join(thread, nullptr);
    PyEval_RestoreThread(state);
    return object_of(ended == 0 ? ACL_SUCCESS : ACL_ERROR_FAILURE);
}

}  // namespace

std::vector<PyMethodDef> util_functions() {
    return {
        {"acl.util.bytes_to_ptr", bytes_to_ptr, METH_VARARGS, "(bytes) -> ptr; the bytes must live on"},
        {"acl.util.ptr_to_bytes", ptr_to_bytes, METH_VARARGS, "(ptr, size) -> bytes, a copy"},
        {"acl.util.numpy_to_ptr", numpy_to_ptr, METH_VARARGS, "(array) -> ptr; deprecated"},
        {"acl.util.numpy_contiguous_to_ptr", numpy_contiguous_to_ptr, METH_VARARGS,
         "(array) -> (ptr, array); deprecated"},
        {"acl.util.ptr_to_numpy", ptr_to_numpy, METH_VARARGS, "(ptr, shape, NumPy's type number) -> array; deprecated"},
        {"acl.util.start_thread", start_thread, METH_VARARGS, "(function, list) -> (thread, ret)"},
        {"acl.util.stop_thread", stop_thread, METH_VARARGS, "(thread) -> ret"},
    };
}

}  // namespace pyacl
