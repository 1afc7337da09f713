// libascendcl.so: AIPP. ATC's simulation has static AIPP; a set of parameters for a run (dynamic AIPP) can be filled, and
// no model takes it.

#include <algorithm>
#include <cstring>

#include "model/dataset.h"
#include "model/models.h"
#include "runtime/state.h"

using cann_sim::fail;

struct aclmdlAIPP {
    uint64_t batch;
};

namespace {

aclError check_set(const aclmdlAIPP *set, const char *call, bool valid = true) {
    return set != nullptr && valid ? ACL_SUCCESS
                                   : fail(ACL_ERROR_INVALID_PARAM, std::string("EH0001: ") + call +
                                                                       ": the set is null or a value is out of range");
}

bool is_switch(int8_t value) { return value == 0 || value == 1; }

const cann_sim_executor_aipp *aipp_of(const cann_sim_executor_info &info, size_t index) {
    const auto *const end = info.aipp + info.num_aipp;
    const auto *const found =
        std::find_if(info.aipp, end, [&](const cann_sim_executor_aipp &entry) { return entry.input == index; });
    return found == end ? nullptr : found;
}

aclError find_input(uint32_t id, size_t index, const char *call, std::shared_ptr<cann_sim::Model> *model) {
    const aclError found = cann_sim::find_model(id, model);
    if (found == ACL_SUCCESS && index >= (*model)->file->info().num_inputs) {
        return fail(ACL_ERROR_INVALID_PARAM,
                    std::string("EH0001: ") + call + ": the model has no input " + std::to_string(index));
    }
    return found;
}

aclError refuse_set(uint32_t id, const aclmdlDataset *dataset, size_t index, const aclmdlAIPP *set, const char *call) {
    if (dataset == nullptr || index >= dataset->buffers.size()) {
        return fail(ACL_ERROR_INVALID_PARAM, std::string("EH0001: ") + call + ": the data set has no such buffer");
    }
    const aclError checked = check_set(set, call);
    if (checked != ACL_SUCCESS) {
        return checked;
    }
    std::shared_ptr<cann_sim::Model> model;
    const aclError found = cann_sim::find_model(id, &model);
    if (found != ACL_SUCCESS) {
        return found;
    }
    return model->file->info().num_aipp == 0
               ? fail(cann_sim::kNoAipp, std::string("E19999: ") + call + ": the model was converted without AIPP")
               : fail(cann_sim::kAippMode,
                      std::string("E19999: ") + call + ": the model has static AIPP, which takes no parameters");
}

}  // namespace

SIM_API aclmdlAIPP *aclmdlCreateAIPP(uint64_t batch) try { return batch == 0 ? nullptr : new aclmdlAIPP{batch}; }
SIM_CATCH
SIM_API aclError aclmdlDestroyAIPP(const aclmdlAIPP *set) {
    delete set;
    return set == nullptr ? ACL_ERROR_INVALID_PARAM : ACL_SUCCESS;
}

