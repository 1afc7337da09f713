// aclnn functions of normalisations whose statistics torch_npu keeps in float32: CANN's kernels take them beside numbers of
// another data type, and the CPU's only as it makes them itself.

#include "pch.h"

#include "aclnn/adapter.h"

namespace cann_sim {

namespace {

// Parameters and statistics as the CPU's kernels want them beside an input: of its data type, unless a parameter is of another
// one; then of float32, all of them.
class Beside {
public:
    Beside(const at::Tensor &input, std::initializer_list<at::Tensor> parameters) : type_(input.scalar_type()) {
        for (const at::Tensor &parameter : parameters) {
            if (parameter.defined() && parameter.scalar_type() != input.scalar_type()) {
                type_ = at::kFloat;
            }
        }
    }

    at::Tensor operator()(const at::Tensor &value) const { return value.defined() ? value.to(type_) : value; }

private:
    at::ScalarType type_;
};

std::array<bool, 3> mask(const Value &value) {
    const auto &bits = value.bools();
    return {bits[0] != 0, bits[1] != 0, bits[2] != 0};
}

void write_gradients(const Value *out, const std::tuple<at::Tensor, at::Tensor, at::Tensor> &found) {
    const at::Tensor results[] = {std::get<0>(found), std::get<1>(found), std::get<2>(found)};
    for (size_t i = 0; i < 3; ++i) {
        if (results[i].defined()) {
            write(out[i], results[i]);
        }
    }
}

// (gradient, input, normalised shape, mean, rstd, weight?, bias?, mask, gradients of input, weight, bias)
void layer_norm_backward(const Value *v) {
    const at::Tensor input = tensor(v[1]), weight = tensor(v[5]), bias = tensor(v[6]);
    const Beside beside(input, {weight, bias});
    write_gradients(v + 8,
                    at::native_layer_norm_backward(tensor(v[0]), input, v[2].ints(), beside(tensor(v[3])),
                                                   beside(tensor(v[4])), beside(weight), beside(bias), mask(v[7])));
}

// (gradient, input, weight?, running mean?, running variance?, saved mean?, saved rstd?, training, epsilon, mask, gradients of
// input, weight, bias)
void batch_norm_backward(const Value *v) {
    const at::Tensor input = tensor(v[1]), weight = tensor(v[2]), mean = tensor(v[3]), variance = tensor(v[4]);
    const Beside beside(input, {weight, mean, variance});
    write_gradients(v + 10, at::native_batch_norm_backward(tensor(v[0]), input, beside(weight), beside(mean),
                                                           beside(variance), beside(tensor(v[5])), beside(tensor(v[6])),
                                                           v[7].i != 0, v[8].d, mask(v[9])));
}

const ComputationRegistration registered{
    {"aclnnBatchNormBackward", batch_norm_backward},
    {"aclnnLayerNormBackward", layer_norm_backward},
};

}  // namespace

}  // namespace cann_sim
