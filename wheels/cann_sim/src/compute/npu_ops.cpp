// Operators of torch_npu's own (namespace npu) that its Python patches and its autograd formulas of aten operators
// call: each is written in terms of aten operators on the NPU, which dispatch.cpp computes.
// Signatures: op-plugin's op_plugin_functions.yaml.

#include "pch.h"

#include <ATen/ExpandUtils.h>

#include "compute/compute.h"
#include "compute/formulas.h"
#include "compute/levels.h"
#include "runtime/abi.h"

namespace cann_sim {

namespace {

// ---- casts ----

at::Tensor dtype_cast(const at::Tensor &input, at::ScalarType dtype) {
    if (input.scalar_type() == dtype) {
        return at::alias(input);  // not `input` itself: autograd gives the result a history, and a leaf has none
    }
    finish_queued_operators(input.device());
    const DeviceAllocation on_device;
    return wrap_on_npu(alias_on_cpu(input).to(dtype), input.device());
}

at::Tensor &dtype_cast_(at::Tensor &input, const at::Tensor &source) { return input.copy_(source); }

// ---- memory formats ----
// A tensor says the format that was asked for (torch_npu.get_npu_format) and its storage has that format's size. The data
// lies in it as in every other tensor: the padding and the order of a private format (NC1HWC0, FRACTAL_NZ, …) are for the
// cores of an NPU.

at::Tensor empty_in_format(const at::Tensor &like, int64_t format) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("npu::unsafe_empty_with_format", "")
            .typed<at::Tensor(at::IntArrayRef, std::optional<at::ScalarType>, std::optional<at::Layout>,
                              std::optional<at::Device>, std::optional<bool>, int64_t, bool)>();
    return op.call(like.sizes(), like.scalar_type(), at::kStrided, like.device(), std::nullopt, format, true);
}

bool is_private(int64_t format) {
    return format != ACL_FORMAT_NCHW && format != ACL_FORMAT_NHWC && format != ACL_FORMAT_ND &&
           format != ACL_FORMAT_NCDHW;
}

// As torch_npu's own: the tensor itself where no data would move, with its new name between formats that are not private.
at::Tensor format_cast(const at::Tensor &input, int64_t format, std::optional<int64_t>) {
    if (npu_format(input) == format) {
        return input;
    }
    if (!is_private(npu_format(input)) && !is_private(format)) {
        set_npu_format(input, format);
        return input;
    }
    const at::Tensor result = empty_in_format(input, format);
    finish_queued_operators(input.device());
    alias_on_cpu(result).copy_(alias_on_cpu(input));
    return result;
}

at::Tensor format_cast_private(const at::Tensor &input, int64_t format) {
    return format_cast(input, format, std::nullopt);
}

at::Tensor &format_cast_(at::Tensor &input, int64_t format, std::optional<int64_t>) {
    const at::Tensor result = format_cast(input, format, std::nullopt);
    if (result.is_same(input)) {
        return input;
    }
    c10::TensorImpl *impl = input.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(result.storage());
    impl->set_sizes_and_strides(result.sizes(), result.strides());
    impl->set_storage_offset(result.storage_offset());
    return input;
}

// ---- dropout: torch_npu's own mask is of bits ----

std::tuple<at::Tensor, at::Tensor> dropout(const at::Tensor &input, double p) {
    const at::Tensor kept = at::empty(input.sizes(), input.options().dtype(at::kByte)).bernoulli_(1 - p);
    finish_queued_operators(input.device());
    const DeviceAllocation on_device;
    at::Tensor mask = at::empty({bytes_of_mask(input.numel())}, at::kByte);
    pack_bits(alias_on_cpu(kept), mask);
    return {wrap_on_npu(dropped_out(alias_on_cpu(input), mask, 1 - p), input.device()),
            wrap_on_npu(mask, input.device())};
}

at::Tensor dropout_backward(const at::Tensor &gradient, const at::Tensor &mask, double p) {
    finish_queued_operators(gradient.device());
    const DeviceAllocation on_device;
    return wrap_on_npu(dropped_out(alias_on_cpu(gradient), alias_on_cpu(mask), 1 - p), gradient.device());
}

std::tuple<at::Tensor, at::Tensor> dropout_with_bytes(const at::Tensor &input, double p) {
    at::Tensor mask = at::empty(input.sizes(), input.options().dtype(at::kByte)).bernoulli_(1 - p);
    const double scale = p < 1 ? 1 / (1 - p) : 0;
    return {at::mul(input, mask).mul_(scale), mask};
}

at::Tensor dropout_with_bytes_backward(const at::Tensor &gradient, const at::Tensor &mask, double p) {
    return at::mul(gradient, mask).mul_(p < 1 ? 1 / (1 - p) : 0);
}

// ---- losses ----

at::Tensor bce_with_logits_of_npu(const at::Tensor &input, const at::Tensor &target,
                                  const std::optional<at::Tensor> &weight, const std::optional<at::Tensor> &positive,
                                  int64_t reduction) {
    finish_queued_operators(input.device());
    const DeviceAllocation on_device;
    const auto on_cpu = [](const std::optional<at::Tensor> &tensor) {
        const bool given = tensor.has_value() && tensor->defined();
        return given && tensor->is_privateuseone() ? alias_on_cpu(*tensor) : tensor.value_or(at::Tensor());
    };
    return wrap_on_npu(bce_with_logits(on_cpu(input), on_cpu(target), on_cpu(weight), on_cpu(positive), reduction),
                       input.device());
}

// ---- indexing ----

at::Tensor gather_backward(const at::Tensor &gradient, at::SymIntArrayRef sizes, int64_t dim, const at::Tensor &index,
                           bool) {
    return at::zeros_symint(sizes, gradient.options()).scatter_add_(dim, index, gradient);
}

std::vector<int64_t> split_at(const at::Tensor &input, int64_t dim, int64_t length, int64_t repeats) {
    std::vector<int64_t> sizes = input.sizes().vec();
    sizes[static_cast<size_t>(dim)] = length;
    sizes.insert(sizes.begin() + dim + 1, repeats);
    return sizes;
}

at::Tensor repeat_interleave_backward_int(const at::Tensor &gradient, const at::Tensor &input, c10::SymInt repeats,
                                          std::optional<int64_t> dim) {
    const at::Tensor shape_of = dim.has_value() ? input : input.reshape(-1);
    const int64_t at_dim = c10::maybe_wrap_dim(dim.value_or(0), shape_of.dim());
    const int64_t times = repeats.expect_int();
    return gradient.reshape(split_at(shape_of, at_dim, shape_of.size(at_dim), times))
        .sum(at_dim + 1)
        .view(input.sizes());
}

// ---- aten operators that only torch_npu implements ----

bool column_major(const at::Tensor &matrix) { return matrix.stride(0) == 1 && matrix.stride(1) == matrix.size(0); }

// Gradients of a matrix product as torch forms them on the CPU: a column-major factor gets a column-major gradient.
at::Tensor first_gradient(const at::Tensor &grad, const at::Tensor &a, const at::Tensor &b) {
    return column_major(a) ? b.mm(grad.t()).t() : grad.mm(b.t());
}
at::Tensor second_gradient(const at::Tensor &grad, const at::Tensor &a, const at::Tensor &b) {
    return column_major(b) ? grad.t().mm(a).t() : a.t().mm(grad);
}

// Gradients of matmul with its broadcasting: a vector is a matrix of one row (first) or one column (second).
std::tuple<at::Tensor, at::Tensor> matmul_backward(const at::Tensor &gradient, const at::Tensor &first,
                                                   const at::Tensor &second, std::array<bool, 2> wanted) {
    if (!gradient.defined()) {
        return {};
    }
    at::Tensor grad = gradient;
    if (second.dim() == 1) {
        grad = grad.unsqueeze(-1);
    }
    if (first.dim() == 1) {
        grad = grad.unsqueeze(-2);
    }
    const at::Tensor a = first.dim() == 1 ? first.unsqueeze(0) : first;
    const at::Tensor b = second.dim() == 1 ? second.unsqueeze(1) : second;
    at::Tensor grad_first, grad_second;
    if (b.dim() == 2) {  // one product over all rows of `first`
        const at::Tensor rows = a.reshape({-1, a.size(-1)}), grad_rows = grad.reshape({-1, grad.size(-1)});
        grad_first = wanted[0] ? first_gradient(grad_rows, rows, b) : grad_first;
        grad_second = wanted[1] ? second_gradient(grad_rows, rows, b) : grad_second;
    } else {
        at::DimVector batch =
            at::infer_size_dimvector(a.sizes().slice(0, a.dim() - 2), b.sizes().slice(0, b.dim() - 2));
        const auto batched = [&batch](const at::Tensor &t) {
            at::DimVector sizes(batch);
            sizes.append({t.size(-2), t.size(-1)});
            return t.expand(sizes).reshape({-1, t.size(-2), t.size(-1)});
        };
        const auto reduce = [&batch](const at::Tensor &t, const at::Tensor &like) {
            at::DimVector sizes(batch);
            sizes.append({t.size(-2), t.size(-1)});
            return at::sum_to(t.view(sizes), like.sizes());
        };
        const at::Tensor grads = batched(grad);
        grad_first = wanted[0] ? reduce(grads.bmm(batched(b).transpose(1, 2)), a) : grad_first;
        grad_second = wanted[1] ? reduce(batched(a).transpose(1, 2).bmm(grads), b) : grad_second;
    }
    return {grad_first.defined() ? grad_first.reshape(first.sizes()) : grad_first,
            grad_second.defined() ? grad_second.reshape(second.sizes()) : grad_second};
}

at::Tensor conv_depthwise2d(const at::Tensor &input, const at::Tensor &weight, at::SymIntArrayRef,
                            const std::optional<at::Tensor> &bias, at::SymIntArrayRef stride,
                            at::SymIntArrayRef padding, at::SymIntArrayRef dilation) {
    return at::convolution_symint(input, weight, bias, stride, padding, dilation, false, {0, 0}, input.size(1));
}

std::tuple<at::Tensor, at::Tensor> conv_depthwise2d_backward(const at::Tensor &gradient, const at::Tensor &input,
                                                             const at::Tensor &weight, at::IntArrayRef,
                                                             at::IntArrayRef stride, at::IntArrayRef padding,
                                                             at::IntArrayRef dilation, std::array<bool, 2> wanted) {
    const auto [grad_input, grad_weight, grad_bias] =
        at::convolution_backward(gradient, input, weight, std::nullopt, stride, padding, dilation, false, {0, 0},
                                 input.size(1), {wanted[0], wanted[1], false});
    return {grad_input, grad_weight};
}

// GradScaler: whether any gradient is inf or NaN.
bool non_finite_check(at::TensorList gradients) {
    for (const at::Tensor &gradient : gradients) {
        if (!at::isfinite(gradient).all().item<bool>()) {
            return true;
        }
    }
    return false;
}

// ---- recurrent layers ----

// The cell that torch's lstm calls on every device but the CPU: equations of torch.nn.LSTM, gates in the order i f g o,
// sizes [N, 4H] and [N, H]. Above autograd, so that the gradients come from the operators it is made of.
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(const at::Tensor &input_gates, const at::Tensor &hidden_gates,
                                                         const at::Tensor &cell,
                                                         const std::optional<at::Tensor> &input_bias,
                                                         const std::optional<at::Tensor> &hidden_bias) {
    at::Tensor gates = input_gates;
    for (const auto &bias : {input_bias, hidden_bias}) {
        gates = bias.has_value() && bias->defined() ? gates + *bias : gates;
    }
    const auto parts = (gates + hidden_gates).chunk(4, 1);
    const at::Tensor next = parts[1].sigmoid() * cell + parts[0].sigmoid() * parts[2].tanh();
    return {parts[3].sigmoid() * next.tanh(), next, gates};
}

at::Tensor &one_(at::Tensor &self) { return self.fill_(1); }

}  // namespace

