// ACL operators that attention is made of: products, softmax with its mask and dropout, rotary positions.
// Prototypes and formulas: torch_npu's documentation of its functions and op-plugin's calls. Half precision is computed in
// float32 and rounded once.

#include "pch.h"

#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "acl/operators.h"
#include "compute/formulas.h"

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

// ---- rotary position embedding ----

// RotaryMul(x, r1, r2)
void rotary(OpCall &op) {
    op.output(0).copy_(rotary_mul(floats(op.input(0)), floats(op.input(1)), floats(op.input(2)), false));
}

// RotaryMulGrad(x, r1, r2, gradient) -> gradients of x, r1, r2; the latter two only with need_backward.
void rotary_grad(OpCall &op) {
    const at::Tensor x = floats(op.input(0)), gradient = floats(op.input(3));
    op.output(0).copy_(rotary_mul_backward(gradient, floats(op.input(1)), floats(op.input(2)), false));
    if (op.get_bool("need_backward", true)) {
        const auto [r1, r2] = rotary_factors_backward(gradient, x, op.output(1).sizes(), op.output(2).sizes(), false);
        op.output(1).copy_(r1);
        op.output(2).copy_(r2);
    }
}

// ---- MultiHeadAttention: the projections of query, key and value, attention with an additive mask, the last projection ----
// Rows are B T (queries) and B S (keys), W = H D wide; between the projections tensors are [B, H, T or S, D].

struct Heads {
    int64_t heads, width, sources, targets;

    explicit Heads(OpCall &op)
        : heads(op.get_int("attn_head_num", 1)),
          width(op.get_int("attn_dim_per_head", 1)),
          sources(op.get_int("src_len", 1)),
          targets(op.get_int("tgt_len", 1)) {
        op.require(op.get_float("keep_prob", 1) == 1, "dropout is not simulated");
    }

    double scale() const { return 1 / std::sqrt(static_cast<double>(width)); }
    at::Tensor split(const at::Tensor &rows, int64_t length) const {
        return rows.reshape({-1, length, heads, width}).transpose(1, 2);
    }
    at::Tensor join(const at::Tensor &states) const { return states.transpose(1, 2).reshape({-1, heads * width}); }
};

// MultiHeadAttention(query, key, value, weights of the three, mask, weight of the last, their biases or none)
//   -> y, dropout mask, query (scaled), key, value, softmax, softmax with dropout, context
void multi_head_attention(OpCall &op) {
    const Heads h(op);
    // torch_npu leaves out what is not given; a dropout mask, which comes last, decides nothing without dropout.
    const size_t optional = op.num_inputs() - 8;
    op.require(optional == 0 || optional == 1 || optional == 4 || optional == 5, "biases: all four or none here");
    const auto project = [&](const at::Tensor &rows, size_t weight, size_t bias) {
        const at::Tensor product = rows.mm(floats(op.input(weight)).t());
        return optional >= 4 ? product + floats(op.input(8 + bias)) : product;
    };
    const at::Tensor query = h.split(project(floats(op.input(0)), 3, 0) * h.scale(), h.targets);
    const at::Tensor key = h.split(project(floats(op.input(1)), 4, 1), h.sources);
    const at::Tensor value = h.split(project(floats(op.input(2)), 5, 2), h.sources);
    const at::Tensor softmax = (at::matmul(query, key.transpose(-2, -1)) + floats(op.input(6))).softmax(-1);
    const at::Tensor context = h.join(at::matmul(softmax, value));
    op.output(0).copy_(project(context, 7, 3));
    op.output(1).fill_(255);  // all stay, a bit or a byte each
    size_t index = 2;
    for (const at::Tensor &result : {query, key, value, softmax, softmax, context}) {
        op.output(index++).copy_(result);
    }
}

// MultiHeadAttentionGrad(query, key, value, weights of the three, weight of the last, query, key and value as above, softmax,
// that with dropout, context, gradient) -> gradients of the weights, of query, key and value, of the biases
void multi_head_attention_grad(OpCall &op) {
    const Heads h(op);
    const auto input = [&op](size_t index) { return floats(op.input(index)); };
    const at::Tensor dy = input(13), softmax = input(10);
    const at::Tensor d_context = h.split(dy.mm(input(6)), h.targets);
    const at::Tensor d_scores = softmax_grad(at::matmul(d_context, input(9).transpose(-2, -1)), softmax);
    const at::Tensor d_query = h.join(at::matmul(d_scores, input(8))) * h.scale();
    const at::Tensor d_key = h.join(at::matmul(d_scores.transpose(-2, -1), input(7)));
    const at::Tensor d_value = h.join(at::matmul(input(11).transpose(-2, -1), d_context));
    size_t index = 0;
    const auto write = [&](const at::Tensor &gradient) {
        at::Tensor &result = op.output(index++);
        result.copy_(gradient.view(result.sizes()));
    };
    write(d_query.t().mm(input(0)));
    write(d_key.t().mm(input(1)));
    write(d_value.t().mm(input(2)));
    write(dy.t().mm(input(12)));
    write(d_query.mm(input(3)));
    write(d_key.mm(input(4)));
    write(d_value.mm(input(5)));
    for (const at::Tensor &gradient : {d_query, d_key, d_value, dy}) {
        write(gradient.sum(0));
    }
}

const Registration registered{
    {"AxpyWithSoftmaxAndDropOutDoMask", axpy_softmax_dropout},
    {"BatchMatMul", batch_matmul},
    {"DropOutDoMaskV3", apply_byte_mask},
    {"DropOutGenMaskV3", generate_byte_mask},
    {"DropoutWithMulsAndSoftmaxGrad", dropout_softmax_grad},
    {"MultiHeadAttention", multi_head_attention},
    {"MultiHeadAttentionGrad", multi_head_attention_grad},
    {"RotaryMul", rotary},
    {"RotaryMulGrad", rotary_grad},
    {"ScaledMaskedSoftmax", scaled_masked_softmax},
    {"ScaledMaskedSoftmaxGrad", scaled_masked_softmax_grad},
};

}  // namespace

}  // namespace cann_sim
