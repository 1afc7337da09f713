// aclnn functions that transformers use and that fuse several operators: norms, gated activations, rotary positions, a loss,
// caches. Each is its formula in aten operators on the CPU, in float32 where the input is narrower, rounded once.
// Arguments and formulas: CANN's and torch_npu's documentation; which sums a gradient takes: the derivative of the formula.

#include "pch.h"

#include "aclnn/adapter.h"
#include "compute/formulas.h"

namespace cann_sim {

namespace {

using cann_sim::wide;
at::Tensor wide(const Value &value) { return wide(tensor(value)); }

// For torch's kernels that read a tensor's memory without its strides.
at::Tensor dense(const Value &value) {
    const at::Tensor found = wide(value);
    return found.defined() ? found.contiguous() : found;
}

std::vector<int64_t> last_dims(const at::Tensor &weight) {
    std::vector<int64_t> dims;
    for (int64_t dim = -weight.dim(); dim < 0; ++dim) {
        dims.push_back(dim);
    }
    return dims;
}

// ---- RMSNorm: x / sqrt(mean(x^2) + epsilon) * gamma ----

// out: y, 1 / root
void normalize(const at::Tensor &x, const at::Tensor &factor, double epsilon, const Value *out) {
    const at::Tensor rstd = x.square().mean(last_dims(factor), true).add_(epsilon).rsqrt_();
    write(out[0], x * rstd * factor);
    write(out[1], rstd);
}

// (x, gamma, epsilon, y, rstd)
void rms_norm(const Value *v) { normalize(wide(v[0]), wide(v[1]), v[2].d, v + 3); }

// Gemma's: the weight is 1 + gamma.
void gemma_rms_norm(const Value *v) { normalize(wide(v[0]), wide(v[1]) + 1, v[2].d, v + 3); }

// (x1, x2, gamma, epsilon, y, rstd, x1 + x2)
void add_rms_norm(const Value *v) {
    const at::Tensor sum = tensor(v[0]) + tensor(v[1]);
    normalize(wide(sum), wide(v[2]), v[3].d, v + 4);
    write(v[6], sum);
}

// (dy, x, rstd, gamma, dx, dgamma)
void rms_norm_grad(const Value *v) {
    const at::Tensor dy = wide(v[0]), rstd = tensor(v[2]), gamma = wide(v[3]);
    const at::Tensor unit = wide(v[1]) * rstd, scaled = dy * gamma;
    write(v[4], (scaled - unit * (scaled * unit).mean(last_dims(gamma), true)) * rstd);
    write(v[5], (dy * unit).sum_to_size(gamma.sizes()));
}

// ---- gated activations: the input is two halves along dim ----

// (x, dim, silu(first half) * second half)
void swiglu(const Value *v) {
    const auto halves = wide(v[0]).chunk(2, v[1].i);
    write(v[2], at::silu(halves[0]) * halves[1]);
}

// (dy, x, dim, dx)
void swiglu_grad(const Value *v) {
    const at::Tensor dy = wide(v[0]);
    const auto halves = wide(v[1]).chunk(2, v[2].i);
    write(v[3], at::cat({at::silu_backward(dy * halves[1], halves[0]), dy * at::silu(halves[0])}, v[2].i));
}

const char *gelu_form(int64_t approximate) { return approximate == 1 ? "tanh" : "none"; }

// (x, approximate, y)
void gelu(const Value *v) { write(v[2], at::gelu(tensor(v[0]), gelu_form(v[1].i))); }

// (dy, x, approximate, dx)
void gelu_backward(const Value *v) { write(v[3], at::gelu_backward(tensor(v[0]), tensor(v[1]), v[2].text())); }

// (x, dim, approximate, whether the first half is the one under gelu, gelu(one half) * other half, gelu(one half))
void geglu(const Value *v) {
    const auto halves = wide(v[0]).chunk(2, v[1].i);
    const bool left = v[3].i != 0;
    const at::Tensor under = at::gelu(halves[left ? 0 : 1], gelu_form(v[2].i));
    write(v[4], under * halves[left ? 1 : 0]);
    write(v[5], under);
}

// (dy, x, gelu(one half), dim, approximate, whether that half is the first, dx)
void geglu_backward(const Value *v) {
    const at::Tensor dy = wide(v[0]);
    const auto halves = wide(v[1]).chunk(2, v[3].i);
    const bool left = v[5].i != 0;
    const at::Tensor under = at::gelu_backward(dy * halves[left ? 1 : 0], halves[left ? 0 : 1], gelu_form(v[4].i)),
                     other = dy * wide(v[2]);
    write(v[6], left ? at::cat({under, other}, v[3].i) : at::cat({other, under}, v[3].i));
}

// ---- group norm, then y * sigmoid(scale * y) ----

struct Groups {
    int64_t batch, channels, inner, groups;

