// ACL operators that attention is made of: products, norms, softmax with its mask and dropout, rotary positions.
// Prototypes and formulas: torch_npu's documentation of its functions and op-plugin's calls. Half precision is computed in
// float32 and rounded once.

#include "compute/pch.h"

#include <ATen/CPUGeneratorImpl.h>

#include "acl/operators.h"

namespace cann_sim {

namespace {

// BatchMatMul(x1, x2), attributes adj_x1, adj_x2: the last two dimensions of the factor are exchanged.
void batch_matmul(OpCall &op) {
    const auto factor = [&op](size_t index, const char *adjoint) {
        const at::Tensor x = floats(op.input(index));
        return op.get_bool(adjoint, false) ? x.transpose(-2, -1) : x;
    };
    op.output(0).copy_(at::matmul(factor(0, "adj_x1"), factor(1, "adj_x2")));
}

// LayerNormV3(x, gamma, beta) -> (y, mean, rstd) over the dimensions from begin_norm_axis on.
void layer_norm(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    const int64_t axis = c10::maybe_wrap_dim(op.get_int("begin_norm_axis", 0), x.dim());
    const auto [y, mean, rstd] = at::native_layer_norm(
        x, x.sizes().slice(static_cast<size_t>(axis)), floats(op.input(1)).view(x.sizes().slice(axis)),
        floats(op.input(2)).view(x.sizes().slice(axis)), op.get_float("epsilon", 1e-5));
    op.output(0).copy_(y);
    op.output(1).copy_(mean.view(op.output(1).sizes()));
    op.output(2).copy_(rstd.view(op.output(2).sizes()));
}

// ---- softmax ----

at::Tensor softmax_grad(const at::Tensor &gradient, const at::Tensor &y) {
    return y * (gradient - (gradient * y).sum(-1, true));
}

// ScaledMaskedSoftmax(x, mask): softmax(scale x) with -10000 where mask is true; fixed_triu_mask: above the diagonal.
at::Tensor scaled_mask(OpCall &op, const at::Tensor &x, size_t mask) {
    if (op.get_bool("fixed_triu_mask", false)) {
        return at::ones({x.size(-2), x.size(-1)}, at::kBool).triu(1).expand_as(x);
    }
    return op.input(mask).to(at::kBool).expand_as(x);
}

void scaled_masked_softmax(OpCall &op) {
    const at::Tensor x = floats(op.input(0)) * op.get_float("scale", 1);
    op.output(0).copy_(x.masked_fill(scaled_mask(op, x, 1), -10000.).softmax(-1));
}

// ScaledMaskedSoftmaxGrad(gradient, y, mask)
void scaled_masked_softmax_grad(OpCall &op) {
    const at::Tensor y = floats(op.input(1));
    const at::Tensor gradient = softmax_grad(floats(op.input(0)), y) * op.get_float("scale", 1);
    op.output(0).copy_(gradient.masked_fill(scaled_mask(op, y, 2), 0));
}

// DropOutGenMaskV3(shape, keep probability) -> one byte per element, 1 where it stays; the mask may have a few more.
// Random numbers: one sequence per process from the seeds that torch_npu passes, which are the same for every call.
void generate_byte_mask(OpCall &op) {
    static at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(
        static_cast<uint64_t>(op.get_int("seed", 0)) ^ (static_cast<uint64_t>(op.get_int("seed2", 0)) << 32));
    op.output(0).bernoulli_(floats(op.input(1)).reshape({}).item<double>(), generator);
}

at::Tensor byte_mask(OpCall &op, size_t index, const at::Tensor &like) {
    return op.input(index).reshape(-1).narrow(0, 0, like.numel()).view(like.sizes()).to(at::kFloat);
}

// DropOutDoMaskV3(x, byte mask, keep probability)
void apply_byte_mask(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    const double keep = floats(op.input(2)).reshape({}).item<double>();
    op.output(0).copy_(x * byte_mask(op, 1, x) * (keep > 0 ? 1 / keep : 0));
}

double kept(OpCall &op) {
    const double keep = op.get_float("input_keep_prob", 1);
    return keep > 0 ? 1 / keep : 0;
}

// AxpyWithSoftmaxAndDropOutDoMask(x1, x2, byte mask) -> (softmax(x1 + alpha x2), that with dropout), over the last axis.
void axpy_softmax_dropout(OpCall &op) {
    const at::Tensor softmax = (floats(op.input(0)) + op.get_float("alpha", 1) * floats(op.input(1))).softmax(-1);
    op.output(0).copy_(softmax);
    op.output(1).copy_(softmax * byte_mask(op, 2, softmax) * kept(op));
}

// DropoutWithMulsAndSoftmaxGrad(gradient, byte mask, softmax) -> gradient of x2
void dropout_softmax_grad(OpCall &op) {
    const at::Tensor softmax = floats(op.input(2));
    const at::Tensor gradient = floats(op.input(0)) * byte_mask(op, 1, softmax) * kept(op);
    op.output(0).copy_(softmax_grad(gradient, softmax) * op.get_float("alpha", 1));
}

// ---- rotary position embedding: r1 x + r2 (-second half, first half) ----

at::Tensor rotated(const at::Tensor &x) {
    const auto halves = x.chunk(2, -1);
    return at::cat({-halves[1], halves[0]}, -1);
}

// RotaryMul(x, r1, r2)
void rotary_mul(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    op.output(0).copy_(floats(op.input(1)) * x + floats(op.input(2)) * rotated(x));
}

// RotaryMulGrad(x, r1, r2, gradient) -> gradients of x, r1, r2; the latter two only with need_backward.
void rotary_mul_grad(OpCall &op) {
    const at::Tensor x = floats(op.input(0)), gradient = floats(op.input(3));
    const auto halves = (floats(op.input(2)) * gradient).chunk(2, -1);
    op.output(0).copy_(floats(op.input(1)) * gradient + at::cat({halves[1], -halves[0]}, -1));
    if (op.get_bool("need_backward", true)) {
        op.output(1).copy_((x * gradient).sum_to_size(op.output(1).sizes()));
        op.output(2).copy_((rotated(x) * gradient).sum_to_size(op.output(2).sizes()));
    }
}

const Registration registered{
    {"AxpyWithSoftmaxAndDropOutDoMask", axpy_softmax_dropout},
    {"BatchMatMul", batch_matmul},
    {"DropOutDoMaskV3", apply_byte_mask},
    {"DropOutGenMaskV3", generate_byte_mask},
    {"DropoutWithMulsAndSoftmaxGrad", dropout_softmax_grad},
    {"LayerNormV3", layer_norm},
    {"RotaryMul", rotary_mul},
    {"RotaryMulGrad", rotary_mul_grad},
    {"ScaledMaskedSoftmax", scaled_masked_softmax},
    {"ScaledMaskedSoftmaxGrad", scaled_masked_softmax_grad},
};

}  // namespace

}  // namespace cann_sim
