// The Python extension `acl` (pyACL): CANN's C interface under Python's names, as far as inference uses it.
//
// `acl.rt`, `acl.mdl`, … are importable modules. What is not here is an AttributeError that says so.

#include <cstring>
#include <string>

// Python has the older functions of C still, which its templates call.
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#include "pyacl/call.h"

// The headers of torch_npu do not have it.
extern "C" aclError finalize_reference(uint64_t *count) __asm__("aclFinalizeReference");
extern "C" void cann_sim_drain_devices();

namespace pyacl {

PyObject *refuse_arguments(const char *name) {
    PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_Format(type == nullptr ? PyExc_TypeError : type, "%s args parse failed: %S", name,
                 value == nullptr ? Py_None : value);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return nullptr;
}

bool read_list(PyObject *list, const char *name, std::vector<int64_t> *values) {
    if (PyList_Check(list) == 0) {
        PyErr_Format(PyExc_TypeError, "%s args parse failed: a list is needed, not %s", name, Py_TYPE(list)->tp_name);
        return false;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
        values->push_back(PyLong_AsLongLong(PyList_GetItem(list, i)));
        if (PyErr_Occurred() != nullptr) {
            return false;
        }
    }
    return true;
}

namespace {

PyObject *get_soc_name(PyObject *, PyObject *) {
    int32_t device = 0;
    if (aclrtGetDevice(&device) != ACL_SUCCESS) {
        aclGetRecentErrMsg();  // that a device is missing is the answer
        Py_RETURN_NONE;
    }
    return object_of(aclrtGetSocName());
}

PyObject *init(PyObject *, PyObject *args) {
    const char *path = nullptr;
    return parse(args, "acl.init", "|s", &path) ? object_of(aclInit(path)) : nullptr;
}

PyObject *create_tensor_desc(PyObject *, PyObject *args) {
    int dtype = 0, format = 0;
    PyObject *list = nullptr;
    std::vector<int64_t> dims;
    if (!parse(args, "acl.create_tensor_desc", "iOi", &dtype, &list, &format) ||
        !read_list(list, "acl.create_tensor_desc", &dims)) {
        return nullptr;
    }
    return object_of(aclCreateTensorDesc(static_cast<aclDataType>(dtype), static_cast<int>(dims.size()), dims.data(),
                                         static_cast<aclFormat>(format)));
}

PyObject *app_log(PyObject *, PyObject *args) {
    int level = 0;
    const char *text = nullptr;
    if (!parse(args, "acl.app_log", "is", &level, &text)) {
        return nullptr;
    }
    aclAppLog(static_cast<aclLogLevel>(level), "app_log", "python", 0, "%s", text);
    Py_RETURN_NONE;
}

PyObject *get_version(PyObject *, PyObject *) {
    int32_t major = 0, minor = 0, patch = 0;
    const aclError ret = aclrtGetVersion(&major, &minor, &patch);
    return tuple_of(major, minor, patch, ret);
}

// Raises the AttributeError of a name that a module lacks.
PyObject *missing(PyObject *module, PyObject *name) {
    return PyErr_Format(PyExc_AttributeError,
                        "module %R has no attribute %R (cann_sim simulates what inference needs of pyACL)",
                        PyModule_GetNameObject(module), name);
}

PyMethodDef missing_definition = {"__getattr__", missing, METH_O, "Raise AttributeError."};

// Adds functions to a module. Tables live as long as the process.
int fill(PyObject *module, std::vector<PyMethodDef> functions) {
    auto &table = *new std::vector<PyMethodDef>(std::move(functions));
    for (PyMethodDef &function : table) {
        function.ml_name = std::strrchr(function.ml_name, '.') + 1;
    }
    table.push_back({nullptr, nullptr, 0, nullptr});
    PyObject *const getattr = PyCFunction_New(&missing_definition, module);
    return getattr == nullptr || PyModule_AddObject(module, "__getattr__", getattr) != 0 ||
                   PyModule_AddFunctions(module, table.data()) != 0
               ? -1
               : 0;
}

PyObject *drain_devices(PyObject *, PyObject *) {
    Py_BEGIN_ALLOW_THREADS;
    cann_sim_drain_devices();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyMethodDef drain_definition = {"drain_devices", drain_devices, METH_NOARGS, "Wait for all that is queued."};

// Arranges that Python waits, when it ends, for what is queued.
bool drain_at_exit() {
    PyObject *const atexit = PyImport_ImportModule("atexit");
    PyObject *const drain = PyCFunction_New(&drain_definition, nullptr);
    PyObject *const done =
        atexit == nullptr || drain == nullptr ? nullptr : PyObject_CallMethod(atexit, "register", "O", drain);
    Py_XDECREF(atexit);
    Py_XDECREF(drain);
    Py_XDECREF(done);
    return done != nullptr;
}

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "acl",
                          "pyACL on cann_sim's simulated CANN.",
                          -1,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

std::vector<PyMethodDef> top_functions() {
    return {
        {"acl.init", init, METH_VARARGS, "([path]) -> ret"},
        entry<&aclFinalize>("acl.finalize", "() -> ret"),
        entry<&finalize_reference, 1>("acl.finalize_reference", "() -> (count, ret)"),
        {"acl.get_soc_name", get_soc_name, METH_NOARGS, "() -> str or None"},
        {"acl.get_version", get_version, METH_NOARGS, "() -> (major, minor, patch, ret)"},
        entry<&aclGetRecentErrMsg>("acl.get_recent_err_msg", "() -> str or None; reading clears it"),
        {"acl.app_log", app_log, METH_VARARGS, "(level, text) -> None"},
        entry<&aclCreateDataBuffer>("acl.create_data_buffer", "(ptr, size) -> buffer"),
        entry<&aclDestroyDataBuffer>("acl.destroy_data_buffer", "(buffer) -> ret; the memory stays"),
        entry<&aclGetDataBufferAddr>("acl.get_data_buffer_addr", "(buffer) -> ptr"),
        entry<&aclGetDataBufferSize>("acl.get_data_buffer_size", "(buffer) -> size, in 32 bits"),
        entry<&aclGetDataBufferSizeV2>("acl.get_data_buffer_size_v2", "(buffer) -> size"),
        entry<&aclUpdateDataBuffer>("acl.update_data_buffer", "(buffer, ptr, size) -> ret"),
        entry<&aclDataTypeSize>("acl.data_type_size", "(dtype) -> bytes"),
        {"acl.create_tensor_desc", create_tensor_desc, METH_VARARGS, "(dtype, dims, format) -> desc"},
        entry<&aclDestroyTensorDesc>("acl.destroy_tensor_desc", "(desc) -> None"),
        entry<&aclGetTensorDescType>("acl.get_tensor_desc_type", "(desc) -> dtype"),
        entry<&aclGetTensorDescFormat>("acl.get_tensor_desc_format", "(desc) -> format"),
        entry<&aclGetTensorDescSize>("acl.get_tensor_desc_size", "(desc) -> bytes"),
        entry<&aclGetTensorDescElementCount>("acl.get_tensor_desc_element_count", "(desc) -> elements"),
        entry<&aclGetTensorDescNumDims>("acl.get_tensor_desc_num_dims", "(desc) -> dimensions"),
        entry<&aclGetTensorDescDim>("acl.get_tensor_desc_dim", "(desc, index) -> size"),
        entry<&aclGetTensorDescDimV2, 1>("acl.get_tensor_desc_dim_v2", "(desc, index) -> (size, ret)"),
        entry<&aclGetTensorDescName>("acl.get_tensor_desc_name", "(desc) -> str"),
        entry<&aclSetTensorDescName>("acl.set_tensor_desc_name", "(desc, name) -> None"),
        entry<&aclGetTensorDescByIndex>("acl.get_tensor_desc_by_index", "(desc, index) -> desc"),
        entry<&aclFloat16ToFloat>("acl.float16_to_float", "(bits) -> float"),
        entry<&aclFloatToFloat16>("acl.float_to_float16", "(float) -> bits"),
    };
}

}  // namespace pyacl

PyMODINIT_FUNC PyInit_acl() {
    using pyacl::fill;
    PyObject *const acl = PyModule_Create(&pyacl::definition);
    if (acl == nullptr || fill(acl, pyacl::top_functions()) != 0 || !pyacl::drain_at_exit()) {
        return nullptr;
    }
    const std::pair<const char *, std::vector<PyMethodDef>> modules[] = {
        {"rt", pyacl::rt_functions()},
        {"mdl", pyacl::mdl_functions()},
        {"util", pyacl::util_functions()},
        {"op", {}},
        {"media", {}},
        {"prof", {}},
        {"blas", {}},
        {"fv", {}},
        {"himpi", {}},
    };
    PyObject *const loaded = PyImport_GetModuleDict();
    for (const auto &[name, functions] : modules) {
        const std::string full = std::string("acl.") + name;
        PyObject *const module = PyModule_New(full.c_str());
        if (module == nullptr || fill(module, functions) != 0 ||
            PyDict_SetItemString(loaded, full.c_str(), module) != 0 || PyModule_AddObject(acl, name, module) != 0) {
            return nullptr;
        }
    }
    return acl;
}
