// From the bytes of an OM file to a Model.
#pragma once

#include <memory>
#include <string>

#include "executor/model.h"

namespace cann_sim::executor {

// Throw Failure: NO_FILE or BAD_FILE, with the reason. Constants stay in the mapping, or in the copy of `data`.
std::unique_ptr<Model> read_file(const std::string &path);
std::unique_ptr<Model> read_memory(const void *data, size_t size);

}  // namespace cann_sim::executor
