// ACL operators of activations.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include "acl/operators.h"

namespace cann_sim {

namespace {

void fused_bias_leaky_relu(OpCall &op) {
    const at::Tensor x = floats(op.input(0)) + floats(op.input(1));
    op.output(0).copy_(at::leaky_relu(x, op.get_float("negative_slope", 0.2)) * op.get_float("scale", 1.414213562373));
}

// FusedBiasLeakyReluGrad(y_grad, features)
void fused_bias_leaky_relu_grad(OpCall &op) {
    const double slope = op.get_float("negative_slope", 0.2), scale = op.get_float("scale", 1.414213562373);
    const at::Tensor gradient = floats(op.input(0)) * scale;
    op.output(0).copy_(at::where(op.input(1) > 0, gradient, gradient * slope));
}

// Swish(x), attribute scale; SwishGrad(gradient, x, y): the gradient of scale 1, the only one that torch_npu asks for.
void swish(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    op.output(0).copy_(x * (x * op.get_float("scale", 1)).sigmoid());
}

void swish_grad(OpCall &op) {
    op.require(op.get_float("scale", 1) == 1, "scale must be 1 here");
    op.output(0).copy_(at::silu_backward(floats(op.input(0)), floats(op.input(1))));
}

// Mish(x), MishGrad(gradient, x)
void mish(OpCall &op) { op.output(0).copy_(at::mish(floats(op.input(0)))); }

void mish_grad(OpCall &op) { op.output(0).copy_(at::mish_backward(floats(op.input(0)), floats(op.input(1)))); }

// FastGelu(x) = x sigmoid(1.702 x); torch_npu's documentation has another form of the same for older products.
constexpr double kFastGelu = 1.702;

void fast_gelu(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    op.output(0).copy_(x * (x * kFastGelu).sigmoid());
}

// FastGeluGrad(gradient, x)
void fast_gelu_grad(OpCall &op) {
    const at::Tensor x = floats(op.input(1)), s = (x * kFastGelu).sigmoid();
    op.output(0).copy_(floats(op.input(0)) * (s + x * kFastGelu * s * (1 - s)));
}

const Registration registered{
    {"FastGelu", fast_gelu},
    {"FastGeluGrad", fast_gelu_grad},
    {"Mish", mish},
    {"MishGrad", mish_grad},
    {"Swish", swish},
    {"SwishGrad", swish_grad},
    {"FusedBiasLeakyRelu", fused_bias_leaky_relu},
    {"FusedBiasLeakyReluGrad", fused_bias_leaky_relu_grad},
};

}  // namespace

}  // namespace cann_sim
