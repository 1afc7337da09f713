// npu_fusion_attention, the fused attention that torch_npu's scaled_dot_product_attention calls:
//     softmax(scale (q k^T + pse), masked) v
// (CANN: aclnnFlashAttentionScore). Computed by the CPU's flash attention, which never forms the score matrix; with
// dropout, which that one lacks, by the definition: softmax(...) * mask / keep_prob, then v. Value may have fewer
// channels than query and key; the CPU's flash attention wants as many and gets zeros.

#include "pch.h"

#include <cmath>

#include "compute/compute.h"
#include "compute/random.h"
#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"

namespace cann_sim {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The dispatcher passes an optional tensor that was left out either way.
bool present(const OptionalTensor &tensor) { return tensor.has_value() && tensor->defined(); }

// Batch, heads, sequence, head dimension, whatever the layout says; a view of `tensor`.
at::Tensor to_bnsd(const at::Tensor &tensor, const std::string &layout, int64_t heads) {
    if (layout == "BNSD") {
        return tensor;
    }
    if (layout == "BSND") {
        return tensor.transpose(1, 2);
    }
    if (layout == "BSH") {
        return tensor.unflatten(2, {heads, -1}).transpose(1, 2);
    }
    if (layout == "SBH") {
        return tensor.unflatten(2, {heads, -1}).permute({1, 2, 0, 3});
    }
    TORCH_CHECK(false, "npu_fusion_attention: input_layout ", layout, " is not simulated (BNSD, BSND, BSH, SBH are)");
}

at::Tensor from_bnsd(const at::Tensor &tensor, const std::string &layout) {
    if (layout == "BNSD") {
        return tensor.contiguous();
    }
    if (layout == "BSND") {
        return tensor.transpose(1, 2).contiguous();
    }
    if (layout == "BSH") {
        return tensor.transpose(1, 2).flatten(2).contiguous();
    }
    return tensor.permute({2, 0, 1, 3}).flatten(2).contiguous();  // SBH
}

// Heads of key and value: by their width where the layout does not name them (grouped-query attention has fewer).
int64_t key_heads(const at::Tensor &query, const at::Tensor &key, const std::string &layout, int64_t heads) {
    if (layout == "BNSD") {
        return key.size(1);
    }
    if (layout == "BSND") {
        return key.size(2);
    }
    return key.size(2) / (query.size(2) / heads);
}

struct Attention {
    at::Tensor query, key, value;  // CPU, BNSD, key and value repeated to the query's heads
    int64_t group;                 // query heads per key head
    OptionalTensor bias;           // additive, as the CPU kernel takes it
    bool causal = false;
};

// A call's arguments by the schema's names: torch_npu's versions differ in how many there are (`sink` came in
// 2.8.0.post2).
class Arguments {
public:
    Arguments(const c10::OperatorHandle &op, const torch::jit::Stack &stack)
        : schema_(op.schema()), first_(stack.end() - static_cast<std::ptrdiff_t>(schema_.arguments().size())) {}

