// Running a model in a stream.
#pragma once

#include "runtime/abi.h"

// The headers of torch_npu, which runs no models, do not have it.
SIM_API aclError aclmdlExecuteAsync(uint32_t id, const aclmdlDataset *input, aclmdlDataset *output, aclrtStream stream);
