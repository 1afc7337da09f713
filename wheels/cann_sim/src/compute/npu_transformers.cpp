// Operators of torch_npu's own (namespace npu) that transformers use and that ask CANN for one fused aclnn function: each is
// its formula in aten operators on the NPU, in float32 where the input is narrower, rounded once.
// Signatures: op-plugin's op_plugin_functions.yaml. Formulas: torch_npu's documentation; which sums a gradient takes: the
// derivative of the formula.

#include "pch.h"

#include "compute/compute.h"
#include "compute/levels.h"

namespace cann_sim {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

bool present(const OptionalTensor &tensor) { return tensor.has_value() && tensor->defined(); }

at::Tensor wide(const at::Tensor &tensor) { return tensor.to(at::promoteTypes(tensor.scalar_type(), at::kFloat)); }

at::Tensor like(const at::Tensor &result, const at::Tensor &input) { return result.to(input.scalar_type()); }

// The sum over the rows that a weight of this shape was applied to.
at::Tensor over_rows(const at::Tensor &gradient, const at::Tensor &weight) {
    return gradient.sum_to_size(weight.sizes()).to(weight.scalar_type());
}

std::vector<int64_t> last_dims(const at::Tensor &weight) {
    std::vector<int64_t> dims;
    for (int64_t dim = -weight.dim(); dim < 0; ++dim) {
        dims.push_back(dim);
    }
    return dims;
}

// ---- RMSNorm: x / sqrt(mean(x^2) + epsilon) * gamma ----

struct RmsNorm {
    at::Tensor y, rstd;
};

RmsNorm normalized(const at::Tensor &x, const at::Tensor &factor, double epsilon) {
    const at::Tensor rstd = x.square().mean(last_dims(factor), true).add_(epsilon).rsqrt_();
    return {x * rstd * factor, rstd};
}

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor &input, const at::Tensor &gamma, double epsilon) {
    const RmsNorm norm = normalized(wide(input), wide(gamma), epsilon);
    return {like(norm.y, input), norm.rstd};
}

