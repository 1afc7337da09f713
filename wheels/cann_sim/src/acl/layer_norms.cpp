// ACL operators that normalise layers and batches.
// Prototypes and formulas: CANN's operator specifications, op-plugin's calls and tests. Half precision is computed in float32
// and rounded once.

#include "pch.h"

#include "acl/operators.h"

namespace cann_sim {

namespace {

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

// LayerNormGrad(dy, x, variance, mean, gamma) -> gradients of x, gamma and beta, over the dimensions of gamma. The third is the
// variance, although npu_layernorm_grad calls it rstd. (torch takes but the shape of beta.)
void layer_norm_grad(OpCall &op) {
    const at::Tensor x = floats(op.input(1)), gamma = floats(op.input(4));
    op.require(gamma.dim() <= x.dim() && x.sizes().slice(static_cast<size_t>(x.dim() - gamma.dim())) == gamma.sizes(),
               "gamma must have the shape of the last dimensions of x");
    const at::Tensor rstd = (floats(op.input(2)) + 1e-12).rsqrt();
    const auto [dx, dgamma, dbeta] = at::native_layer_norm_backward(
        floats(op.input(0)), x, gamma.sizes(), floats(op.input(3)), rstd, gamma, gamma, {true, true, true});
    op.output(0).copy_(dx.view(op.output(0).sizes()));
    op.output(1).copy_(dgamma.view(op.output(1).sizes()));
    op.output(2).copy_(dbeta.view(op.output(2).sizes()));
}

// NormalizeBatch(x [N, C, D], seq_len [N]): each picture less its mean, by its standard deviation (of a sample) + epsilon. Those
// are of the first seq_len columns, per_feature or all_features; what lies behind them is normalised, too.
void normalize_batch(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    const std::vector<int64_t> lengths = op.ints(1);
    const std::string type = op.get_string("normalize_type", "");
    op.require(type == "per_feature" || type == "all_features",
               "normalize_type must be per_feature or all_features, not " + type);
    op.require(x.dim() == 3 && lengths.size() == static_cast<size_t>(x.size(0)),
               "input_x must have shape [N, C, D], and seq_len a number for each of N");
    for (int64_t n = 0; n < x.size(0); ++n) {
        const int64_t length = lengths[static_cast<size_t>(n)];
        op.require(length > 1 && length <= x.size(2),
                   "seq_len must be from 2 (a deviation needs two values) to " + std::to_string(x.size(2)));
        const at::Tensor part = x[n].narrow(1, 0, length), row = type == "per_feature" ? part : part.reshape({1, -1});
        op.output(0)[n].copy_((x[n] - row.mean(1, true)) / (row.std(1, true, true) + op.get_float("epsilon", 1e-5)));
    }
}

const Registration registered{
    {"LayerNormGrad", layer_norm_grad},
    {"LayerNormV3", layer_norm},
    {"NormalizeBatch", normalize_batch},
};

}  // namespace

}  // namespace cann_sim
