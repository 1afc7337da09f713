// acl.mdl: models, their descriptions, data sets and runs.

#include <algorithm>

#include "model/running.h"
#include "pyacl/call.h"

namespace pyacl {

namespace {

// The C functions with the id last.
aclError load_from_file(const char *path, uint32_t *id) { return aclmdlLoadFromFile(path, id); }
aclError load_from_mem(const void *data, size_t size, uint32_t *id) { return aclmdlLoadFromMem(data, size, id); }
aclError load_from_file_with_mem(const char *path, void *work, size_t work_size, void *weights, size_t weights_size,
                                 uint32_t *id) {
    return aclmdlLoadFromFileWithMem(path, id, work, work_size, weights, weights_size);
}
aclError load_from_mem_with_mem(const void *data, size_t size, void *work, size_t work_size, void *weights,
                                size_t weights_size, uint32_t *id) {
    return aclmdlLoadFromMemWithMem(data, size, id, work, work_size, weights, weights_size);
}

PyObject *list_of(const int64_t *values, size_t count) {
    PyObject *const list = PyList_New(static_cast<Py_ssize_t>(count));
    for (size_t i = 0; list != nullptr && i < count; ++i) {
        PyList_SetItem(list, static_cast<Py_ssize_t>(i), PyLong_FromLongLong(values[i]));
    }
    return list;
}

PyObject *dict_of(const aclmdlIODims &dims) {
    return Py_BuildValue("{s:s,s:k,s:N}", "name", dims.name, "dimCount", dims.dimCount, "dims",
                         list_of(dims.dims, dims.dimCount));
}

// ({name, dimCount, dims}, ret), an empty dictionary where it failed.
template <auto Function>
PyObject *get_dims(PyObject *, PyObject *args) {
    unsigned long desc = 0, index = 0;
    if (!parse(args, "acl.mdl.get_*_dims", "kk", &desc, &index)) {
        return nullptr;
    }
    aclmdlIODims dims{};
    const aclError ret = Function(reinterpret_cast<const aclmdlDesc *>(desc), index, &dims);
    return tuple_of(ret == ACL_SUCCESS ? dict_of(dims) : PyDict_New(), ret);
}

PyObject *get_dynamic_batch(PyObject *, PyObject *args) {
    unsigned long desc = 0;
    if (!parse(args, "acl.mdl.get_dynamic_batch", "k", &desc)) {
        return nullptr;
    }
    aclmdlBatch batch{};
    const aclError ret = aclmdlGetDynamicBatch(reinterpret_cast<const aclmdlDesc *>(desc), &batch);
    std::vector<int64_t> values(batch.batch, batch.batch + batch.batchCount);
    return tuple_of(
        Py_BuildValue("{s:k,s:N}", "batchCount", batch.batchCount, "batch", list_of(values.data(), values.size())),
        ret);
}

PyObject *get_dynamic_hw(PyObject *, PyObject *args) {
    unsigned long desc = 0;
    long index = -1;
    if (!parse(args, "acl.mdl.get_dynamic_hw", "kl", &desc, &index)) {
        return nullptr;
    }
    aclmdlHW hw{};
    const aclError ret =
        aclmdlGetDynamicHW(reinterpret_cast<const aclmdlDesc *>(desc), static_cast<size_t>(index), &hw);
    PyObject *const list = PyList_New(static_cast<Py_ssize_t>(hw.hwCount));
    for (size_t i = 0; list != nullptr && i < hw.hwCount; ++i) {
        PyList_SetItem(list, static_cast<Py_ssize_t>(i), Py_BuildValue("[kk]", hw.hw[i][0], hw.hw[i][1]));
    }
    return tuple_of(Py_BuildValue("{s:k,s:N}", "hwCount", hw.hwCount, "hw", list), ret);
}

PyObject *get_input_dynamic_dims(PyObject *, PyObject *args) {
    constexpr unsigned long kMostGears = 4096;
    unsigned long desc = 0, count = 0;
    long index = -1;
    if (!parse(args, "acl.mdl.get_input_dynamic_dims", "klk", &desc, &index, &count)) {
        return nullptr;
    }
    Py_INCREF(Py_None);
    if (count > kMostGears) {
        return tuple_of(Py_None, ACL_ERROR_INVALID_PARAM);
    }
    std::vector<aclmdlIODims> dims(std::max(count, 1UL));
    const aclError ret = aclmdlGetInputDynamicDims(reinterpret_cast<const aclmdlDesc *>(desc),
                                                   static_cast<size_t>(index), dims.data(), count);
    if (ret != ACL_SUCCESS) {
        return tuple_of(Py_None, ret);
    }
    Py_DECREF(Py_None);
    PyObject *const list = PyList_New(static_cast<Py_ssize_t>(count));
    for (size_t i = 0; list != nullptr && i < count; ++i) {
        PyList_SetItem(list, static_cast<Py_ssize_t>(i), dict_of(dims[i]));
    }
    return tuple_of(list, ret);
}

PyObject *set_input_dynamic_dims(PyObject *, PyObject *args) {
    unsigned int id = 0;
    unsigned long dataset = 0, index = 0;
    PyObject *dict = nullptr;
    const char *const name = "acl.mdl.set_input_dynamic_dims";
    if (!parse(args, name, "IkkO!", &id, &dataset, &index, &PyDict_Type, &dict)) {
        return nullptr;
    }
    PyObject *const count = PyDict_GetItemString(dict, "dimCount"), *const list = PyDict_GetItemString(dict, "dims");
    std::vector<int64_t> values;
    if (count == nullptr || list == nullptr) {
        return PyErr_Format(PyExc_KeyError, "%s: the dictionary needs name, dimCount and dims", name);
    }
    if (!read_list(list, name, &values)) {
        return nullptr;
    }
    aclmdlIODims dims{};
    dims.dimCount = PyLong_AsSize_t(count);
    if (PyErr_Occurred() != nullptr) {
        return nullptr;
    }
    if (dims.dimCount > values.size() || dims.dimCount > ACL_MAX_DIM_CNT) {
        return PyErr_Format(PyExc_ValueError, "%s: dimCount is %zu and dims has %zu", name, dims.dimCount,
                            values.size());
    }
    std::copy_n(values.begin(), dims.dimCount, dims.dims);
    return object_of(aclmdlSetInputDynamicDims(id, reinterpret_cast<aclmdlDataset *>(dataset), index, &dims));
}

// pyACL returns the data set, too.
PyObject *add_dataset_buffer(PyObject *, PyObject *args) {
    unsigned long dataset = 0, buffer = 0;
    if (!parse(args, "acl.mdl.add_dataset_buffer", "kk", &dataset, &buffer)) {
        return nullptr;
    }
    const aclError ret =
        aclmdlAddDatasetBuffer(reinterpret_cast<aclmdlDataset *>(dataset), reinterpret_cast<aclDataBuffer *>(buffer));
    return tuple_of(dataset, ret);
}

PyObject *set_dataset_tensor_desc(PyObject *, PyObject *args) {
    unsigned long dataset = 0, desc = 0, index = 0;
    if (!parse(args, "acl.mdl.set_dataset_tensor_desc", "kkk", &dataset, &desc, &index)) {
        return nullptr;
    }
    const aclError ret = aclmdlSetDatasetTensorDesc(reinterpret_cast<aclmdlDataset *>(dataset),
                                                    reinterpret_cast<aclTensorDesc *>(desc), index);
    return tuple_of(dataset, ret);
}

PyObject *get_first_aipp_info(PyObject *, PyObject *args) {
    unsigned int id = 0;
    unsigned long index = 0;
    if (!parse(args, "acl.mdl.get_first_aipp_info", "Ik", &id, &index)) {
        return nullptr;
    }
    static aclAippInfo info;  // 600 KB, and the lock is held
    const aclError ret = aclmdlGetFirstAippInfo(id, index, &info);
    if (ret != ACL_SUCCESS) {
        return tuple_of(PyDict_New(), ret);
    }
    PyObject *const dict = Py_BuildValue(
        "{s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:i,s:i,s:k,s:k}", "input_format",
        info.inputFormat, "src_image_size_w", info.srcImageSizeW, "src_image_size_h", info.srcImageSizeH,
        "rbuv_swap_switch", info.rbuvSwapSwitch, "csc_switch", info.cscSwitch, "mean_chn0", info.meanChn0, "mean_chn1",
        info.meanChn1, "mean_chn2", info.meanChn2, "mean_chn3", info.meanChn3, "min_chn0", info.minChn0, "min_chn1",
        info.minChn1, "min_chn2", info.minChn2, "min_chn3", info.minChn3, "var_reci_chn0", info.varReciChn0,
        "var_reci_chn1", info.varReciChn1, "var_reci_chn2", info.varReciChn2, "var_reci_chn3", info.varReciChn3,
        "src_format", info.srcFormat, "src_datatype", info.srcDatatype, "src_dim_num", info.srcDimNum, "shape_count",
        info.shapeCount);
    return tuple_of(dict, ret);
}

}  // namespace

std::vector<PyMethodDef> mdl_functions() {
    return {
        entry<&load_from_file, 1>("acl.mdl.load_from_file", "(path) -> (id, ret)"),
        entry<&load_from_mem, 1>("acl.mdl.load_from_mem", "(ptr, size) -> (id, ret)"),
        entry<&load_from_file_with_mem, 1>("acl.mdl.load_from_file_with_mem",
                                           "(path, work, work_size, weight, weight_size) -> (id, ret)"),
        entry<&load_from_mem_with_mem, 1>("acl.mdl.load_from_mem_with_mem",
                                          "(ptr, size, work, work_size, weight, weight_size) -> (id, ret)"),
        entry<&aclmdlUnload>("acl.mdl.unload", "(id) -> ret"),
        entry<&aclmdlQuerySize, 2>("acl.mdl.query_size", "(path) -> (work, weight, ret)"),
        entry<&aclmdlQuerySizeFromMem, 2>("acl.mdl.query_size_from_mem", "(ptr, size) -> (work, weight, ret)"),
        entry<&aclmdlCreateDesc>("acl.mdl.create_desc", "() -> desc"),
        entry<&aclmdlDestroyDesc>("acl.mdl.destroy_desc", "(desc) -> ret"),
        entry<&aclmdlGetDesc>("acl.mdl.get_desc", "(desc, id) -> ret"),
        entry<&aclmdlGetDescFromFile>("acl.mdl.get_desc_from_file", "(desc, path) -> ret"),
        entry<&aclmdlGetDescFromMem>("acl.mdl.get_desc_from_mem", "(desc, ptr, size) -> ret"),
        entry<&aclmdlGetNumInputs>("acl.mdl.get_num_inputs", "(desc) -> inputs, with that of gears"),
        entry<&aclmdlGetNumOutputs>("acl.mdl.get_num_outputs", "(desc) -> outputs"),
        entry<&aclmdlGetInputSizeByIndex>("acl.mdl.get_input_size_by_index", "(desc, index) -> bytes"),
        entry<&aclmdlGetOutputSizeByIndex>("acl.mdl.get_output_size_by_index", "(desc, index) -> bytes"),
        entry<&aclmdlGetInputNameByIndex>("acl.mdl.get_input_name_by_index", "(desc, index) -> str"),
        entry<&aclmdlGetOutputNameByIndex>("acl.mdl.get_output_name_by_index", "(desc, index) -> str"),
        entry<&aclmdlGetInputFormat>("acl.mdl.get_input_format", "(desc, index) -> format"),
        entry<&aclmdlGetOutputFormat>("acl.mdl.get_output_format", "(desc, index) -> format"),
        entry<&aclmdlGetInputDataType>("acl.mdl.get_input_data_type", "(desc, index) -> dtype"),
        entry<&aclmdlGetOutputDataType>("acl.mdl.get_output_data_type", "(desc, index) -> dtype"),
        {"acl.mdl.get_input_dims", get_dims<&aclmdlGetInputDims>, METH_VARARGS, "(desc, index) -> (dims, ret)"},
        {"acl.mdl.get_input_dims_v2", get_dims<&aclmdlGetInputDimsV2>, METH_VARARGS, "(desc, index) -> (dims, ret)"},
        {"acl.mdl.get_output_dims", get_dims<&aclmdlGetOutputDims>, METH_VARARGS, "(desc, index) -> (dims, ret)"},
        {"acl.mdl.get_cur_output_dims", get_dims<&aclmdlGetCurOutputDims>, METH_VARARGS,
         "(desc, index) -> (dims, ret)"},
        entry<&aclmdlGetInputIndexByName, 1>("acl.mdl.get_input_index_by_name", "(desc, name) -> (index, ret)"),
        entry<&aclmdlGetOutputIndexByName, 1>("acl.mdl.get_output_index_by_name", "(desc, name) -> (index, ret)"),
        entry<&aclmdlGetTensorRealName>("acl.mdl.get_tensor_real_name", "(desc, name) -> str or None"),
        entry<&aclmdlGetOpAttr>("acl.mdl.get_op_attr", "(desc, operator, attribute) -> str or None"),
        {"acl.mdl.get_dynamic_batch", get_dynamic_batch, METH_VARARGS, "(desc) -> ({batchCount, batch}, ret)"},
        {"acl.mdl.get_dynamic_hw", get_dynamic_hw, METH_VARARGS, "(desc, -1) -> ({hwCount, hw}, ret)"},
        entry<&aclmdlGetInputDynamicGearCount, 1>("acl.mdl.get_input_dynamic_gear_count", "(desc, -1) -> (gears, ret)"),
        {"acl.mdl.get_input_dynamic_dims", get_input_dynamic_dims, METH_VARARGS, "(desc, -1, gears) -> (list, ret)"},
        entry<&aclmdlSetDynamicBatchSize>("acl.mdl.set_dynamic_batch_size", "(id, dataset, index, batch) -> ret"),
        entry<&aclmdlSetDynamicHWSize>("acl.mdl.set_dynamic_hw_size", "(id, dataset, index, height, width) -> ret"),
        {"acl.mdl.set_input_dynamic_dims", set_input_dynamic_dims, METH_VARARGS, "(id, dataset, index, dims) -> ret"},
        entry<&aclmdlCreateDataset>("acl.mdl.create_dataset", "() -> dataset"),
        entry<&aclmdlDestroyDataset>("acl.mdl.destroy_dataset", "(dataset) -> ret"),
        {"acl.mdl.add_dataset_buffer", add_dataset_buffer, METH_VARARGS, "(dataset, buffer) -> (dataset, ret)"},
        entry<&aclmdlGetDatasetNumBuffers>("acl.mdl.get_dataset_num_buffers", "(dataset) -> buffers"),
        entry<&aclmdlGetDatasetBuffer>("acl.mdl.get_dataset_buffer", "(dataset, index) -> buffer"),
        {"acl.mdl.set_dataset_tensor_desc", set_dataset_tensor_desc, METH_VARARGS,
         "(dataset, desc, index) -> (dataset, ret)"},
        entry<&aclmdlGetDatasetTensorDesc>("acl.mdl.get_dataset_tensor_desc", "(dataset, index) -> desc"),
        entry<&aclmdlExecute>("acl.mdl.execute", "(id, inputs, outputs) -> ret"),
        entry<&aclmdlExecuteAsync>("acl.mdl.execute_async", "(id, inputs, outputs, stream) -> ret"),
        entry<&aclmdlCreateAIPP>("acl.mdl.create_aipp", "(batch) -> set"),
        entry<&aclmdlDestroyAIPP>("acl.mdl.destroy_aipp", "(set) -> ret"),
        entry<&aclmdlSetAIPPInputFormat>("acl.mdl.set_aipp_input_format", "(set, format) -> ret"),
        entry<&aclmdlSetAIPPCscParams>("acl.mdl.set_aipp_csc_params",
                                       "(set, switch, 9 of the matrix, 6 biases) -> ret"),
        entry<&aclmdlSetAIPPRbuvSwapSwitch>("acl.mdl.set_aipp_rbuv_swap_switch", "(set, switch) -> ret"),
        entry<&aclmdlSetAIPPAxSwapSwitch>("acl.mdl.set_aipp_ax_swap_switch", "(set, switch) -> ret"),
        entry<&aclmdlSetAIPPSrcImageSize>("acl.mdl.set_aipp_src_image_size", "(set, width, height) -> ret"),
        entry<&aclmdlSetAIPPScfParams>("acl.mdl.set_aipp_scf_params",
                                       "(set, switch, w, h, out_w, out_h, picture) -> ret"),
        entry<&aclmdlSetAIPPCropParams>("acl.mdl.set_aipp_crop_params", "(set, switch, x, y, w, h, picture) -> ret"),
        entry<&aclmdlSetAIPPPaddingParams>("acl.mdl.set_aipp_padding_params",
                                           "(set, switch, top, bottom, left, right, picture) -> ret"),
        entry<&aclmdlSetAIPPDtcPixelMean>("acl.mdl.set_aipp_dtc_pixel_mean", "(set, 4 means, picture) -> ret"),
        entry<&aclmdlSetAIPPDtcPixelMin>("acl.mdl.set_aipp_dtc_pixel_min", "(set, 4 minima, picture) -> ret"),
        entry<&aclmdlSetAIPPPixelVarReci>("acl.mdl.set_aipp_pixel_var_reci", "(set, 4 factors, picture) -> ret"),
        entry<&aclmdlSetInputAIPP>("acl.mdl.set_input_aipp", "(id, dataset, index, set) -> ret"),
        entry<&aclmdlSetAIPPByInputIndex>("acl.mdl.set_aipp_by_input_index", "(id, dataset, index, set) -> ret"),
        entry<&aclmdlGetAippType, 2>("acl.mdl.get_aipp_type", "(id, index) -> (type, attached index, ret)"),
        {"acl.mdl.get_first_aipp_info", get_first_aipp_info, METH_VARARGS, "(id, index) -> (dict, ret)"},
        entry<&aclmdlInitDump>("acl.mdl.init_dump", "() -> ret"),
        entry<&aclmdlSetDump>("acl.mdl.set_dump", "(path) -> ret"),
        entry<&aclmdlFinalizeDump>("acl.mdl.finalize_dump", "() -> ret"),
    };
}

}  // namespace pyacl
