// From the partitions of an OM file to a Model.
#pragma once

#include <memory>

#include "executor/model.h"

namespace cann_sim::executor {

// Throws Failure: BAD_FILE or UNSUPPORTED, with the reason. The model's constants lie in `constants`.
std::unique_ptr<Model> decode(const unsigned char *programs, size_t size, const unsigned char *constants,
                              size_t constants_size);

}  // namespace cann_sim::executor
