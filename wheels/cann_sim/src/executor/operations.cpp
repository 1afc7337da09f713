// The table of operators, and how an operator sees its operation.

#include "pch.h"

#include "executor/operations.h"

#include <cstdio>
#include <cstdlib>

#include "executor/executor.h"

namespace cann_sim::executor {

namespace {

// Created by the first Registration that is initialised; the order between files is not defined.
std::map<std::string, Function> &table() {
    static std::map<std::string, Function> operators;
    return operators;
}

bool is_half(const at::Tensor &tensor) {
    return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

// `value` in `dtype`; float16 overflows to infinity, or to the largest number where the SoC saturates.
at::Tensor rounded(const at::Tensor &value, at::ScalarType dtype, bool saturates) {
    if (value.scalar_type() == dtype) {
        return value;
    }
    if (dtype == at::kHalf && saturates && value.is_floating_point()) {
        constexpr double kLargest = 65504;
        return value.clamp(-kLargest, kLargest).to(dtype);
    }
    return value.to(dtype);
}

}  // namespace

Registration::Registration(std::initializer_list<std::pair<const char *, Function>> operators) {
    for (const auto &[name, function] : operators) {
        if (!table().emplace(name, function).second) {
            std::fprintf(stderr, "cann_sim: two files register the operator %s\n", name);
            std::abort();
        }
    }
}

Function find_operator(const std::string &type) {
    const auto found = table().find(type);
    return found == table().end() ? nullptr : found->second;
}

const std::string &operator_names() {
    static const std::string names = [] {
        std::string text;
        for (const auto &[name, function] : table()) {
            text += (text.empty() ? "" : " ") + name;
        }
        return text;
    }();
    return names;
}

Call::Call(const Model &model, const Program &program, const Operation &operation, std::vector<at::Tensor> inputs)
    : model_(model), program_(program), operation_(operation), inputs_(std::move(inputs)), outputs_(num_outputs()) {}

const at::Tensor &Call::raw(size_t index) const {
    require(has(index), "input " + std::to_string(index) + " is missing");
    return inputs_[index];
}

at::Tensor Call::input(size_t index) {
    const at::Tensor &stored = raw(index);
    if (is_half(stored)) {
        inputs_[index] = stored.to(at::kFloat);
    }
    return inputs_[index];
}

at::Tensor Call::optional(size_t index) { return has(index) ? input(index) : at::Tensor(); }

bool Call::owned(size_t index) {
    input(index);
    const at::Tensor &tensor = inputs_[index];
    return tensor.use_count() == 1 && tensor.storage().use_count() == 1 && tensor.is_non_overlapping_and_dense();
}

at::Tensor Call::writable(size_t index) { return owned(index) ? inputs_[index] : inputs_[index].clone(); }

std::vector<int64_t> Call::integers(size_t index) const {
    const at::Tensor values = raw(index).to(at::kLong).contiguous();
    return {values.const_data_ptr<int64_t>(), values.const_data_ptr<int64_t>() + values.numel()};
}

double Call::number(size_t index) const {
    require(raw(index).numel() == 1, "input " + std::to_string(index) + " must be one number");
    return raw(index).item().toDouble();
}

const Attribute *Call::find(const char *name) const {
    const auto found = operation_.attributes.find(name);
    return found == operation_.attributes.end() ? nullptr : &found->second;
}

int64_t Call::integer(const char *name, int64_t otherwise) const {
    const Attribute *found = find(name);
    require(found == nullptr || found->kind == 'i', std::string(name) + " must be an integer");
    return found == nullptr ? otherwise : found->integer;
}

double Call::number(const char *name, double otherwise) const {
    const Attribute *found = find(name);
    require(found == nullptr || found->kind == 'f' || found->kind == 'i', std::string(name) + " must be a number");
    return found == nullptr ? otherwise : found->kind == 'f' ? found->number : static_cast<double>(found->integer);
}

std::string Call::text(const char *name, const std::string &otherwise) const {
    const Attribute *found = find(name);
    require(found == nullptr || found->kind == 's', std::string(name) + " must be a string");
    return found == nullptr ? otherwise : found->text;
}

std::vector<int64_t> Call::integers(const char *name, std::vector<int64_t> otherwise) const {
    const Attribute *found = find(name);
    require(found == nullptr || found->kind == 'I', std::string(name) + " must be a list of integers");
    return found == nullptr ? std::move(otherwise) : found->integers;
}

std::vector<double> Call::numbers(const char *name) const {
    const Attribute *found = find(name);
    if (found != nullptr && found->kind == 'I') {
        return {found->integers.begin(), found->integers.end()};
    }
    require(found == nullptr || found->kind == 'F', std::string(name) + " must be a list of numbers");
    return found == nullptr ? std::vector<double>() : found->numbers;
}

std::vector<int64_t> Call::setting(const char *name, size_t index, std::vector<int64_t> otherwise) const {
    return has(index) ? integers(index) : integers(name, std::move(otherwise));
}

int64_t Call::axis(int64_t axis, int64_t rank) const {
    require(axis >= -rank && axis < std::max<int64_t>(rank, 1),
            "axis " + std::to_string(axis) + " of rank " + std::to_string(rank));
    return axis < 0 ? axis + rank : axis;
}

bool Call::wanted(size_t index) const { return index < num_outputs() && operation_.outputs[index] >= 0; }

const Value &Call::result(size_t index) const {
    require(wanted(index), "output " + std::to_string(index) + " is missing");
    return program_.values[operation_.outputs[index]];
}

void Call::output(const at::Tensor &tensor, size_t index) {
    if (!wanted(index)) {
        return;
    }
    const Value &declared = result(index);
    require(tensor.sizes() == at::IntArrayRef(declared.shape), "its result " + declared.name + " has the shape " +
                                                                   c10::str(tensor.sizes()) + " instead of " +
                                                                   c10::str(at::IntArrayRef(declared.shape)));
    outputs_[index] = rounded(tensor, declared.dtype, model_.saturates());
}

void Call::require(bool holds, const std::string &rule) const {
    if (!holds) {
        throw Failure(CANN_SIM_EXECUTOR_RUN_FAILED, operation_.type + ": " + rule);
    }
}

}  // namespace cann_sim::executor
