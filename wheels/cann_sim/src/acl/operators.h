// Operators by ACL name, as aclopCompileAndExecute receives them: mmcv's NPU ops and what torch_npu itself still
// sends this way. A file in this folder that implements some of them ends in a Registration of them, and needs no other
// edit; a name that nobody registered is an error that says so.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "runtime/descriptors.h"

namespace cann_sim {

class OpCall {
public:
    OpCall(const char *name, std::vector<at::Tensor> inputs, std::vector<at::Tensor> outputs,
           const aclTensorDesc *const *output_desc, const aclopAttr *attr)
        : name_(name),
          inputs_(std::move(inputs)),
          outputs_(std::move(outputs)),
          output_desc_(output_desc),
          attr_(attr) {}

    // CPU tensors over the device memory of the call, contiguous, in the order of the operator's prototype (IR).
    const at::Tensor &input(size_t index) const;
    at::Tensor &output(size_t index);
    size_t num_inputs() const { return inputs_.size(); }
    size_t num_outputs() const { return outputs_.size(); }

    // For an operator that knows only afterwards how many rows a result has: its first rows become the output.
    void shrink_output(size_t index, std::vector<int64_t> shape);

    // Small integer inputs (perm, size, …) that the prototype declares as tensors.
    std::vector<int64_t> ints(size_t index) const;

    bool has(const char *attribute) const { return attr_ != nullptr && attr_->find(attribute) != nullptr; }
    int64_t get_int(const char *attribute, int64_t fallback) const;
    std::vector<int64_t> get_ints(const char *attribute) const;
    double get_float(const char *attribute, double fallback) const;
    std::vector<float> get_floats(const char *attribute) const;
    bool get_bool(const char *attribute, bool fallback) const;
    std::string get_string(const char *attribute, const std::string &fallback) const;

    // Throws: the call breaks a rule of the operator. `rule` names what was expected and found.
    void require(bool holds, const std::string &rule) const;

private:
    const char *name_;
    std::vector<at::Tensor> inputs_;
    std::vector<at::Tensor> outputs_;
    const aclTensorDesc *const *output_desc_;
    const aclopAttr *attr_;
};

using OpFunction = void (*)(OpCall &);

// Operators by their ACL names, known from the moment that the plug-in is loaded. Two of one name end the process.
class Registration {
public:
    Registration(std::initializer_list<std::pair<const char *, OpFunction>> operators);
};

// What half-precision operators compute in: float32, contiguous.
at::Tensor floats(const at::Tensor &tensor);

// For operators of which CANN documents that they take no empty tensors.
void require_filled(const OpCall &op);

}  // namespace cann_sim
