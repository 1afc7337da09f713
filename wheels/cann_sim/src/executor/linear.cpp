// Matrix products and convolutions.

#include "pch.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>

#include "executor/operations.h"
#include "executor/windows.h"

namespace cann_sim::executor {

namespace {

// x weight + bias (undefined: none) for a weight [K, N]. ATen's own products go to MKL; oneDNN's are about a fifth faster
// on AMD's processors, and no slower on Intel's, once there is enough to compute.
at::Tensor linear(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias) {
    static const auto onednn = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    constexpr int64_t kWorthwhile = 1 << 22;  // multiplications
    const int64_t rows = weight.size(0) == 0 ? 0 : x.numel() / weight.size(0);
    if (onednn && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && rows > 0 &&
        rows * weight.numel() >= kWorthwhile) {
        torch::jit::Stack stack;
        stack.emplace_back(x.contiguous());
        stack.emplace_back(weight.t());
        stack.emplace_back(bias.defined() ? c10::IValue(bias.contiguous()) : c10::IValue());
        stack.emplace_back("none");  // nothing behind it
        stack.emplace_back(c10::List<std::optional<at::Scalar>>());
        stack.emplace_back("");
        onednn->callBoxed(stack);
        return stack.at(0).toTensor();
    }
    if (x.dim() == 2 && bias.defined()) {
        return at::addmm(bias, x, weight);
    }
    const at::Tensor product = at::matmul(x, weight);
    return bias.defined() ? product.add(bias) : product;
}

// Input 2, if there is one: the bias of GE's MatMulV2, after fusion with an Add.
void matmul(Call &call) {
    const at::Tensor a = call.input(0), b = call.input(1), bias = call.optional(2);
    if (b.dim() == 2 && a.dim() >= 2 && (!bias.defined() || bias.dim() == 1)) {
        call.output(linear(a, b, bias));
    } else {
        const at::Tensor product = at::matmul(a, b);
        call.output(bias.defined() ? product.add(bias) : product);
    }
}

// alpha A' B' + beta C
void gemm(Call &call) {
    const at::Tensor a = call.input(0), b = call.input(1);
    const at::Tensor left = call.integer("transA", 0) != 0 ? a.t() : a;
    const at::Tensor right = call.integer("transB", 0) != 0 ? b.t() : b;
    const double alpha = call.number("alpha", 1), beta = call.number("beta", 1);
    const bool plain =
        alpha == 1 && (!call.has(2) || (beta == 1 && call.raw(2).dim() == 1 && call.raw(2).size(0) == right.size(1)));
    if (plain) {
        call.output(linear(left, right, call.optional(2)));
    } else if (call.has(2)) {
        // ONNX lets C be broadcast in one direction, also from [M, 1].
        call.output(at::addmm(call.input(2).expand(call.result().shape), left, right, beta, alpha));
    } else {
        call.output(at::mm(left, right) * alpha);
    }
}

void conv(Call &call) {
    const at::Tensor x = call.input(0), weight = call.input(1);
    const Windows windows(call, weight.sizes().slice(2));
    // Equal padding is the convolution's own; another is added before.
    const bool even = windows.begin == windows.end;
    const at::Tensor padded = even ? x : windows.pad(x, 0);
    const std::vector<int64_t> padding = even ? windows.begin : std::vector<int64_t>(windows.begin.size());
    call.output(at::convolution(padded, weight, call.optional(2), windows.strides, padding, windows.dilations, false,
                                std::vector<int64_t>(padding.size()), call.integer("group", 1)));
}

// The full result is cut at both ends. How much each loses where output_shape or auto_pad says it: ONNX's formula.
void conv_transpose(Call &call) {
    const at::Tensor x = call.input(0), weight = call.input(1);
    const auto spatial = static_cast<size_t>(weight.dim() - 2);
    call.require(weight.dim() >= 3 && weight.dim() <= 5 && x.dim() == weight.dim(),
                 "it needs 1 to 3 dimensions of space");
    const std::vector<int64_t> ones(spatial, 1);
    const auto strides = call.integers("strides", ones), dilations = call.integers("dilations", ones);
    const auto extra = call.integers("output_padding", std::vector<int64_t>(spatial));
    auto pads = call.integers("pads", std::vector<int64_t>(2 * spatial));
    const std::string auto_pad = call.text("auto_pad", "NOTSET");
    call.require(strides.size() == spatial && dilations.size() == spatial && extra.size() == spatial &&
                     pads.size() == 2 * spatial,
                 "strides, dilations, output_padding and pads must fit the kernel");
    const bool given = call.find("output_shape") != nullptr;
    for (size_t i = 0; i < spatial; ++i) {
        const auto axis = static_cast<int64_t>(i + 2);
        if (given || auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER") {
            const int64_t full =
                strides[i] * (x.size(axis) - 1) + extra[i] + (weight.size(axis) - 1) * dilations[i] + 1;
            const int64_t total = full - call.result().shape.at(i + 2);
            call.require(total >= 0, "output_shape is larger than the full result");
            pads[i] = auto_pad == "SAME_UPPER" ? total / 2 : total - total / 2;
            pads[i + spatial] = total - pads[i];
        } else if (auto_pad == "VALID") {
            pads[i] = pads[i + spatial] = 0;
        }
    }
    const bool even = std::equal(pads.begin(), pads.begin() + static_cast<int64_t>(spatial),
                                 pads.begin() + static_cast<int64_t>(spatial));
    const std::vector<int64_t> own(pads.begin(), pads.begin() + static_cast<int64_t>(spatial));
    at::Tensor result =
        at::convolution(x, weight, call.optional(2), strides, even ? own : std::vector<int64_t>(spatial), dilations,
                        true, extra, call.integer("group", 1));
    for (size_t i = 0; i < spatial && !even; ++i) {
        const auto axis = static_cast<int64_t>(i + 2);
        result = result.narrow(axis, pads[i], result.size(axis) - pads[i] - pads[i + spatial]);
    }
    call.output(result);
}

const Registration registered{
    {"MatMul", matmul},
    {"Gemm", gemm},
    {"Conv", conv},
    {"ConvTranspose", conv_transpose},
};

}  // namespace

}  // namespace cann_sim::executor
