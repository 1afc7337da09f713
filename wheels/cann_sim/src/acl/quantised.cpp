// ACL operators of quantised inference: the search for a scale, and the convolution of int8.
// Prototypes and formulas: CANN's operator specifications and op-plugin's tests.

#include "pch.h"

#include <cmath>
#include <limits>

#include "acl/operators.h"
#include "compute/formulas.h"

namespace cann_sim {

namespace {

// IFMR(data, its minimum, its maximum, cumulated histogram) -> (scale, offset) of int8 with the least square error. The range
// to start from holds min_percentile and max_percentile of the data; its end is tried at every step of search_range.
// Assumed: the last step is the last that is not beyond the range's end.
void search_scale(OpCall &op) {
    op.require(op.get_int("quant_bits", 8) == 8, "quant_bits must be 8 here");
    const std::vector<float> range = op.get_floats("search_range");
    const auto step = static_cast<float>(op.get_float("search_step", 0));
    op.require(range.size() == 2 && range[1] > range[0] && step > 0, "search_range must increase, by a positive step");
    const float count = std::floor((range[1] - range[0]) / step) + 1;
    op.require(count <= 1e6f, "search_range must have at most 1,000,000 steps here");
    op.require(op.input(1).numel() == 1 && op.input(2).numel() == 1, "data_min and data_max must have shape [1]");
    op.require(op.input(0).numel() > 0 && op.input(3).numel() > 0, "data and cumsum must have elements");
    const at::Tensor data = floats(op.input(0)), share = floats(op.input(3)) / static_cast<float>(data.numel());
    const auto least = floats(op.input(1)).item<float>(), most = floats(op.input(2)).item<float>();
    // where the histogram's share of the data first reaches `percentile`
    const auto reach = [&](float percentile) {
        const auto below = (share < percentile).sum().item<int64_t>();
        return static_cast<float>(below) / static_cast<float>(share.numel()) * (most - least) + least;
    };
    float high = reach(static_cast<float>(op.get_float("max_percentile", 1)));
    float low = reach(1 - static_cast<float>(op.get_float("min_percentile", 1)));
    const bool with_offset = op.get_bool("with_offset", true);
    if (with_offset) {
        high = std::max(high, 0.f), low = std::min(low, 0.f);
    } else {
        high = std::max(std::abs(high), std::abs(low));
    }

    float best_scale = 1, best_offset = 0;
    double best = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) {
        const float end = high * (range[0] + static_cast<float>(i) * step);
        float scale = with_offset ? (end - low) / 255 : end / 127;
        if (with_offset && scale < std::numeric_limits<float>::epsilon()) {
            scale = 1;
        }
        const float offset = with_offset ? -(std::nearbyint(low / scale) + 128) : 0;
        const at::Tensor restored = (((data / scale).round() + offset).clamp(-128, 127) - offset) * scale;
        const auto error = (restored - data).square().sum().item<double>();
        if (error < best) {
            best = error, best_scale = scale, best_offset = offset;
        }
    }
    op.require(std::isfinite(best), "data, data_min and data_max must be finite");
    op.output(0).fill_(best_scale);
    op.output(1).fill_(best_offset);
}

// QuantConv2D(x, filter[, bias]), NCHW: (convolution of int8 + bias of int32) times a scale per channel, in float16.
void quantised_conv2d(OpCall &op) {
    const at::Tensor &x = op.input(0), &filter = op.input(1), scale = scales(op.input(2)).flatten();
    op.require(x.scalar_type() == at::kChar && filter.scalar_type() == at::kChar, "x and filter must be int8");
    op.require(op.get_string("data_format", "NCHW") == "NCHW", "data_format must be NCHW here");
    op.require(op.get_int("offset_x", 0) == 0, "offset_x, which CANN reserves, must be 0 here");
    op.require(scale.numel() == filter.size(0), "scale must have one number per channel");
    const auto strides = op.get_ints("strides"), pads = op.get_ints("pads"), dilations = op.get_ints("dilations");
    op.require(strides.size() == 4 && pads.size() == 4 && dilations.size() == 4,
               "strides, pads and dilations take four numbers");
    // float64: sums of products of int8 are exact
    at::Tensor sum = at::conv2d(at::constant_pad_nd(x.to(at::kDouble), {pads[2], pads[3], pads[0], pads[1]}),
                                filter.to(at::kDouble), {}, {strides[2], strides[3]}, at::IntArrayRef{0, 0},
                                {dilations[2], dilations[3]}, op.get_int("groups", 1));
    if (op.num_inputs() > 3 && op.input(3).defined()) {
        sum += op.input(3).to(at::kDouble).view({1, -1, 1, 1});
    }
    op.output(0).copy_(sum.to(at::kFloat) * scale.view({1, -1, 1, 1}));
}

const Registration registered{
    {"IFMR", search_scale},
    {"QuantConv2D", quantised_conv2d},
};

}  // namespace

}  // namespace cann_sim
