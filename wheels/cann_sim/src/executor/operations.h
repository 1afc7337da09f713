// Operators of ONNX by name, over ATen. A file in this folder that implements some of them ends in a Registration of
// them, and needs no other edit.
//
// Data types: float16 and bfloat16 are computed in float32, and what an operator returns is rounded once to the data type
// that the program says; operators that only move data keep it.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "executor/model.h"

namespace cann_sim::executor {

// One operation with its inputs.
class Call {
public:
    Call(const Model &model, const Program &program, const Operation &operation, std::vector<at::Tensor> inputs);

    // ---- inputs ----
    size_t num_inputs() const { return inputs_.size(); }
    bool has(size_t index) const { return index < inputs_.size() && inputs_[index].defined(); }
    const at::Tensor &raw(size_t index) const;  // as it is stored
    at::Tensor input(size_t index);             // float16 and bfloat16 as float32
    at::Tensor optional(size_t index);          // undefined if it is left out
    // Whether nobody else sees the memory of input(index): then it may be written in place.
    bool owned(size_t index);
    // input(index), or a copy that may be written.
    at::Tensor writable(size_t index);
    std::vector<int64_t> integers(size_t index) const;
    double number(size_t index) const;

    // ---- attributes ----
    const Attribute *find(const char *name) const;
    int64_t integer(const char *name, int64_t otherwise) const;
    double number(const char *name, double otherwise) const;
    std::string text(const char *name, const std::string &otherwise) const;
    std::vector<int64_t> integers(const char *name, std::vector<int64_t> otherwise = {}) const;
    std::vector<double> numbers(const char *name) const;
    // Axes, sizes and the like, which later opsets take as input `index`: that, or the attribute, or `otherwise`.
    std::vector<int64_t> setting(const char *name, size_t index, std::vector<int64_t> otherwise = {}) const;
    // `axis` of a tensor with `rank` dimensions, counted from the front.
    int64_t axis(int64_t axis, int64_t rank) const;

    uint32_t opset() const { return model_.opset; }
    const std::string &type() const { return operation_.type; }

    // ---- outputs ----
    size_t num_outputs() const { return operation_.outputs.size(); }
    bool wanted(size_t index) const;
    const Value &result(size_t index = 0) const;  // what the program says of an output that is wanted
    // The output of `index`: rounded to its data type, and refused if it has another shape than the program says.
    void output(const at::Tensor &tensor, size_t index = 0);
    std::vector<at::Tensor> &outputs() { return outputs_; }

    // Throws Failure: the operation breaks a rule of its operator.
    void require(bool holds, const std::string &rule) const;

private:
    const Model &model_;
    const Program &program_;
    const Operation &operation_;
    std::vector<at::Tensor> inputs_, outputs_;
};

class Registration {
public:
    Registration(std::initializer_list<std::pair<const char *, Function>> operators);
};

// Null for one that nobody registered.
Function find_operator(const std::string &type);

// All names, sorted, separated by blanks.
const std::string &operator_names();

}  // namespace cann_sim::executor
