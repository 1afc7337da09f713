// Runs the operations of a program in order; each value is freed after its last use.

#include "pch.h"

#include "executor/run.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstring>
#include <ctime>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

uint64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<uint64_t>(time.tv_sec) * 1000000000 + static_cast<uint64_t>(time.tv_nsec);
}

// The caller's buffer as a tensor; a copy, filled up with zeros, if it is too short.
at::Tensor tensor_of(const Value &value, const void *data, uint64_t size) {
    const auto options = at::TensorOptions().dtype(value.dtype);
    if (size >= value.bytes() && data != nullptr) {
        return at::from_blob(const_cast<void *>(data), value.shape, options);
    }
    at::Tensor filled = at::zeros(value.shape, options);
    if (data != nullptr) {
        std::memcpy(filled.mutable_data_ptr(), data, size);
    }
    return filled;
}

// (pixel - mean - min) * var_reci, after the swap of the channels: [N, H, W, C] uint8 to [N, C, H, W].
at::Tensor apply_aipp(const Aipp &aipp, const at::Tensor &pictures, at::ScalarType dtype) {
    const auto row = [&](const std::vector<double> &numbers) {
        return at::tensor(numbers, at::kDouble).to(at::kFloat).view({1, 1, 1, -1});
    };
    const at::Tensor pixels = (aipp.channels_swapped ? pictures.flip(-1) : pictures).to(at::kFloat);
    const at::Tensor result = (pixels - row(aipp.mean) - row(aipp.minimum)) * row(aipp.reciprocal);
    return result.permute({0, 3, 1, 2}).contiguous().to(dtype);
}

// Tells the observer of one operation: descriptions of its tensors and the data of its outputs.
class Report {
public:
    Report(const Model &model, const Program &program) : model_(model), program_(program) {}

    void tell(const Observer &observer, const Operation &operation, const std::vector<at::Tensor> &outputs,
              uint64_t begin, uint64_t end) {
        std::vector<const void *> data;
        for (const at::Tensor &tensor : outputs) {
            data.push_back(tensor.defined() ? tensor.const_data_ptr() : nullptr);
        }
        const auto inputs = describe(operation.inputs), results = describe(operation.outputs);
        const cann_sim_executor_operation told = {
            operation.name.c_str(),
            operation.type.c_str(),
            operation.kernel.c_str(),
            operation.engine.c_str(),
            begin,
            end,
            static_cast<uint32_t>(inputs.size()),
            static_cast<uint32_t>(results.size()),
            inputs.data(),
            results.data(),
            data.data(),
        };
        observer.function(observer.context, &told);
    }

private:
    std::vector<cann_sim_executor_tensor> describe(const std::vector<int32_t> &slots) const {
        std::vector<cann_sim_executor_tensor> result;
        for (const int32_t slot : slots) {
            cann_sim_executor_tensor tensor = {};
            if (slot >= 0) {
                const auto place = static_cast<size_t>(slot), values = program_.values.size();
                const Value &value = place < values ? program_.values[place] : model_.constants[place - values];
                tensor = {value.name.c_str(), acl_type(value.dtype), static_cast<uint32_t>(value.shape.size()),
                          value.shape.data(), value.bytes()};
            }
            result.push_back(tensor);
        }
        return result;
    }

    const Model &model_;
    const Program &program_;
};

void write_outputs(const Model &model, const Program &program, const std::vector<at::Tensor> &slots,
                   const std::vector<at::Tensor> &given, const Buffers &buffers) {
    std::vector<at::Tensor> results;
    for (size_t i = 0; i < program.outputs.size(); ++i) {
        const auto slot = static_cast<size_t>(program.output_slots[i]);
        at::Tensor result = slot < slots.size() ? slots[slot] : model.constant_tensors[slot - slots.size()];
        // An output that is an input under another name: its buffer may be one that is written now.
        const bool shared = std::any_of(given.begin(), given.end(), [&](const at::Tensor &input) {
            return input.storage().data() == result.storage().data();
        });
        results.push_back(shared ? result.clone(at::MemoryFormat::Contiguous) : result.contiguous());
    }
    for (size_t i = 0; i < results.size(); ++i) {
        std::memcpy(buffers.outputs[i], results[i].const_data_ptr(),
                    std::min<uint64_t>(buffers.output_sizes[i], results[i].nbytes()));
    }
}

}  // namespace