// Gemma's: the weight is 1 + gamma.
std::tuple<at::Tensor, at::Tensor> gemma_rms_norm(const at::Tensor &input, const at::Tensor &gamma, double epsilon) {
    const RmsNorm norm = normalized(wide(input), wide(gamma) + 1, epsilon);
    return {like(norm.y, input), norm.rstd};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor &gradient, const at::Tensor &input,
                                                     const at::Tensor &gamma, const at::Tensor &rstd) {
    const at::Tensor dy = wide(gradient), unit = wide(input) * rstd, scaled = dy * wide(gamma);
    const at::Tensor dx = (scaled - unit * (scaled * unit).mean(last_dims(gamma), true)) * rstd;
    return {like(dx, input), over_rows(dy * unit, gamma).to(at::kFloat)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(const at::Tensor &first, const at::Tensor &second,
                                                            const at::Tensor &gamma, double epsilon) {
    const at::Tensor sum = first + second;
    const auto [y, rstd] = rms_norm(sum, gamma, epsilon);
    return {y, rstd, sum};
}

// ---- gated activations: the input is two halves along `dim` ----

at::Tensor swiglu(const at::Tensor &input, int64_t dim) {
    const auto halves = wide(input).chunk(2, dim);
    return like(at::silu(halves[0]) * halves[1], input);
}

at::Tensor swiglu_backward(const at::Tensor &gradient, const at::Tensor &input, int64_t dim) {
    const auto halves = wide(input).chunk(2, dim);
    const at::Tensor dy = wide(gradient);
    return like(at::cat({at::silu_backward(dy * halves[1], halves[0]), dy * at::silu(halves[0])}, dim), input);
}

// GELU in the form that is asked for. By its formula where that has tanh: torch_npu's aclnnGelu knows no form and takes erf.
constexpr double kTanhScale = M_2_SQRTPI * M_SQRT1_2, kTanhCube = 0.044715;

at::Tensor gelu_tanh(const at::Tensor &x) { return at::tanh((x * x * x * kTanhCube + x) * kTanhScale); }

at::Tensor npu_gelu(const at::Tensor &input, c10::string_view approximate) {
    if (approximate != "tanh") {
        return at::gelu(input, approximate);
    }
    const at::Tensor x = wide(input);
    return like((gelu_tanh(x) + 1) * x * 0.5, input);
}

at::Tensor npu_gelu_backward(const at::Tensor &gradient, const at::Tensor &input, c10::string_view approximate) {
    if (approximate != "tanh") {
        return at::gelu_backward(gradient, input, approximate);
    }
    const at::Tensor x = wide(input), tanh = gelu_tanh(x);
    const at::Tensor inner = (x * x * (3 * kTanhCube) + 1) * kTanhScale;
    return like(wide(gradient) * 0.5 * (tanh + 1 + x * (1 - tanh * tanh) * inner), input);
}

const char *gelu_form(int64_t approximate) { return approximate == 1 ? "tanh" : "none"; }

// (gelu(one half) times the other, that gelu); activate_left: the first half is the one under gelu.
std::tuple<at::Tensor, at::Tensor> geglu(const at::Tensor &input, int64_t dim, int64_t approximate, bool left) {
    const auto halves = wide(input).chunk(2, dim);
    const at::Tensor under = npu_gelu(halves[left ? 0 : 1], gelu_form(approximate));
    return {like(under * halves[left ? 1 : 0], input), like(under, input)};
}

at::Tensor geglu_grad(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &gelu, int64_t dim,
                      int64_t approximate, bool left) {
    const auto halves = wide(input).chunk(2, dim);
    const at::Tensor dy = wide(gradient);
    const at::Tensor under = npu_gelu_backward(dy * halves[left ? 1 : 0], halves[left ? 0 : 1], gelu_form(approximate));
    const at::Tensor other = dy * wide(gelu);
    return like(left ? at::cat({under, other}, dim) : at::cat({other, under}, dim), input);
}

// ---- linear: input weight^T + bias ----

at::Tensor linear(const at::Tensor &input, const at::Tensor &weight, const OptionalTensor &bias) {
    return present(bias) ? at::addmm(*bias, input, weight.t()) : input.mm(weight.t());
}

std::tuple<at::Tensor, at::Tensor> linear_backward(const at::Tensor &gradient, const at::Tensor &input,
                                                   const at::Tensor &weight) {
    return {gradient.mm(weight), gradient.t().mm(input)};
}

// ---- other norms ----

// silu(group norm) with the statistics of each group
std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_swish(const at::Tensor &input, int64_t groups,
                                                                const OptionalTensor &weight,
                                                                const OptionalTensor &bias, double epsilon,
                                                                double scale) {
    const auto widened = [](const OptionalTensor &t) {
        return present(t) ? OptionalTensor(wide(*t)) : OptionalTensor();
    };
    const int64_t batch = input.size(0), channels = input.size(1);
    const auto [y, mean, rstd] =
        at::native_group_norm(wide(input).contiguous(), widened(weight), widened(bias), batch, channels,
                              batch * channels == 0 ? 0 : input.numel() / (batch * channels), groups, epsilon);
    return {like(y * (y * scale).sigmoid(), input), like(mean, input), like(rstd, input)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_swish_of(const at::Tensor &input, int64_t groups,
                                                                   const at::Tensor &weight, const at::Tensor &bias,
                                                                   std::optional<double> epsilon,
                                                                   std::optional<double> scale) {
    return group_norm_swish(input, groups, weight, bias, epsilon.value_or(1e-5), scale.value_or(1));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_swish_grad(const at::Tensor &gradient,
                                                                     const at::Tensor &input, int64_t groups,
                                                                     const at::Tensor &weight, const at::Tensor &bias,
                                                                     const at::Tensor &mean, const at::Tensor &rstd,
                                                                     std::array<bool, 3> wanted,
                                                                     std::optional<double> swish_scale) {
    const double scale = swish_scale.value_or(1);
    const int64_t batch = input.size(0), channels = input.size(1), inner = input.numel() / (batch * channels);
    const at::Tensor x = wide(input).contiguous();
    const at::Tensor m = wide(mean).reshape({batch, groups}), r = wide(rstd).reshape({batch, groups});
    std::vector<int64_t> per_channel(static_cast<size_t>(input.dim()), 1);
    per_channel[1] = channels;
    const at::Tensor unit = ((x.reshape({batch, groups, -1}) - m.unsqueeze(-1)) * r.unsqueeze(-1)).view(x.sizes());
    const at::Tensor y = unit * wide(weight).view(per_channel) + wide(bias).view(per_channel);
    const at::Tensor s = (y * scale).sigmoid();
    const at::Tensor dy = (wide(gradient) * (s + y * scale * s * (1 - s))).contiguous();
    const auto [dx, dweight, dbias] =
        at::native_group_norm_backward(dy, x, m, r, wide(weight), batch, channels, inner, groups, wanted);
    const auto narrow = [](const at::Tensor &t, const at::Tensor &input) { return t.defined() ? like(t, input) : t; };
    return {narrow(dx, input), narrow(dweight, weight), narrow(dbias, bias)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_silu(const at::Tensor &input, const OptionalTensor &weight,
                                                               const OptionalTensor &bias, int64_t groups,
                                                               double epsilon) {
    return group_norm_swish(input, groups, weight, bias, epsilon, 1);
}

// layer norm of x1 + x2 -> (y, mean, 1 / standard deviation, the sum where it is asked for)
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> add_layer_norm(const at::Tensor &first,
                                                                          const at::Tensor &second,
                                                                          const at::Tensor &gamma,
                                                                          const at::Tensor &beta, double epsilon,
                                                                          bool additional_output) {
    const at::Tensor sum = wide(first) + wide(second);
    const auto [y, mean, rstd] = at::native_layer_norm(sum, gamma.sizes(), wide(gamma), wide(beta), epsilon);
    return {like(y, first), mean, rstd, additional_output ? like(sum, first) : at::zeros({1}, first.options())};
}

// Gradients of (x1 or x2, gamma, beta), where `sum` is what was normalized.
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_grad(const at::Tensor &gradient, const at::Tensor &sum,
                                                               const at::Tensor &mean, const at::Tensor &rstd,
                                                               const at::Tensor &gamma) {
    return at::native_layer_norm_backward(wide(gradient).contiguous(), sum.contiguous(), gamma.sizes(), mean, rstd,
                                          wide(gamma), at::zeros_like(wide(gamma)), {true, true, true});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> add_layer_norm_backward(
    const OptionalTensor &gradient, const at::Tensor &first, const at::Tensor &second, const at::Tensor &rstd,
    const at::Tensor &mean, const at::Tensor &gamma, const OptionalTensor &of_sum) {
    const at::Tensor sum = wide(first) + wide(second);
    const at::Tensor dy = present(gradient) ? wide(*gradient) : at::zeros_like(sum);
    auto [dx, dgamma, dbeta] = layer_norm_grad(dy, sum, mean, rstd, gamma);
    if (present(of_sum)) {
        dx = dx + *of_sum;
    }
    return {like(dx, first), like(dx, second), dgamma, dbeta};
}

// layer norm of alpha x + gx -> (mean, 1 / standard deviation, y)
std::tuple<at::Tensor, at::Tensor, at::Tensor> deep_norm(const at::Tensor &x, const at::Tensor &gx,
                                                         const at::Tensor &beta, const at::Tensor &gamma, double alpha,
                                                         double epsilon) {
    const auto [y, mean, rstd] =
        at::native_layer_norm(wide(x) * alpha + wide(gx), gamma.sizes(), wide(gamma), wide(beta), epsilon);
    return {mean, rstd, like(y, x)};
}

// -> gradients of (x, gx, beta, gamma)
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> deep_norm_backward(const at::Tensor &gradient,
                                                                              const at::Tensor &x, const at::Tensor &gx,
                                                                              const at::Tensor &gamma,
                                                                              const at::Tensor &mean,
                                                                              const at::Tensor &rstd, double alpha) {
    const auto [dx, dgamma, dbeta] = layer_norm_grad(gradient, wide(x) * alpha + wide(gx), mean, rstd, gamma);
    return {like(dx * alpha, x), like(dx, gx), dbeta, dgamma};
}

// ---- cross entropy of logits [N, C] and classes [N] -> (loss, log softmax, nothing, nothing: CANN has no z loss yet) ----

int64_t reduction_of(c10::string_view name) {
    return name == "none" ? at::Reduction::None : name == "mean" ? at::Reduction::Mean : at::Reduction::Sum;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cross_entropy_loss(
    const at::Tensor &input, const at::Tensor &target, const OptionalTensor &weight, c10::string_view reduction,
    int64_t ignored, double smoothing, double z_scale, bool return_z) {
    TORCH_CHECK(z_scale == 0 && !return_z, "npu_cross_entropy_loss: the z loss is not simulated (nor in CANN)");
    const at::Tensor loss =
        at::cross_entropy_loss(wide(input), target, weight, reduction_of(reduction), ignored, smoothing);
    const at::Tensor none = at::empty({0}, input.options());
    return {like(reduction == "none" ? loss : loss.reshape({1}), input), like(at::log_softmax(wide(input), 1), input),
            none, none.clone()};
}

at::Tensor cross_entropy_loss_backward(const at::Tensor &gradient, const at::Tensor &log_prob, const at::Tensor &target,
                                       const OptionalTensor &weight, const OptionalTensor &, const OptionalTensor &,
                                       c10::string_view reduction, int64_t ignored, double smoothing, double) {
    const int64_t classes = log_prob.size(1);
    const at::Tensor p = wide(log_prob).exp(), counts = target != ignored, index = target.where(counts, 0);
    const at::Tensor weights = present(weight) ? wide(*weight) : at::ones({classes}, p.options());
    const at::Tensor own = weights.index_select(0, index) * counts;  // 0 where the target is ignored
    const at::Tensor hit = at::zeros_like(p).scatter_(1, index.unsqueeze(1), 1);
    at::Tensor d = (1 - smoothing) * own.unsqueeze(1) * (p - hit);
    if (smoothing > 0) {
        d = d + smoothing / static_cast<double>(classes) * (p * weights.sum() - weights) * counts.unsqueeze(1);
    }
    d = reduction == "none" ? d * wide(gradient).unsqueeze(1) : d * wide(gradient).reshape({});
    return like(reduction == "mean" ? d / own.sum() : d, log_prob);
}

// ---- attention ----

at::Tensor masked_softmax_with_rel_pos_bias(const at::Tensor &x, const OptionalTensor &mask, const at::Tensor &bias,
                                            double scale, int64_t) {
    at::Tensor scores = wide(x) * scale;
    if (present(mask)) {
        scores = scores + *mask;
    }
    return like((scores + bias).softmax(-1), x);
}

// ---- quantisation ----

at::Tensor anti_quant(const at::Tensor &x, const at::Tensor &scale, const OptionalTensor &offset,
                      std::optional<at::ScalarType> to, std::optional<at::ScalarType> from) {
    TORCH_CHECK(x.scalar_type() == at::kChar && (!from.has_value() || *from == at::kChar),
                "npu_anti_quant: of integers only int8 is simulated, not ", x.scalar_type());
    at::Tensor value = x.to(at::kFloat);
    if (present(offset)) {
        value = value + *offset;
    }
    return (value * scale).to(to.value_or(at::kHalf));
}

// ---- caches ----

// Per batch b, self[b] takes updates[b] at indices[b] along axis.
at::Tensor &scatter_update_(at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates, int64_t axis) {
    TORCH_CHECK(indices.dim() == 1 && indices.numel() == updates.size(0),
                "scatter_update: indices must have one number per batch");
    const int64_t dim = c10::maybe_wrap_dim(axis, self.dim());
    TORCH_CHECK(dim > 0, "scatter_update: axis must not be the batch's");
    const at::Tensor starts = indices.cpu();
    for (int64_t b = 0; b < updates.size(0); ++b) {
        self.select(0, b).narrow(dim - 1, starts[b].item<int64_t>(), updates.size(dim)).copy_(updates.select(0, b));
    }
    return self;
}

at::Tensor scatter_update(const at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates, int64_t axis) {
    at::Tensor result = self.clone();
    return scatter_update_(result, indices, updates, axis);
}

// indices [..., k] point at self's first k dimensions.
at::Tensor &scatter_nd_update_(at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates) {
    c10::List<std::optional<at::Tensor>> columns;
    for (const at::Tensor &column : indices.to(at::kLong).unbind(-1)) {
        columns.push_back(column);
    }
    return self.index_put_(columns, updates);
}

at::Tensor scatter_nd_update(const at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates) {
    at::Tensor result = self.clone();
    return scatter_nd_update_(result, indices, updates);
}

}  // namespace

void register_npu_transformers() {
    static torch::Library library(torch::Library::IMPL, "npu", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    const auto simulate = [](const std::string &name, auto function) {
        if (!at_level_aclnn("npu::" + name)) {
            library.impl(name.c_str(), function);
        }
    };
    simulate("npu_rms_norm", TORCH_FN(rms_norm));
    simulate("npu_rms_norm_backward", TORCH_FN(rms_norm_backward));
    simulate("npu_gemma_rms_norm", TORCH_FN(gemma_rms_norm));
    simulate("npu_add_rms_norm", TORCH_FN(add_rms_norm));
    simulate("npu_add_layer_norm", TORCH_FN(add_layer_norm));
    simulate("npu_swiglu", TORCH_FN(swiglu));
    simulate("npu_swiglu_backward", TORCH_FN(swiglu_backward));
    simulate("npu_geglu", TORCH_FN(geglu));
    simulate("npu_geglu_grad", TORCH_FN(geglu_grad));
    simulate("npu_gelu", TORCH_FN(npu_gelu));
    simulate("npu_gelu_backward", TORCH_FN(npu_gelu_backward));
    simulate("npu_linear", TORCH_FN(linear));
    simulate("npu_linear_backward", TORCH_FN(linear_backward));
    simulate("npu_group_norm_silu", TORCH_FN(group_norm_silu));
    simulate("npu_group_norm_swish", TORCH_FN(group_norm_swish_of));
    simulate("npu_group_norm_swish_grad", TORCH_FN(group_norm_swish_grad));
    simulate("npu_add_layer_norm_backward", TORCH_FN(add_layer_norm_backward));
    simulate("npu_deep_norm", TORCH_FN(deep_norm));
    simulate("npu_deep_norm_backward", TORCH_FN(deep_norm_backward));
    simulate("npu_cross_entropy_loss", TORCH_FN(cross_entropy_loss));
    simulate("npu_cross_entropy_loss_backward", TORCH_FN(cross_entropy_loss_backward));
    simulate("npu_masked_softmax_with_rel_pos_bias", TORCH_FN(masked_softmax_with_rel_pos_bias));
    simulate("npu_anti_quant", TORCH_FN(anti_quant));
    simulate("scatter_update", TORCH_FN(scatter_update));
    simulate("scatter_update_", TORCH_FN(scatter_update_));
    simulate("npu_scatter_nd_update", TORCH_FN(scatter_nd_update));
    simulate("npu_scatter_nd_update_", TORCH_FN(scatter_nd_update_));
}

}  // namespace cann_sim
