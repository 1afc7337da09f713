// Runs of models on devices.
#pragma once

#include "runtime/abi.h"

// The headers of torch_npu, which runs no models, do not have it.
SIM_API aclError aclmdlExecuteAsync(uint32_t id, const aclmdlDataset *input, aclmdlDataset *output, aclrtStream stream);

namespace cann_sim {

// Arranges that no model runs when the statics of libtorch end.
void finish_models_at_exit();

}  // namespace cann_sim
