// libascendcl.so: data sets, and the gear that a data set chooses.

#include "model/dataset.h"

#include <cstring>

#include "model/models.h"
#include "runtime/memory.h"
#include "runtime/state.h"

using cann_sim::fail;

SIM_API aclmdlDataset *aclmdlCreateDataset() try { return new aclmdlDataset; }
SIM_CATCH

SIM_API aclError aclmdlDestroyDataset(const aclmdlDataset *dataset) {
    if (dataset == nullptr) {
        return ACL_ERROR_INVALID_PARAM;
    }
    delete dataset;
    return ACL_SUCCESS;
}

SIM_API aclError aclmdlAddDatasetBuffer(aclmdlDataset *dataset, aclDataBuffer *buffer) try {
    if (dataset == nullptr || buffer == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclmdlAddDatasetBuffer: the data set or the buffer is null");
    }
    dataset->buffers.push_back(buffer);
    dataset->descriptions.push_back(nullptr);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API size_t aclmdlGetDatasetNumBuffers(const aclmdlDataset *dataset) try {
    return dataset == nullptr ? 0 : dataset->buffers.size();
}
SIM_CATCH

SIM_API aclDataBuffer *aclmdlGetDatasetBuffer(const aclmdlDataset *dataset, size_t index) try {
    return dataset == nullptr || index >= dataset->buffers.size() ? nullptr : dataset->buffers[index];
}
SIM_CATCH

SIM_API aclError aclmdlSetDatasetTensorDesc(aclmdlDataset *dataset, aclTensorDesc *description, size_t index) try {
    if (dataset == nullptr || index >= dataset->buffers.size()) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclmdlSetDatasetTensorDesc: the data set has no such buffer");
    }
    dataset->descriptions[index] = description;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclTensorDesc *aclmdlGetDatasetTensorDesc(const aclmdlDataset *dataset, size_t index) try {
    return dataset == nullptr || index >= dataset->descriptions.size()
               ? nullptr
               : const_cast<aclTensorDesc *>(dataset->descriptions[index]);
}
SIM_CATCH

// ---- gears ----

namespace {

std::string text_of(const int64_t *values, size_t count) {
    std::string text;
    for (size_t i = 0; i < count; ++i) {
        text += (i == 0 ? "" : ",") + std::to_string(values[i]);
    }
    return text;
}

// Chooses the gear with these values: of the data set, and written into the buffer at `index`.
aclError choose_gear(uint32_t id, aclmdlDataset *dataset, size_t index, int32_t kind, const char *call,
                     const int64_t *values, size_t count) {
    const aclDataBuffer *const buffer = aclmdlGetDatasetBuffer(dataset, index);
    if (buffer == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, std::string("EH0001: ") + call +
                                                 ": the data set is null or has no buffer " + std::to_string(index));
    }
    std::shared_ptr<cann_sim::Model> model;
    const aclError found = cann_sim::find_model(id, &model);
    if (found != ACL_SUCCESS) {
        return found;
    }
    const cann_sim_executor_info &info = model->file->info();
    if (buffer->data == nullptr) {
        return fail(cann_sim::kGearAddress,
                    std::string("E19999: ") + call + ": the buffer at " + std::to_string(index) + " has no memory");
    }
    if (buffer->size < count * sizeof(uint32_t)) {
        return fail(cann_sim::kGearLength, std::string("E19999: ") + call + ": the buffer at " + std::to_string(index) +
                                               " has " + std::to_string(buffer->size) + " bytes, and the gear takes " +
                                               std::to_string(count * sizeof(uint32_t)));
    }
    std::string gears;
    for (uint32_t gear = 0; info.gear_kind == kind && gear < info.num_gears; ++gear) {
        const cann_sim_executor_gear &entry = info.gears[gear];
        if (entry.num_values == count && std::equal(values, values + count, entry.values)) {
            // As wide as there is room for: the input of gears has 64-bit values, an older one 32-bit ones.
            for (size_t i = 0; i < count; ++i) {
                const auto narrow = static_cast<uint32_t>(values[i]);
                if (buffer->size >= count * sizeof(int64_t)) {
                    std::memcpy(static_cast<char *>(buffer->data) + i * sizeof(int64_t), &values[i], sizeof(int64_t));
                } else {
                    std::memcpy(static_cast<char *>(buffer->data) + i * sizeof narrow, &narrow, sizeof narrow);
                }
            }
            dataset->has_gear = true;
            dataset->gear = model->gear = gear;
            return ACL_SUCCESS;
        }
        gears += (gears.empty() ? "" : "; ") + text_of(entry.values, entry.num_values);
    }
    return fail(cann_sim::kNoSuchGear, std::string("E19999: ") + call + ": " + text_of(values, count) +
                                           " is no gear of the model" +
                                           (gears.empty() ? ", which has none of this kind" : ": it has " + gears));
}

}  // namespace

SIM_API aclError aclmdlSetDynamicBatchSize(uint32_t id, aclmdlDataset *dataset, size_t index, uint64_t batch) try {
    if (batch == 0) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclmdlSetDynamicBatchSize: the batch is 0");
    }
    const auto value = static_cast<int64_t>(batch);
    return choose_gear(id, dataset, index, CANN_SIM_EXECUTOR_BATCH, "aclmdlSetDynamicBatchSize", &value, 1);
}
SIM_CATCH

SIM_API aclError aclmdlSetDynamicHWSize(uint32_t id, aclmdlDataset *dataset, size_t index, uint64_t height,
                                        uint64_t width) try {
    if (height == 0 || width == 0) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclmdlSetDynamicHWSize: the height or the width is 0");
    }
    const int64_t values[] = {static_cast<int64_t>(height), static_cast<int64_t>(width)};
    return choose_gear(id, dataset, index, CANN_SIM_EXECUTOR_IMAGE, "aclmdlSetDynamicHWSize", values, 2);
}
SIM_CATCH

SIM_API aclError aclmdlSetInputDynamicDims(uint32_t id, aclmdlDataset *dataset, size_t index,
                                           const aclmdlIODims *dims) try {
    if (dims == nullptr || dims->dimCount > ACL_MAX_DIM_CNT) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclmdlSetInputDynamicDims: the dims are null or too many");
    }
    return choose_gear(id, dataset, index, CANN_SIM_EXECUTOR_DIMS, "aclmdlSetInputDynamicDims", dims->dims,
                       dims->dimCount);
}
SIM_CATCH