int32_t acl_type(at::ScalarType dtype) {
    switch (dtype) {
        case at::kFloat: return 0;
        case at::kHalf: return 1;
        case at::kChar: return 2;
        case at::kInt: return 3;
        case at::kByte: return 4;
        case at::kShort: return 6;
        case at::kUInt16: return 7;
        case at::kUInt32: return 8;
        case at::kLong: return 9;
        case at::kUInt64: return 10;
        case at::kDouble: return 11;
        case at::kBool: return 12;
        case at::kBFloat16: return 27;
        default: return -1;
    }
}

const Aipp *aipp_of(const Model &model, const Value &input) {
    const auto found =
        std::find_if(model.aipp.begin(), model.aipp.end(), [&](const Aipp &aipp) { return aipp.input == input.name; });
    return found == model.aipp.end() ? nullptr : &*found;
}

Value picture_of(const Value &input) {
    const auto &shape = input.shape;
    return {input.name, at::kByte, {shape.at(0), shape.at(2), shape.at(3), shape.at(1)}};
}

void run(const Model &model, const Program &program, const Buffers &buffers, const Observer &observer) {
    const c10::InferenceMode inference;
    std::vector<at::Tensor> slots(program.values.size()), given;
    for (size_t i = 0; i < program.inputs.size(); ++i) {
        const Value &input = program.inputs[i];
        const Aipp *aipp = aipp_of(model, input);
        const Value fed = aipp == nullptr ? input : picture_of(input);
        given.push_back(tensor_of(fed, buffers.inputs[i], buffers.input_sizes[i]));
        slots[program.input_slots[i]] = aipp == nullptr ? given.back() : apply_aipp(*aipp, given.back(), input.dtype);
    }
    Report report(model, program);
    for (const Operation &operation : program.operations) {
        std::vector<at::Tensor> inputs;
        for (const int32_t slot : operation.inputs) {
            const auto place = static_cast<size_t>(slot);
            inputs.push_back(slot < 0               ? at::Tensor()
                             : place < slots.size() ? slots[place]
                                                    : model.constant_tensors[place - slots.size()]);
        }
        for (const int32_t slot : operation.dying) {
            slots[slot].reset();  // now only the operation holds it, and may write to it
        }
        const uint64_t begin = observer.function == nullptr ? 0 : now();
        try {
            Call call(model, program, operation, std::move(inputs));
            operation.function(call);
            for (size_t i = 0; i < operation.outputs.size(); ++i) {
                call.require(!call.wanted(i) || call.outputs()[i].defined(), "it has no such output");
            }
            if (observer.function != nullptr) {
                const uint64_t end = now();
                for (at::Tensor &output : call.outputs()) {
                    output = output.defined() ? output.contiguous() : output;
                }
                report.tell(observer, operation, call.outputs(), begin, end);
            }
            for (size_t i = 0; i < operation.outputs.size(); ++i) {
                // An output that nobody uses is free at once; its slot is among the dying.
                const int32_t slot = operation.outputs[i];
                const bool used =
                    std::find(operation.dying.begin(), operation.dying.end(), slot) == operation.dying.end();
                if (slot >= 0 && used) {
                    slots[slot] = std::move(call.outputs()[i]);
                }
            }
        } catch (const c10::Error &error) {
            const std::string reason = error.what_without_backtrace();
            const bool memory = reason.find("can't allocate memory") != std::string::npos;
            throw Failure(memory ? CANN_SIM_EXECUTOR_OUT_OF_MEMORY : CANN_SIM_EXECUTOR_RUN_FAILED,
                          "operation " + operation.name + ": " + operation.type + ": " + reason);
        } catch (const Failure &failure) {
            throw Failure(failure.code, "operation " + operation.name + ": " + failure.what());
        }
    }
    write_outputs(model, program, slots, given, buffers);
}

}  // namespace cann_sim::executor