    Groups(const at::Tensor &x, int64_t count)
        : batch(x.size(0)),
          channels(x.size(1)),
          inner(batch * channels == 0 ? 0 : x.numel() / (batch * channels)),
          groups(count) {}
};

// out: y, mean, 1 / standard deviation
void group_norm(const Value *inputs, int64_t groups, double epsilon, std::optional<double> swish, const Value *out) {
    const at::Tensor x = dense(inputs[0]);
    const Groups g(x, groups);
    const auto [y, mean, rstd] =
        at::native_group_norm(x, dense(inputs[1]), dense(inputs[2]), g.batch, g.channels, g.inner, g.groups, epsilon);
    write(out[0], swish.has_value() ? y * (y * *swish).sigmoid() : y);
    write(out[1], mean);
    write(out[2], rstd);
}

// (x, gamma, beta, groups, epsilon, y, mean, rstd)
void group_norm_silu(const Value *v) { group_norm(v, v[3].i, v[4].d, 1, v + 5); }

// (x, gamma, beta, groups, data format, epsilon, whether swish, its scale, y, mean, rstd)
void group_norm_swish(const Value *v) {
    group_norm(v, v[3].i, v[5].d, v[6].i != 0 ? std::optional<double>(v[7].d) : std::nullopt, v + 8);
}

// (dy, mean, rstd, x, gamma, beta, groups, data format, scale, two bools, dx, dgamma, dbeta)
void group_norm_swish_grad(const Value *v) {
    const at::Tensor x = dense(v[3]), gamma = dense(v[4]);
    const Groups g(x, v[6].i);
    const double scale = v[8].d;
    const at::Tensor mean = dense(v[1]).view({g.batch, g.groups}), rstd = dense(v[2]).view({g.batch, g.groups});
    std::vector<int64_t> per_channel(static_cast<size_t>(x.dim()), 1);
    per_channel[1] = g.channels;
    const at::Tensor grouped = x.reshape({g.batch, g.groups, -1});
    const at::Tensor unit = ((grouped - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)).view(x.sizes());
    const at::Tensor y = unit * gamma.view(per_channel) + wide(v[5]).view(per_channel);
    const at::Tensor s = (y * scale).sigmoid();
    const at::Tensor dy = (wide(v[0]) * (s + y * scale * s * (1 - s))).contiguous();
    const auto [dx, dgamma, dbeta] = at::native_group_norm_backward(
        dy, x, mean, rstd, gamma, g.batch, g.channels, g.inner, g.groups, {true, v[9].i != 0, v[10].i != 0});
    write(v[11], dx);
    write(v[12], dgamma);
    write(v[13], dbeta);
}

// ---- layer norm of sums ----

// (x1, x2, gamma, beta, bias, epsilon, whether the sum is asked for, y, mean, 1 / standard deviation, x1 + x2)
void add_layer_norm(const Value *v) {
    at::Tensor sum = wide(v[0]) + wide(v[1]);
    if (!v[4].is_null()) {
        sum = sum + wide(v[4]);
    }
    const at::Tensor gamma = wide(v[2]);
    const auto [y, mean, rstd] = at::native_layer_norm(sum, gamma.sizes(), gamma, wide(v[3]), v[5].d);
    write(v[7], y);
    write(v[8], mean);
    write(v[9], rstd);
    if (v[6].i != 0) {
        write(v[10], sum);
    }
}

// Gradients of (sum, gamma, beta), where `sum` is what was normalized.
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_grad(const at::Tensor &dy, const at::Tensor &sum,
                                                               const at::Tensor &mean, const at::Tensor &rstd,
                                                               const at::Tensor &gamma) {
    return at::native_layer_norm_backward(dy.contiguous(), sum.contiguous(), gamma.sizes(), mean, rstd, gamma,
                                          at::zeros_like(gamma), {true, true, true});
}

// (dy, x1, x2, rstd, mean, gamma, gradient of the sum, dx, dgamma, dbeta)
void add_layer_norm_grad(const Value *v) {
    const at::Tensor sum = wide(v[1]) + wide(v[2]);
    const auto [dx, dgamma, dbeta] = layer_norm_grad(wide(v[0]), sum, tensor(v[4]), tensor(v[3]), wide(v[5]));
    write(v[7], v[6].is_null() ? dx : dx + wide(v[6]));
    write(v[8], dgamma);
    write(v[9], dbeta);
}

// (x, gx, beta, gamma, alpha, epsilon, mean, 1 / standard deviation, y): of alpha x + gx
void deep_norm(const Value *v) {
    const at::Tensor gamma = wide(v[3]);
    const auto [y, mean, rstd] =
        at::native_layer_norm(wide(v[0]) * v[4].d + wide(v[1]), gamma.sizes(), gamma, wide(v[2]), v[5].d);
    write(v[6], mean);
    write(v[7], rstd);
    write(v[8], y);
}

// (dy, x, gx, gamma, mean, rstd, alpha, dx, dgx, dbeta, dgamma)
void deep_norm_grad(const Value *v) {
    const double alpha = v[6].d;
    const at::Tensor sum = wide(v[1]) * alpha + wide(v[2]);
    const auto [dx, dgamma, dbeta] = layer_norm_grad(wide(v[0]), sum, tensor(v[4]), tensor(v[5]), wide(v[3]));
    write(v[7], dx * alpha);
    write(v[8], dx);
    write(v[9], dbeta);
    write(v[10], dgamma);
}

// ---- cross entropy of logits [N, C] and classes [N]; CANN has no z loss yet ----

int64_t reduction_of(const std::string &name) {
    return name == "none" ? at::Reduction::None : name == "mean" ? at::Reduction::Mean : at::Reduction::Sum;
}

void write_zeros(const Value &out) {
    if (!out.is_null()) {
        tensor(out).zero_();
    }
}

// (logits, classes, weight, reduction, ignored class, smoothing, scale and return of the z loss, loss, log softmax, z loss, its sum)
void check_reduction(const Value &value) {
    const std::string name = value.text();
    TORCH_CHECK(name == "none" || name == "mean" || name == "sum", "reduction must be none, mean or sum, not ", name);
}
void check_cross_entropy(const Value *v) {
    check_reduction(v[3]);
    TORCH_CHECK(v[6].d == 0 && v[7].i == 0, "the z loss is not simulated (nor in CANN)");
}
void cross_entropy_loss(const Value *v) {
    const at::Tensor logits = wide(v[0]);
    const at::Tensor weight = tensor(v[2]);
    write(v[8], at::cross_entropy_loss(logits, tensor(v[1]).to(at::kLong), weight, reduction_of(v[3].text()), v[4].i,
                                       v[5].d));
    write(v[9], at::log_softmax(logits, 1));
    write_zeros(v[10]);
    write_zeros(v[11]);
}

// (dloss, log softmax, classes, weight, gradient and sum of the z loss, reduction, ignored class, smoothing, z scale, dlogits)
void cross_entropy_loss_grad(const Value *v) {
    const at::Tensor gradient = wide(v[0]), p = wide(v[1]).exp(), target = tensor(v[2]);
    const int64_t classes = p.size(1);
    const std::string reduction = v[6].text();
    const double smoothing = v[8].d;
    const at::Tensor counts = target != v[7].i, index = target.where(counts, 0);
    const at::Tensor weights = v[3].is_null() ? at::ones({classes}, p.options()) : wide(v[3]);
    const at::Tensor own = weights.index_select(0, index) * counts;  // 0 where the target is ignored
    const at::Tensor hit = at::zeros_like(p).scatter_(1, index.unsqueeze(1), 1);
    at::Tensor d = (1 - smoothing) * own.unsqueeze(1) * (p - hit);
    if (smoothing > 0) {
        d = d + smoothing / static_cast<double>(classes) * (p * weights.sum() - weights) * counts.unsqueeze(1);
    }
    d = reduction == "none" ? d * gradient.unsqueeze(1) : d * gradient.reshape({});
    write(v[10], reduction == "mean" ? d / own.sum() : d);
}

// ---- attention ----

// (x, mask or none, bias of relative positions, scale, precision, softmax(scale x + mask + bias)), with sizes B batches,
// W windows, N heads: x [B W, N, S, S] or [B, W, N, S, S]; mask [W, S, S], [W, 1, S, S] or [1, W, 1, S, S]; bias [N, S, S],
// perhaps with 1s before.
int64_t windows_of(const at::Tensor &x, const at::Tensor &mask) {
    return x.dim() == 5 ? x.size(1) : mask.defined() ? mask.size(mask.dim() == 5 ? 1 : 0) : 1;
}
void check_masked_softmax(const Value *v) {
    const at::Tensor x = tensor(v[0]), mask = tensor(v[1]), bias = tensor(v[2]);
    TORCH_CHECK(x.dim() == 4 || x.dim() == 5, "x must have 4 or 5 dimensions, not shape ", x.sizes());
    const int64_t windows = windows_of(x, mask), heads = x.size(-3), pixels = x.size(-2) * x.size(-1);
    TORCH_CHECK(windows > 0 && (x.dim() == 5 || x.size(0) % windows == 0), "x of shape ", x.sizes(),
                " cannot have the windows of a mask of shape ", mask.defined() ? mask.sizes() : at::IntArrayRef());
    TORCH_CHECK(!mask.defined() || (mask.dim() >= 3 && mask.dim() <= 5 && mask.size(-2) == x.size(-2) &&
                                    mask.size(-1) == x.size(-1) && mask.numel() == windows * pixels),
                "attenMaskOptional must be [W, S1, S2], [W, 1, S1, S2] or [1, W, 1, S1, S2], not of shape ",
                mask.defined() ? mask.sizes() : at::IntArrayRef(), " for x of shape ", x.sizes());
    TORCH_CHECK(
        bias.dim() >= 3 && bias.size(-2) == x.size(-2) && bias.size(-1) == x.size(-1) && bias.numel() == heads * pixels,
        "relativePosBias must be [N, S1, S2], perhaps with 1s before, not of shape ", bias.sizes(), " for x of shape ",
        x.sizes());
}
void masked_softmax(const Value *v) {
    const at::Tensor x = tensor(v[0]), mask = tensor(v[1]);
    const int64_t windows = windows_of(x, mask), heads = x.size(-3), rows = x.size(-2), columns = x.size(-1);
    const int64_t batches = x.dim() == 5 ? x.size(0) : x.size(0) / windows;
    at::Tensor scores = wide(x).reshape({batches, windows, heads, rows, columns});
    scores = scores * v[3].d;
    if (mask.defined()) {
        scores = scores + mask.reshape({windows, 1, rows, columns});
    }
    write(v[5], (scores + tensor(v[2]).reshape({heads, rows, columns})).softmax(-1).view(x.sizes()));
}

// (x, cos, sin, 0: halves are turned, 1: neighbours, y)
void rotary(const Value *v) { write(v[4], rotary_mul(wide(v[0]), wide(v[1]), wide(v[2]), v[3].i == 1)); }

// (dy, cos, sin, x or none, mode, dx, dcos, dsin)
void rotary_grad(const Value *v) {
    const bool neighbours = v[4].i == 1;
    const at::Tensor dy = wide(v[0]), cos = wide(v[1]), sin = wide(v[2]);
    write(v[5], rotary_mul_backward(dy, cos, sin, neighbours));
    if (!v[3].is_null()) {
        const auto [dcos, dsin] = rotary_factors_backward(dy, wide(v[3]), cos.sizes(), sin.sizes(), neighbours);
        write(v[6], dcos);
        write(v[7], dsin);
    }
}

// ---- caches and quantisation ----

// (data, in place, indices, updates, axis)
void check_scatter_update(const Value *v) { check_scatter_by_batch(tensor(v[0]), tensor(v[1]), tensor(v[2]), v[3].i); }
void scatter_update(const Value *v) { scatter_by_batch(tensor(v[0]), tensor(v[1]), tensor(v[2]), v[3].i); }

// (data, in place, indices [..., k] into its first k dimensions, updates)
void scatter_nd_update(const Value *v) {
    c10::List<std::optional<at::Tensor>> columns;
    for (const at::Tensor &column : tensor(v[1]).to(at::kLong).unbind(-1)) {
        columns.push_back(column);
    }
    tensor(v[0]).index_put_(columns, tensor(v[2]));
}

// (x, scale, offset or none, data type, square root, (x + offset) * scale)
void check_int8(const Value *v) {
    const at::ScalarType type = tensor(v[0]).scalar_type();
    TORCH_CHECK(type == at::kChar, "of integers only int8 is simulated, not ", type);
}
void anti_quant(const Value *v) {
    const at::Tensor x = tensor(v[0]);
    const at::Tensor scale = v[4].i != 0 ? wide(v[1]).square() : wide(v[1]);
    write(v[5], (v[2].is_null() ? x.to(at::kFloat) : x.to(at::kFloat) + wide(v[2])) * scale);
}

const ComputationRegistration registered{
    {"aclnnAddLayerNorm", add_layer_norm},
    {"aclnnAddLayerNormGrad", add_layer_norm_grad},
    {"aclnnAddRmsNorm", add_rms_norm},
    {"aclnnAscendAntiQuant", anti_quant, check_int8},
    {"aclnnCrossEntropyLoss", cross_entropy_loss, check_cross_entropy},
    {"aclnnCrossEntropyLossGrad", cross_entropy_loss_grad, [](const Value *v) { check_reduction(v[6]); }},
    {"aclnnDeepNorm", deep_norm},
    {"aclnnDeepNormGrad", deep_norm_grad},
    {"aclnnGeGluV3", geglu},
    {"aclnnGeGluV3Backward", geglu_backward},
    {"aclnnGeluBackwardV2", gelu_backward},
    {"aclnnGeluV2", gelu},
    {"aclnnGemmaRmsNorm", gemma_rms_norm},
    {"aclnnGroupNormSilu", group_norm_silu},
    {"aclnnGroupNormSwish", group_norm_swish},
    {"aclnnGroupNormSwishGrad", group_norm_swish_grad},
    {"aclnnInplaceScatterUpdate", scatter_update, check_scatter_update},
    {"aclnnMaskedSoftmaxWithRelPosBias", masked_softmax, check_masked_softmax},
    {"aclnnRmsNorm", rms_norm},
    {"aclnnRmsNormGrad", rms_norm_grad},
    {"aclnnRotaryPositionEmbedding", rotary},
    {"aclnnRotaryPositionEmbeddingGrad", rotary_grad},
    {"aclnnScatterNdUpdate", scatter_nd_update},
    {"aclnnSwiGlu", swiglu},
    {"aclnnSwiGluGrad", swiglu_grad},
};

}  // namespace

}  // namespace cann_sim
