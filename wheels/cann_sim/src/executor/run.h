// Running a program on buffers.
#pragma once

#include "executor/executor.h"
#include "executor/model.h"

namespace cann_sim::executor {

struct Buffers {
    const void *const *inputs;
    const uint64_t *input_sizes;
    void *const *outputs;
    const uint64_t *output_sizes;
};

struct Observer {
    cann_sim_executor_observer function;  // null: none
    void *context;
};

// Throws Failure (an operation of the program fails; its name is in the message) or what ATen throws.
void run(const Model &model, const Program &program, const Buffers &buffers, const Observer &observer);

// The number of `dtype` among aclDataType's.
int32_t acl_type(at::ScalarType dtype);

// What the caller gives for an input with AIPP: uint8, channels last. Null for an input without.
const Aipp *aipp_of(const Model &model, const Value &input);
Value picture_of(const Value &input);

}  // namespace cann_sim::executor