// The set in device memory: 64 bytes, and 96 per picture.
SIM_API aclError aclmdlGetAippDataSize(uint64_t batch, size_t *size) try {
    if (batch == 0 || size == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM,
                    "EH0001: aclmdlGetAippDataSize: the batch is 0 or the result's place null");
    }
    *size = 64 + 96 * batch;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclmdlSetAIPPInputFormat(aclmdlAIPP *set, aclAippInputFormat format) try {
    return check_set(set, "aclmdlSetAIPPInputFormat", format >= ACL_YUV420SP_U8 && format <= ACL_RAW24);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPCscParams(aclmdlAIPP *set, int8_t csc, int16_t, int16_t, int16_t, int16_t, int16_t,
                                        int16_t, int16_t, int16_t, int16_t, uint8_t, uint8_t, uint8_t, uint8_t, uint8_t,
                                        uint8_t) try {
    return check_set(set, "aclmdlSetAIPPCscParams", is_switch(csc));
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPRbuvSwapSwitch(aclmdlAIPP *set, int8_t swap) try {
    return check_set(set, "aclmdlSetAIPPRbuvSwapSwitch", is_switch(swap));
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPAxSwapSwitch(aclmdlAIPP *set, int8_t swap) try {
    return check_set(set, "aclmdlSetAIPPAxSwapSwitch", is_switch(swap));
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPSrcImageSize(aclmdlAIPP *set, int32_t width, int32_t height) try {
    return check_set(set, "aclmdlSetAIPPSrcImageSize", width > 0 && height > 0);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPScfParams(aclmdlAIPP *set, int8_t scf, int32_t, int32_t, int32_t, int32_t,
                                        uint64_t picture) try {
    return check_set(set, "aclmdlSetAIPPScfParams", is_switch(scf) && set != nullptr && picture < set->batch);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPCropParams(aclmdlAIPP *set, int8_t crop, int32_t, int32_t, int32_t, int32_t,
                                         uint64_t picture) try {
    return check_set(set, "aclmdlSetAIPPCropParams", is_switch(crop) && set != nullptr && picture < set->batch);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPPaddingParams(aclmdlAIPP *set, int8_t padding, int32_t, int32_t, int32_t, int32_t,
                                            uint64_t picture) try {
    return check_set(set, "aclmdlSetAIPPPaddingParams", is_switch(padding) && set != nullptr && picture < set->batch);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPDtcPixelMean(aclmdlAIPP *set, int16_t, int16_t, int16_t, int16_t, uint64_t picture) try {
    return check_set(set, "aclmdlSetAIPPDtcPixelMean", set != nullptr && picture < set->batch);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPDtcPixelMin(aclmdlAIPP *set, float, float, float, float, uint64_t picture) try {
    return check_set(set, "aclmdlSetAIPPDtcPixelMin", set != nullptr && picture < set->batch);
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPPixelVarReci(aclmdlAIPP *set, float, float, float, float, uint64_t picture) try {
    return check_set(set, "aclmdlSetAIPPPixelVarReci", set != nullptr && picture < set->batch);
}
SIM_CATCH

SIM_API aclError aclmdlSetInputAIPP(uint32_t id, aclmdlDataset *dataset, size_t index, const aclmdlAIPP *set) try {
    return refuse_set(id, dataset, index, set, "aclmdlSetInputAIPP");
}
SIM_CATCH
SIM_API aclError aclmdlSetAIPPByInputIndex(uint32_t id, aclmdlDataset *dataset, size_t index,
                                           const aclmdlAIPP *set) try {
    return refuse_set(id, dataset, index, set, "aclmdlSetAIPPByInputIndex");
}
SIM_CATCH

SIM_API aclError aclmdlGetAippType(uint32_t id, size_t index, aclmdlInputAippType *type, size_t *attached) try {
    if (type == nullptr || attached == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclmdlGetAippType: the place for a result is null");
    }
    std::shared_ptr<cann_sim::Model> model;
    const aclError found = find_input(id, index, "aclmdlGetAippType", &model);
    if (found == ACL_SUCCESS) {
        *type = aipp_of(model->file->info(), index) == nullptr ? ACL_DATA_WITHOUT_AIPP : ACL_DATA_WITH_STATIC_AIPP;
        *attached = ACL_INVALID_NODE_INDEX;
    }
    return found;
}
SIM_CATCH

SIM_API aclError aclmdlGetFirstAippInfo(uint32_t id, size_t index, aclAippInfo *result) try {
    if (result == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclmdlGetFirstAippInfo: the place for the result is null");
    }
    std::shared_ptr<cann_sim::Model> model;
    const aclError found = find_input(id, index, "aclmdlGetFirstAippInfo", &model);
    if (found != ACL_SUCCESS) {
        return found;
    }
    const cann_sim_executor_info &info = model->file->info();
    const cann_sim_executor_aipp *const aipp = aipp_of(info, index);
    if (aipp == nullptr) {
        return fail(ACL_ERROR_NOT_STATIC_AIPP,
                    "EH0001: aclmdlGetFirstAippInfo: input " + std::to_string(index) + " has no static AIPP");
    }
    std::memset(result, 0, sizeof *result);
    result->inputFormat = ACL_RGB888_U8;
    result->srcImageSizeH = static_cast<int32_t>(aipp->height);
    result->srcImageSizeW = static_cast<int32_t>(aipp->width);
    result->rbuvSwapSwitch = static_cast<int8_t>(aipp->channels_swapped != 0);
    int32_t *const means[] = {&result->meanChn0, &result->meanChn1, &result->meanChn2, &result->meanChn3};
    float *const minima[] = {&result->minChn0, &result->minChn1, &result->minChn2, &result->minChn3};
    float *const factors[] = {&result->varReciChn0, &result->varReciChn1, &result->varReciChn2, &result->varReciChn3};
    for (uint32_t channel = 0; channel < std::min(aipp->channels, 4U); ++channel) {
        *means[channel] = static_cast<int32_t>(aipp->mean[channel]);
        *minima[channel] = static_cast<float>(aipp->minimum[channel]);
        *factors[channel] = static_cast<float>(aipp->reciprocal[channel]);
    }
    const cann_sim_executor_tensor &source = info.inputs[index];
    result->srcFormat = ACL_FORMAT_NHWC;
    result->srcDatatype = static_cast<aclDataType>(source.dtype);
    result->srcDimNum = source.rank;
    result->shapeCount = 1;
    aclmdlIODims &dims = result->outDims[0].srcDims;
    std::snprintf(dims.name, sizeof dims.name, "%s", source.name);
    dims.dimCount = std::min<size_t>(source.rank, ACL_MAX_DIM_CNT);
    std::copy_n(source.dims, dims.dimCount, dims.dims);
    result->outDims[0].srcSize = source.size;
    return ACL_SUCCESS;
}
SIM_CATCH
