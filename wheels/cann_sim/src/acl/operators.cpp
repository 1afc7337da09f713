// The table of ACL operators and its entry point.

#include "pch.h"

#include "acl/operators.h"

#include <cstdio>
#include <cstdlib>
#include <unordered_map>

#include "compute/compute.h"
#include "compute/task_queue.h"
#include "compute/types.h"
#include "runtime/counters.h"
#include "runtime/operators.h"
#include "runtime/profiler.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

// Created by the first Registration that is initialised; the order between files is not defined.
std::unordered_map<std::string, OpFunction> &table() {
    static std::unordered_map<std::string, OpFunction> t;
    return t;
}

std::vector<at::Tensor> tensors(const char *op, int count, const aclTensorDesc *const *descs,
                                const aclDataBuffer *const *buffers) {
    std::vector<at::Tensor> result;
    for (int i = 0; i < count; ++i) {
        const aclTensorDesc &desc = *descs[i];
        if (desc.dtype == ACL_DT_UNDEFINED) {  // an optional input that was left out
            result.emplace_back();
            continue;
        }
        void *data = desc.const_data != nullptr ? desc.const_data : buffers[i]->data;
        const size_t room = desc.const_data != nullptr ? desc.const_size : buffers[i]->size;
        const size_t need = aclGetTensorDescSize(&desc);
        TORCH_CHECK(need <= room, "operator ", op, ": tensor ", i, " needs ", need, " bytes and its buffer has ", room);
        result.push_back(at::from_blob(data, desc.dims, at::TensorOptions().dtype(scalar_type(desc.dtype, op))));
    }
    return result;
}

std::string signature(const std::vector<at::Tensor> &inputs, const std::vector<at::Tensor> &outputs) {
    std::string text;
    for (const auto *tensors : {&inputs, &outputs}) {
        text += tensors == &outputs ? " -> " : "";
        for (const at::Tensor &tensor : *tensors) {
            if (tensor.defined()) {
                append_signature(text, tensor.scalar_type(), tensor.sizes());
            }
        }
    }
    return text;
}

aclError fail_operator(aclError code, const std::string &message) {
    remember_queue_failure(message);
    return fail(code, message);
}

aclError execute(const char *op_type, int num_inputs, const aclTensorDesc *const *input_desc,
                 const aclDataBuffer *const *inputs, int num_outputs, const aclTensorDesc *const *output_desc,
                 aclDataBuffer *const *outputs, const aclopAttr *attr) {
    const auto found = table().find(op_type);
    if (found == table().end()) {
        return fail_operator(ACL_ERROR_OP_NOT_FOUND, std::string("EZ3003: No supported Ops kernel for ") + op_type +
                                                         ". cann_sim does not simulate the ACL operator " + op_type +
                                                         ".");
    }
    try {
        auto in = tensors(op_type, num_inputs, input_desc, inputs);
        auto out = tensors(op_type, num_outputs, output_desc, outputs);
        const std::string name = std::string("acl::") + op_type;
        const uint64_t task = cann_sim_task_begin();
        const std::string text = counting() || task != 0 ? signature(in, out) : "";
        if (counting()) {
            count_launch(name, text);
        }
        OpCall call(op_type, std::move(in), std::move(out), output_desc, attr);
        found->second(call);
        cann_sim_task_end(task, "SIMULATED", name.c_str(), text.c_str());
        return ACL_SUCCESS;
    } catch (const c10::Error &error) {
        return fail_operator(ACL_ERROR_INVALID_PARAM, std::string("EZ9999: ") + error.what_without_backtrace());
    } catch (const std::exception &error) {
        return fail_operator(ACL_ERROR_INVALID_PARAM, std::string("EZ9999: ") + error.what());
    }
}

const bool connected = [] {
    cann_sim_set_execute(&execute);
    return true;
}();

}  // namespace

Registration::Registration(std::initializer_list<std::pair<const char *, OpFunction>> operators) {
    for (const auto &[name, function] : operators) {
        if (!table().emplace(name, function).second) {
            std::fprintf(stderr, "cann_sim: two files register the ACL operator %s\n", name);
            std::abort();
        }
    }
}

at::Tensor floats(const at::Tensor &tensor) { return tensor.to(at::kFloat).contiguous(); }

void require_filled(const OpCall &op) {
    for (size_t i = 0; i < op.num_inputs(); ++i) {
        op.require(op.input(i).defined() && op.input(i).numel() > 0, "input " + std::to_string(i) + " is empty");
    }
}

const at::Tensor &OpCall::input(size_t index) const {
    require(index < inputs_.size(), "input " + std::to_string(index) + " of " + std::to_string(inputs_.size()));
    return inputs_[index];
}

at::Tensor &OpCall::output(size_t index) {
    require(index < outputs_.size(), "output " + std::to_string(index) + " of " + std::to_string(outputs_.size()));
    return outputs_[index];
}

void OpCall::shrink_output(size_t index, std::vector<int64_t> shape) {
    at::Tensor &whole = output(index);
    const int64_t count = c10::multiply_integers(shape);
    require(count <= whole.numel(), "output " + std::to_string(index) + " has no room for the result");
    outputs_[index] = whole.reshape(-1).narrow(0, 0, count).view(shape);
    // aclopCompileAndExecuteV2 takes descriptors that it may change; the caller reads the shape from them.
    const_cast<aclTensorDesc *>(output_desc_[index])->dims = std::move(shape);
}

std::vector<int64_t> OpCall::ints(size_t index) const {
    const at::Tensor values = input(index).to(at::kLong).contiguous();
    return {values.data_ptr<int64_t>(), values.data_ptr<int64_t>() + values.numel()};
}

int64_t OpCall::get_int(const char *attribute, int64_t fallback) const {
    const auto *value = attr_ == nullptr ? nullptr : attr_->find(attribute);
    return value == nullptr ? fallback : value->i;
}
std::vector<int64_t> OpCall::get_ints(const char *attribute) const {
    const auto *value = attr_ == nullptr ? nullptr : attr_->find(attribute);
    return value == nullptr ? std::vector<int64_t>() : value->ints;
}
double OpCall::get_float(const char *attribute, double fallback) const {
    const auto *value = attr_ == nullptr ? nullptr : attr_->find(attribute);
    return value == nullptr ? fallback : static_cast<double>(value->f);
}
std::vector<float> OpCall::get_floats(const char *attribute) const {
    const auto *value = attr_ == nullptr ? nullptr : attr_->find(attribute);
    return value == nullptr ? std::vector<float>() : value->floats;
}
bool OpCall::get_bool(const char *attribute, bool fallback) const { return get_int(attribute, fallback) != 0; }
std::string OpCall::get_string(const char *attribute, const std::string &fallback) const {
    const auto *value = attr_ == nullptr ? nullptr : attr_->find(attribute);
    return value == nullptr ? fallback : value->s;
}

void OpCall::require(bool holds, const std::string &rule) const { TORCH_CHECK(holds, "operator ", name_, ": ", rule); }

}  // namespace cann_sim

// For `python -m cann_sim coverage`: the names of the operators, separated by blanks.
SIM_API const char *cann_sim_acl_operators() try {
    static const std::string names = [] {
        std::string text;
        for (const auto &[name, function] : cann_sim::table()) {
            text += name + " ";
        }
        return text;
    }();
    return names.c_str();
}
SIM_CATCH
