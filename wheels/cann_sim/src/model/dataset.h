// aclmdlDataset: the buffers of a run, and the gear that it chooses.
#pragma once

#include <memory>
#include <vector>

#include "runtime/descriptors.h"

struct aclmdlDataset {
    std::vector<aclDataBuffer *> buffers;
    std::vector<const aclTensorDesc *> descriptions;  // by buffer; null where none was set
    bool has_gear = false;
    uint32_t gear = 0;
};
