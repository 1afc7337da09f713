// How an aclnn function computes: most call an aten operator by the words of opapi/functions.tsv, the others are written in
// this folder and end in a Registration, as operators by ACL name do.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

#include "opapi/call.h"

namespace cann_sim {

// A CPU tensor over the device's memory, not owned; undefined for a null pointer.
at::Tensor tensor(const Value &value);
at::Scalar scalar(const Value &value);

// Copies a result into what the caller gave for it; throws if that has another size. Nothing happens where one is absent.
void write(const Value &out, const at::Tensor &result);

// For results whose size is known only now: the caller's tensor, which has room for the largest, takes the result's shape.
void write_shrunk(const Value &out, const at::Tensor &result);

using Computation = void (*)(const Value *);

class ComputationRegistration {
public:
    struct Entry {
        const char *name;
        Computation compute;
        Computation check = nullptr;  // throws what the tables cannot say is refused; reads no tensor's elements
    };
    ComputationRegistration(std::initializer_list<Entry> functions);
};

// The first phase of a function that is written by hand; throws what its check throws.
void check_by_hand(const Function &function, const Value *values);

// Throws what the operator throws.
void compute(const Function &function, const Value *values);

}  // namespace cann_sim
