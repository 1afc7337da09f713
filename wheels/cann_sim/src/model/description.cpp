// libascendcl.so: aclmdlDesc, what a model says of its inputs and outputs.

#include <algorithm>
#include <cstring>

#include "model/models.h"
#include "runtime/state.h"

using cann_sim::fail;

namespace {

// An input or output as the C interface tells it.
struct Tensor {
    std::string name;
    aclDataType dtype;
    aclFormat format;
    std::vector<int64_t> dims;
    size_t size;
};

Tensor tensor_of(const cann_sim_executor_tensor &tensor, aclFormat format) {
    return {tensor.name,
            static_cast<aclDataType>(tensor.dtype),
            format,
            {tensor.dims, tensor.dims + tensor.rank},
            static_cast<size_t>(tensor.size)};
}

// ATC takes four dimensions as NCHW unless it is told otherwise.
aclFormat format_of(const cann_sim_executor_tensor &tensor) {
    return tensor.rank == 4 ? ACL_FORMAT_NCHW : ACL_FORMAT_ND;
}

}  // namespace

struct aclmdlDesc {
    std::shared_ptr<cann_sim::ModelFile> file;
    std::weak_ptr<cann_sim::Model> model;  // empty where the description is a file's
    std::vector<Tensor> inputs, outputs;
};

namespace {

void describe(aclmdlDesc &desc, const std::shared_ptr<cann_sim::ModelFile> &file) {
    const cann_sim_executor_info &info = file->info();
    desc.file = file;
    desc.model.reset();
    desc.inputs.clear();
    desc.outputs.clear();
    for (uint32_t i = 0; i < info.num_inputs; ++i) {
        const bool aipp = std::any_of(info.aipp, info.aipp + info.num_aipp,
                                      [&](const cann_sim_executor_aipp &entry) { return entry.input == i; });
        desc.inputs.push_back(tensor_of(info.inputs[i], aipp ? ACL_FORMAT_NHWC : format_of(info.inputs[i])));
    }
    if (cann_sim::has_gears(info)) {
        const uint32_t values = info.gears[info.largest_gear].num_values;
        desc.inputs.push_back({ACL_DYNAMIC_TENSOR_NAME, ACL_INT64, ACL_FORMAT_ND, {values}, values * sizeof(int64_t)});
    }
    for (uint32_t i = 0; i < info.num_outputs; ++i) {
        desc.outputs.push_back(tensor_of(info.outputs[i], format_of(info.outputs[i])));
    }
}

aclError describe_source(aclmdlDesc *desc, const cann_sim::Source &source) {
    std::shared_ptr<cann_sim::ModelFile> file;
    const aclError read = cann_sim::read_model(source, &file);
    if (read == ACL_SUCCESS) {
        describe(*desc, file);
    }
    return read;
}

const Tensor *find(const std::vector<Tensor> &tensors, size_t index) {
    return index < tensors.size() ? &tensors[index] : nullptr;
}

const Tensor *input_of(const aclmdlDesc *desc, size_t index) {
    return desc == nullptr ? nullptr : find(desc->inputs, index);
}

const Tensor *output_of(const aclmdlDesc *desc, size_t index) {
    return desc == nullptr ? nullptr : find(desc->outputs, index);
}

aclError no_tensor(const char *call, size_t index) {
    return fail(ACL_ERROR_INVALID_PARAM,
                std::string("EH0001: ") + call + ": the description is null or has no index " + std::to_string(index));
}

void write_dims(const std::string &name, const int64_t *dims, size_t count, aclmdlIODims *result) {
    std::memset(result, 0, sizeof *result);
    std::snprintf(result->name, sizeof result->name, "%s", name.c_str());
    result->dimCount = std::min<size_t>(count, ACL_MAX_DIM_CNT);
    std::copy_n(dims, result->dimCount, result->dims);
}

aclError get_dims(const Tensor *tensor, const char *call, size_t index, aclmdlIODims *result) {
    if (tensor == nullptr || result == nullptr) {
        return no_tensor(call, index);
    }
    write_dims(tensor->name, tensor->dims.data(), tensor->dims.size(), result);
    return ACL_SUCCESS;
}

aclError get_index(const std::vector<Tensor> *tensors, const char *call, const char *name, size_t *index) {
    if (tensors == nullptr || name == nullptr || index == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, std::string("EH0002: ") + call + ": an argument is null");
    }
    for (size_t i = 0; i < tensors->size(); ++i) {
        if ((*tensors)[i].name == name) {
            *index = i;
            return ACL_SUCCESS;
        }
    }
    return fail(ACL_ERROR_INVALID_PARAM, std::string("EH0001: ") + call + ": the model has no tensor " + name);
}

// The gears of a description if they are of this kind.
const cann_sim_executor_info *gears_of(const aclmdlDesc *desc, int32_t kind) {
    return desc != nullptr && desc->file != nullptr && desc->file->info().gear_kind == kind ? &desc->file->info()
                                                                                            : nullptr;
}