    const c10::IValue &operator[](const char *name) const {
        const auto index = schema_.argumentIndexWithName(name);
        TORCH_CHECK(index.has_value(), schema_.name(), " of this torch_npu has no argument ", name);
        return *(first_ + *index);
    }
    const at::Tensor &tensor(const char *name) const { return (*this)[name].toTensor(); }
    OptionalTensor optional(const char *name) const {
        return schema_.argumentIndexWithName(name).has_value() ? (*this)[name].toOptional<at::Tensor>() : std::nullopt;
    }

private:
    const c10::FunctionSchema &schema_;
    const torch::jit::Stack::const_iterator first_;
};

Attention prepare(const Arguments &given, double scale) {
    const at::Tensor &query = given.tensor("query"), &key = given.tensor("key"), &value = given.tensor("value");
    const int64_t heads = given["head_num"].toInt(), sparse_mode = given["sparse_mode"].toInt();
    const std::string layout = given["input_layout"].toStringRef();
    const OptionalTensor pse = given.optional("pse"), mask = given.optional("atten_mask");
    const double keep = given["keep_prob"].toDouble();
    TORCH_CHECK(keep > 0. && keep <= 1., "npu_fusion_attention: keep_prob must be in (0, 1], not ", keep);
    TORCH_CHECK(!present(given.optional("padding_mask")),
                "npu_fusion_attention: padding_mask is not supported (nor is it by CANN)");
    TORCH_CHECK(!present(given.optional("sink")), "npu_fusion_attention: sink is not simulated");
    TORCH_CHECK(sparse_mode >= 0 && sparse_mode <= 2, "npu_fusion_attention: sparse_mode ", sparse_mode,
                " is not simulated");
    finish_queued_operators(query.device());
    const int64_t fewer = key_heads(query, key, layout, heads);
    Attention a{to_bnsd(alias_on_cpu(query), layout, heads),
                to_bnsd(alias_on_cpu(key), layout, fewer),
                to_bnsd(alias_on_cpu(value), layout, fewer),
                heads / fewer,
                {},
                sparse_mode == 2};
    TORCH_CHECK(a.query.size(-1) == a.key.size(-1) && a.value.size(-1) <= a.key.size(-1),
                "npu_fusion_attention: query and key have equally many channels, value no more; not ", a.query.size(-1),
                ", ", a.key.size(-1), " and ", a.value.size(-1));
    if (a.group != 1) {
        a.key = a.key.repeat_interleave(a.group, 1);
        a.value = a.value.repeat_interleave(a.group, 1);
    }
    if (present(pse)) {
        a.bias = alias_on_cpu(*pse) * scale;
    }
    if (present(mask) && !a.causal) {  // 1 = left out
        const at::Tensor blocked = alias_on_cpu(*mask).to(at::kBool);
        const at::Tensor bias = at::zeros(blocked.sizes(), a.query.options())
                                    .masked_fill_(blocked, -std::numeric_limits<float>::infinity());
        a.bias = a.bias.has_value() ? *a.bias + bias : bias;
    }
    if (a.bias.has_value()) {
        a.bias = a.bias->to(a.query.scalar_type());
    }
    return a;
}

// With zeros for the channels that it lacks to be as wide as query and key.
at::Tensor widened(const at::Tensor &tensor, const Attention &a) {
    const int64_t lacking = a.query.size(-1) - tensor.size(-1);
    return lacking == 0 ? tensor : at::constant_pad_nd(tensor, {0, lacking});
}

at::Tensor narrowed(const at::Tensor &tensor, const Attention &a) { return tensor.narrow(-1, 0, a.value.size(-1)); }

// softmax(scale q k^T + bias) in at least float32, and the mask of dropout, 0 or 1 / keep_prob.
struct Weights {
    at::Tensor query, key, value, softmax, mask;
};

Weights weights(const Attention &a, double scale, double keep, const Draw &drawn) {
    const at::ScalarType type = at::promoteTypes(a.query.scalar_type(), at::kFloat);
    Weights w{a.query.to(type), a.key.to(type), a.value.to(type), {}, {}};
    at::Tensor scores = at::matmul(w.query * scale, w.key.transpose(-2, -1));
    if (a.bias.has_value()) {
        scores = scores + *a.bias;
    }
    if (a.causal) {
        scores.masked_fill_(at::ones(scores.sizes().slice(2), scores.options().dtype(at::kBool)).triu_(1), -INFINITY);
    }
    w.softmax = at::_safe_softmax(scores, -1);
    w.mask = at::empty_like(w.softmax).bernoulli_(keep, generator_of(drawn.seed, drawn.offset)).div_(keep);
    return w;
}

void attention(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    const DeviceAllocation on_device;
    const Arguments given(op, *stack);
    const c10::Device device = given.tensor("query").device();
    const std::string layout = given["input_layout"].toStringRef();
    const double scale = given["scale"].toDouble();
    const double keep = given["keep_prob"].toDouble();
    const Attention a = prepare(given, scale);
    Draw drawn;  // the gradient gets it back
    at::Tensor output, log_sum;
    if (keep == 1.) {
        std::tie(output, log_sum) = at::_scaled_dot_product_flash_attention_for_cpu(a.query, a.key, widened(a.value, a),
                                                                                    0., a.causal, a.bias, scale);
        output = narrowed(output, a);
    } else {
        drawn = Draw::next(at_npu::detail::getDefaultNPUGenerator(device.index()));
        const Weights w = weights(a, scale, keep, drawn);
        output = at::matmul(w.softmax * w.mask, w.value).to(a.query.scalar_type());
        log_sum = at::zeros(w.softmax.sizes().slice(0, 3), at::kFloat);  // the gradient forms the softmax anew
    }
    // The card keeps each row's maximum and sum of exponentials, 8 equal columns each. The logarithm of the sum
    // stands for the maximum here and 1 for the sum: exp(x - max) / sum is the same.
    const at::Tensor maximum = log_sum.to(at::kFloat).unsqueeze(-1).expand({-1, -1, -1, 8}).contiguous();
    const at::Tensor sum = at::ones_like(maximum);
    torch::jit::drop(*stack, op.schema().arguments().size());
    torch::jit::push(*stack, wrap_on_npu(from_bnsd(output, layout), device), wrap_on_npu(maximum, device),
                     wrap_on_npu(sum, device), wrap_on_npu(at::empty({0}, a.query.options()), device),
                     static_cast<int64_t>(drawn.seed), static_cast<int64_t>(drawn.offset),
                     keep == 1. ? int64_t{0} : a.query.numel() / a.query.size(-1) * a.key.size(2));
}

void attention_grad(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
    const DeviceAllocation on_device;
    const Arguments given(op, *stack);
    const OptionalTensor pse = given.optional("pse");
    TORCH_CHECK(!present(pse) || !pse->requires_grad(), "npu_fusion_attention: the gradient of pse is not simulated");
    const c10::Device device = given.tensor("query").device();
    const std::string layout = given["input_layout"].toStringRef();
    const int64_t heads = given["head_num"].toInt();
    const double scale = given["scale_value"].toDouble();
    const double keep = given["keep_prob"].toDouble();
    const Attention a = prepare(given, scale);
    const at::Tensor grad = to_bnsd(alias_on_cpu(given.tensor("dy")), layout, heads);
    at::Tensor grad_query, grad_key, grad_value;
    if (keep == 1.) {
        const at::Tensor log_sum = alias_on_cpu(given.tensor("softmax_max")).select(-1, 0) +
                                   alias_on_cpu(given.tensor("softmax_sum")).select(-1, 0).log();
        const at::Tensor output = to_bnsd(alias_on_cpu(given.tensor("attention_in")), layout, heads);
        std::tie(grad_query, grad_key, grad_value) = at::_scaled_dot_product_flash_attention_for_cpu_backward(
            widened(grad, a), a.query, a.key, widened(a.value, a), widened(output, a), log_sum.contiguous(), 0.,
            a.causal, a.bias, scale);
        grad_value = narrowed(grad_value, a);
    } else {
        const Weights w =
            weights(a, scale, keep,
                    {static_cast<uint64_t>(given["seed"].toInt()), static_cast<uint64_t>(given["offset"].toInt())});
        const at::Tensor grad_out = grad.to(w.query.scalar_type());
        const at::Tensor through = at::matmul(grad_out, w.value.transpose(-2, -1)) * w.mask;
        const at::Tensor grad_scores = w.softmax * (through - (through * w.softmax).sum(-1, true)) * scale;
        grad_query = at::matmul(grad_scores, w.key).to(a.query.scalar_type());
        grad_key = at::matmul(grad_scores.transpose(-2, -1), w.query).to(a.query.scalar_type());
        grad_value = at::matmul((w.softmax * w.mask).transpose(-2, -1), grad_out).to(a.query.scalar_type());
    }
    if (a.group != 1) {
        grad_key = grad_key.unflatten(1, {-1, a.group}).sum(2);
        grad_value = grad_value.unflatten(1, {-1, a.group}).sum(2);
    }
    torch::jit::drop(*stack, op.schema().arguments().size());
    torch::jit::push(*stack, wrap_on_npu(from_bnsd(grad_query, layout), device),
                     wrap_on_npu(from_bnsd(grad_key, layout), device),
                     wrap_on_npu(from_bnsd(grad_value, layout), device));
    for (size_t i = 3; i < op.schema().returns().size(); ++i) {  // of pse and sink, which have none here
        torch::jit::push(*stack, wrap_on_npu(at::empty({0}, a.query.options()), device));
    }
}

}  // namespace

void register_npu_attention() {
    static torch::Library library(torch::Library::IMPL, "npu", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    library.impl("npu_fusion_attention", torch::CppFunction::makeFromBoxedFunction<&attention>());
    library.impl("npu_fusion_attention_grad", torch::CppFunction::makeFromBoxedFunction<&attention_grad>());
}

}  // namespace cann_sim
