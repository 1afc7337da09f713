// npu_fusion_attention, the fused attention that torch_npu's scaled_dot_product_attention calls:
//     softmax(scale (q k^T + pse), masked) v
// (CANN: aclnnFlashAttentionScore). Computed by the CPU's flash attention, which never forms the score matrix.

#include "compute_pch.h"

#include "compute.h"

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

Attention prepare(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, int64_t heads,
                  const std::string &layout, const OptionalTensor &pse, const OptionalTensor &padding_mask,
                  const OptionalTensor &mask, double scale, double keep_prob, int64_t sparse_mode) {
    TORCH_CHECK(keep_prob == 1., "npu_fusion_attention: keep_prob < 1 is not simulated");
    TORCH_CHECK(!present(padding_mask), "npu_fusion_attention: padding_mask is not supported (nor is it by CANN)");
    TORCH_CHECK(sparse_mode >= 0 && sparse_mode <= 2, "npu_fusion_attention: sparse_mode ", sparse_mode, " is not simulated");
    finish_queued_operators(query.device());
    const int64_t fewer = key_heads(query, key, layout, heads);
    Attention a{to_bnsd(alias_on_cpu(query), layout, heads), to_bnsd(alias_on_cpu(key), layout, fewer),
                to_bnsd(alias_on_cpu(value), layout, fewer), heads / fewer, {}, sparse_mode == 2};
    if (a.group != 1) {
        a.key = a.key.repeat_interleave(a.group, 1);
        a.value = a.value.repeat_interleave(a.group, 1);
    }
    if (present(pse)) {
        a.bias = alias_on_cpu(*pse) * scale;
    }
    if (present(mask) && !a.causal) {  // 1 = left out
        const at::Tensor blocked = alias_on_cpu(*mask).to(at::kBool);
        const at::Tensor bias = at::zeros(blocked.sizes(), a.query.options()).masked_fill_(blocked, -std::numeric_limits<float>::infinity());
        a.bias = a.bias.has_value() ? *a.bias + bias : bias;
    }
    if (a.bias.has_value()) {
        a.bias = a.bias->to(a.query.scalar_type());
    }
    return a;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, int64_t, int64_t, int64_t> attention(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, int64_t heads, c10::string_view input_layout,
    const OptionalTensor &pse, const OptionalTensor &padding_mask, const OptionalTensor &mask, double scale, double keep_prob,
    int64_t, int64_t, int64_t, at::OptionalIntArrayRef, at::OptionalIntArrayRef, at::OptionalIntArrayRef,
    int64_t sparse_mode, bool, bool, c10::string_view) {
    const DeviceAllocation on_device;
    const std::string layout(input_layout);
    const c10::Device device = query.device();
    const Attention a = prepare(query, key, value, heads, layout, pse, padding_mask, mask, scale, keep_prob, sparse_mode);
    auto [output, log_sum] =
        at::_scaled_dot_product_flash_attention_for_cpu(a.query, a.key, a.value, 0., a.causal, a.bias, scale);
    // The card keeps each row's maximum and sum of exponentials, 8 equal columns each. The logarithm of the sum
    // stands for the maximum here and 1 for the sum: exp(x - max) / sum is the same.
    const at::Tensor maximum = log_sum.to(at::kFloat).unsqueeze(-1).expand({-1, -1, -1, 8}).contiguous();
    const at::Tensor sum = at::ones_like(maximum);
    return {wrap_on_npu(from_bnsd(output, layout), device), wrap_on_npu(maximum, device), wrap_on_npu(sum, device),
            wrap_on_npu(at::empty({0}, a.query.options()), device), 0, 0, 0};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attention_grad(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &gradient, int64_t heads,
    c10::string_view input_layout, const OptionalTensor &pse, const OptionalTensor &padding_mask, const OptionalTensor &mask,
    const OptionalTensor &maximum, const OptionalTensor &sum, const OptionalTensor &, const OptionalTensor &output, double scale,
    double keep_prob, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, at::OptionalIntArrayRef, at::OptionalIntArrayRef,
    at::OptionalIntArrayRef, int64_t sparse_mode, bool, bool, c10::string_view) {
    TORCH_CHECK(!present(pse) || !pse->requires_grad(), "npu_fusion_attention: the gradient of pse is not simulated");
    const DeviceAllocation on_device;
    const std::string layout(input_layout);
    const c10::Device device = query.device();
    const Attention a = prepare(query, key, value, heads, layout, pse, padding_mask, mask, scale, keep_prob, sparse_mode);
    const at::Tensor log_sum = alias_on_cpu(*maximum).select(-1, 0) + alias_on_cpu(*sum).select(-1, 0).log();
    auto [grad_query, grad_key, grad_value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        to_bnsd(alias_on_cpu(gradient), layout, heads), a.query, a.key, a.value, to_bnsd(alias_on_cpu(*output), layout, heads),
        log_sum.contiguous(), 0., a.causal, a.bias, scale);
    if (a.group != 1) {
        grad_key = grad_key.unflatten(1, {-1, a.group}).sum(2);
        grad_value = grad_value.unflatten(1, {-1, a.group}).sum(2);
    }
    return {wrap_on_npu(from_bnsd(grad_query, layout), device), wrap_on_npu(from_bnsd(grad_key, layout), device),
            wrap_on_npu(from_bnsd(grad_value, layout), device), wrap_on_npu(at::empty({0}, a.query.options()), device)};
}

}  // namespace

void register_npu_attention() {
    static torch::Library library(torch::Library::IMPL, "npu", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    library.impl("npu_fusion_attention", TORCH_FN(attention));
    library.impl("npu_fusion_attention_grad", TORCH_FN(attention_grad));
}

}  // namespace cann_sim
