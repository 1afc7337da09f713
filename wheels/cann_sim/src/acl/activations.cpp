// ACL operators of activations.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "compute/pch.h"

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

const Registration registered{
    {"FusedBiasLeakyRelu", fused_bias_leaky_relu},
    {"FusedBiasLeakyReluGrad", fused_bias_leaky_relu_grad},
};

}  // namespace

}  // namespace cann_sim
