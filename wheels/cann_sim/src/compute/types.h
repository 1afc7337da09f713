// Data types of CANN as torch's.
#pragma once

#include <c10/core/ScalarType.h>

#include "runtime/abi.h"

namespace cann_sim {

// Throws c10::Error, which names `user`, if torch has no such type or it is not simulated.
at::ScalarType scalar_type(aclDataType type, const char *user = "an aclnn function");

}  // namespace cann_sim
