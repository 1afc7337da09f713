// The way from an operator's ACL name to the compute plug-in, which alone knows libtorch.
#pragma once

#include "runtime/descriptors.h"

// Filled in by the compute plug-in; nullptr while it is not loaded.
using cann_sim_execute_fn = aclError (*)(const char *op_type, int num_inputs, const aclTensorDesc *const *input_desc,
                                         const aclDataBuffer *const *inputs, int num_outputs,
                                         const aclTensorDesc *const *output_desc, aclDataBuffer *const *outputs,
                                         const aclopAttr *attr);
SIM_API void cann_sim_set_execute(cann_sim_execute_fn execute);
SIM_API cann_sim_execute_fn cann_sim_get_execute();