void register_npu_ops() {
    static torch::Library aten(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    const auto simulate = [](torch::Library &library, const std::string &space, const char *name, auto function) {
        if (!at_level_aclnn(space + "::" + name)) {
            library.impl(name, function);
        }
    };
    simulate(aten, "aten", "matmul_backward", TORCH_FN(matmul_backward));
    simulate(aten, "aten", "_conv_depthwise2d", TORCH_FN(conv_depthwise2d));
    simulate(aten, "aten", "binary_cross_entropy_with_logits", TORCH_FN(bce_with_logits_of_npu));
    static torch::Library autograd(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradPrivateUse1, __FILE__,
                                   __LINE__);
    autograd.impl("_thnn_fused_lstm_cell", TORCH_FN(lstm_cell));
    static torch::Library library(torch::Library::IMPL, "npu", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    simulate(library, "npu", "npu_dtype_cast", TORCH_FN(dtype_cast));
    simulate(library, "npu", "_npu_dtype_cast", TORCH_FN(dtype_cast));
    simulate(library, "npu", "npu_dtype_cast_", TORCH_FN(dtype_cast_));
    simulate(library, "npu", "npu_dtype_cast_backward", TORCH_FN(dtype_cast));
    simulate(library, "npu", "_npu_dtype_cast_backward", TORCH_FN(dtype_cast));
    simulate(library, "npu", "npu_format_cast", TORCH_FN(format_cast));
    simulate(library, "npu", "_npu_format_cast", TORCH_FN(format_cast_private));
    simulate(library, "npu", "npu_format_cast_.acl_format", TORCH_FN(format_cast_));
    simulate(library, "npu", "_npu_dropout", TORCH_FN(dropout));
    simulate(library, "npu", "_dropout_with_byte_mask", TORCH_FN(dropout_with_bytes));
    simulate(library, "npu", "npu_dropout_backward", TORCH_FN(dropout_backward));
    simulate(library, "npu", "_dropout_with_byte_mask_backward", TORCH_FN(dropout_with_bytes_backward));
    simulate(library, "npu", "l1_loss_backward", TORCH_FN(l1_loss_backward));
    simulate(library, "npu", "kl_div_backward", TORCH_FN(kl_div_backward));
    simulate(library, "npu", "npu_binary_cross_entropy_with_logits_backward", TORCH_FN(bce_with_logits_backward));
    simulate(library, "npu", "_conv_depthwise2d_backward", TORCH_FN(conv_depthwise2d_backward));
    simulate(library, "npu", "_amp_foreach_non_finite_check", TORCH_FN(non_finite_check));
    simulate(library, "npu", "one_", TORCH_FN(one_));
    simulate(library, "npu", "npu_gather_backward", TORCH_FN(gather_backward));
    simulate(library, "npu", "repeat_interleave_backward_int", TORCH_FN(repeat_interleave_backward_int));
    simulate(library, "npu", "repeat_interleave_backward_tensor", TORCH_FN(repeat_interleave_backward));
}

}  // namespace cann_sim