aclError no_description(const char *call) {
    return fail(ACL_ERROR_INVALID_PARAM,
                std::string("EH0002: ") + call + ": the description or the place for the result is null");
}

}  // namespace

SIM_API aclmdlDesc *aclmdlCreateDesc() try { return new aclmdlDesc; }
SIM_CATCH

SIM_API aclError aclmdlDestroyDesc(aclmdlDesc *desc) try {
    delete desc;
    return desc == nullptr ? ACL_ERROR_INVALID_PARAM : ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclmdlGetDesc(aclmdlDesc *desc, uint32_t id) try {
    if (desc == nullptr) {
        return no_description("aclmdlGetDesc");
    }
    std::shared_ptr<cann_sim::Model> model;
    const aclError found = cann_sim::find_model(id, &model);
    if (found == ACL_SUCCESS) {
        describe(*desc, model->file);
        desc->model = model;
    }
    return found;
}
SIM_CATCH

SIM_API aclError aclmdlGetDescFromFile(aclmdlDesc *desc, const char *path) try {
    return desc == nullptr || path == nullptr ? no_description("aclmdlGetDescFromFile") : describe_source(desc, {path});
}
SIM_CATCH
SIM_API aclError aclmdlGetDescFromMem(aclmdlDesc *desc, const void *data, size_t size) try {
    return desc == nullptr || data == nullptr ? no_description("aclmdlGetDescFromMem")
                                              : describe_source(desc, {"", data, size});
}
SIM_CATCH

SIM_API size_t aclmdlGetNumInputs(aclmdlDesc *desc) try { return desc == nullptr ? 0 : desc->inputs.size(); }
SIM_CATCH
SIM_API size_t aclmdlGetNumOutputs(aclmdlDesc *desc) try { return desc == nullptr ? 0 : desc->outputs.size(); }
SIM_CATCH

SIM_API size_t aclmdlGetInputSizeByIndex(aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = input_of(desc, index);
    return tensor == nullptr ? 0 : tensor->size;
}
SIM_CATCH
SIM_API size_t aclmdlGetOutputSizeByIndex(aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = output_of(desc, index);
    return tensor == nullptr ? 0 : tensor->size;
}
SIM_CATCH

SIM_API aclError aclmdlGetInputDims(const aclmdlDesc *desc, size_t index, aclmdlIODims *dims) try {
    return get_dims(input_of(desc, index), "aclmdlGetInputDims", index, dims);
}
SIM_CATCH
// They differ for AIPP inputs of YUV only, which are not simulated.
SIM_API aclError aclmdlGetInputDimsV2(const aclmdlDesc *desc, size_t index, aclmdlIODims *dims) try {
    return get_dims(input_of(desc, index), "aclmdlGetInputDimsV2", index, dims);
}
SIM_CATCH
SIM_API aclError aclmdlGetOutputDims(const aclmdlDesc *desc, size_t index, aclmdlIODims *dims) try {
    return get_dims(output_of(desc, index), "aclmdlGetOutputDims", index, dims);
}
SIM_CATCH

// Of the gear that was set last; the largest before that.
SIM_API aclError aclmdlGetCurOutputDims(const aclmdlDesc *desc, size_t index, aclmdlIODims *dims) try {
    const Tensor *const tensor = output_of(desc, index);
    if (tensor == nullptr || dims == nullptr) {
        return no_tensor("aclmdlGetCurOutputDims", index);
    }
    const std::shared_ptr<cann_sim::Model> model = desc->model.lock();
    const cann_sim_executor_info &info = desc->file->info();
    const cann_sim_executor_tensor &current =
        info.gears[model == nullptr ? info.largest_gear : model->gear.load()].outputs[index];
    write_dims(tensor->name, current.dims, current.rank, dims);
    return ACL_SUCCESS;
}
SIM_CATCH

// Every dimension is fixed or has gears: ranges are of models whose shapes are known at run time only.
SIM_API aclError aclmdlGetInputDimsRange(const aclmdlDesc *desc, size_t index, aclmdlIODimsRange *range) try {
    if (input_of(desc, index) == nullptr || range == nullptr) {
        return no_tensor("aclmdlGetInputDimsRange", index);
    }
    std::memset(range, 0, sizeof *range);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API const char *aclmdlGetInputNameByIndex(const aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = input_of(desc, index);
    return tensor == nullptr ? "" : tensor->name.c_str();
}
SIM_CATCH
SIM_API const char *aclmdlGetOutputNameByIndex(const aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = output_of(desc, index);
    return tensor == nullptr ? "" : tensor->name.c_str();
}
SIM_CATCH

SIM_API aclFormat aclmdlGetInputFormat(const aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = input_of(desc, index);
    return tensor == nullptr ? ACL_FORMAT_UNDEFINED : tensor->format;
} catch (...) {
    return ACL_FORMAT_UNDEFINED;
}
SIM_API aclFormat aclmdlGetOutputFormat(const aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = output_of(desc, index);
    return tensor == nullptr ? ACL_FORMAT_UNDEFINED : tensor->format;
} catch (...) {
    return ACL_FORMAT_UNDEFINED;
}

SIM_API aclDataType aclmdlGetInputDataType(const aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = input_of(desc, index);
    return tensor == nullptr ? ACL_DT_UNDEFINED : tensor->dtype;
} catch (...) {
    return ACL_DT_UNDEFINED;
}
SIM_API aclDataType aclmdlGetOutputDataType(const aclmdlDesc *desc, size_t index) try {
    const Tensor *const tensor = output_of(desc, index);
    return tensor == nullptr ? ACL_DT_UNDEFINED : tensor->dtype;
} catch (...) {
    return ACL_DT_UNDEFINED;
}

SIM_API aclError aclmdlGetInputIndexByName(const aclmdlDesc *desc, const char *name, size_t *index) try {
    return get_index(desc == nullptr ? nullptr : &desc->inputs, "aclmdlGetInputIndexByName", name, index);
}
SIM_CATCH
SIM_API aclError aclmdlGetOutputIndexByName(const aclmdlDesc *desc, const char *name, size_t *index) try {
    return get_index(desc == nullptr ? nullptr : &desc->outputs, "aclmdlGetOutputIndexByName", name, index);
}
SIM_CATCH

// A model of cann_sim has no names that were shortened.
SIM_API const char *aclmdlGetTensorRealName(const aclmdlDesc *desc, const char *name) try {
    size_t index = 0;
    const bool known = desc != nullptr && name != nullptr &&
                       (get_index(&desc->inputs, "aclmdlGetTensorRealName", name, &index) == ACL_SUCCESS ||
                        get_index(&desc->outputs, "aclmdlGetTensorRealName", name, &index) == ACL_SUCCESS);
    return known ? name : nullptr;
}
SIM_CATCH

SIM_API const char *aclmdlGetOpAttr(aclmdlDesc *, const char *, const char *) try {
    fail(ACL_ERROR_FEATURE_UNSUPPORTED, "cann_sim: an OM of cann_sim has no attributes of operators");
    return nullptr;
}
SIM_CATCH

// ---- gears ----

SIM_API aclError aclmdlGetDynamicBatch(const aclmdlDesc *desc, aclmdlBatch *batch) try {
    if (desc == nullptr || batch == nullptr) {
        return no_description("aclmdlGetDynamicBatch");
    }
    std::memset(batch, 0, sizeof *batch);
    if (const cann_sim_executor_info *info = gears_of(desc, CANN_SIM_EXECUTOR_BATCH)) {
        batch->batchCount = std::min<size_t>(info->num_gears, ACL_MAX_BATCH_NUM);
        for (size_t i = 0; i < batch->batchCount; ++i) {
            batch->batch[i] = static_cast<uint64_t>(info->gears[i].values[0]);
        }
    }
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclmdlGetDynamicHW(const aclmdlDesc *desc, size_t, aclmdlHW *hw) try {
    if (desc == nullptr || hw == nullptr) {
        return no_description("aclmdlGetDynamicHW");
    }
    std::memset(hw, 0, sizeof *hw);
    if (const cann_sim_executor_info *info = gears_of(desc, CANN_SIM_EXECUTOR_IMAGE)) {
        hw->hwCount = std::min<size_t>(info->num_gears, ACL_MAX_HW_NUM);
        for (size_t i = 0; i < hw->hwCount; ++i) {
            hw->hw[i][0] = static_cast<uint64_t>(info->gears[i].values[0]);
            hw->hw[i][1] = static_cast<uint64_t>(info->gears[i].values[1]);
        }
    }
    return ACL_SUCCESS;
}
SIM_CATCH

// The index is reserved: it must be -1.
SIM_API aclError aclmdlGetInputDynamicGearCount(const aclmdlDesc *desc, size_t index, size_t *count) try {
    if (desc == nullptr || count == nullptr) {
        return no_description("aclmdlGetInputDynamicGearCount");
    }
    if (index != static_cast<size_t>(-1)) {
        return no_tensor("aclmdlGetInputDynamicGearCount", index);
    }
    const cann_sim_executor_info *const info = gears_of(desc, CANN_SIM_EXECUTOR_DIMS);
    *count = info == nullptr ? 0 : info->num_gears;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclmdlGetInputDynamicDims(const aclmdlDesc *desc, size_t index, aclmdlIODims *dims, size_t count) try {
    if (desc == nullptr || dims == nullptr) {
        return no_description("aclmdlGetInputDynamicDims");
    }
    const cann_sim_executor_info *const info = gears_of(desc, CANN_SIM_EXECUTOR_DIMS);
    const size_t gears = info == nullptr ? 0 : info->num_gears;
    if (index != static_cast<size_t>(-1) || count < gears) {
        return fail(ACL_ERROR_INVALID_PARAM,
                    "EH0001: aclmdlGetInputDynamicDims: the index must be -1 and there must be "
                    "room for " +
                        std::to_string(gears) + " gears");
    }
    for (size_t i = 0; i < gears; ++i) {
        write_dims("", info->gears[i].values, info->gears[i].num_values, &dims[i]);
    }
    return ACL_SUCCESS;
}
SIM_CATCH
