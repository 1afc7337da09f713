// Operators by ACL name, as aclopCompileAndExecute receives them: mmcv's NPU ops and what torch_npu itself still
// sends this way. A file that implements some of them registers each with one line; a name that nobody registered
// is an error that says so.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "sim.h"

namespace cann_sim {

class OpCall {
public:
    OpCall(const char *name, std::vector<at::Tensor> inputs, std::vector<at::Tensor> outputs,
           const aclTensorDesc *const *output_desc, const aclopAttr *attr)
        : name_(name), inputs_(std::move(inputs)), outputs_(std::move(outputs)), output_desc_(output_desc), attr_(attr) {}

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

void register_op(const char *name, OpFunction function);

// One per file of operators, called when the plug-in is loaded.
void register_array_ops();
void register_box_ops();
void register_detection_ops();
void register_mmcv_ops();

}  // namespace cann_sim
