// Resize (opset 10 on) and Upsample, axis by axis: nearest and linear, with ONNX's rules of coordinates.

#include "pch.h"

#include <algorithm>
#include <cmath>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

struct Rules {
    std::string coordinates, nearest;
    bool linear;
};

// The place in the input that element `at` of the output shows. float32 as in ONNX Runtime: it decides ties.
float source(Call &call, const Rules &rules, int64_t at, float scale, int64_t size_in, int64_t size_out) {
    const auto place = static_cast<float>(at);
    if (rules.coordinates == "asymmetric") {
        return place / scale;
    }
    if (rules.coordinates == "align_corners") {
        return size_out == 1 ? 0.f : place * static_cast<float>(size_in - 1) / static_cast<float>(size_out - 1);
    }
    if (rules.coordinates == "pytorch_half_pixel" && size_out == 1) {
        return 0.f;
    }
    call.require(rules.coordinates == "half_pixel" || rules.coordinates == "pytorch_half_pixel",
                 "coordinate_transformation_mode " + rules.coordinates + " is not simulated");
    return (place + 0.5f) / scale - 0.5f;
}

int64_t nearest(Call &call, const Rules &rules, float at) {
    if (rules.nearest == "floor") {
        return static_cast<int64_t>(std::floor(at));
    }
    if (rules.nearest == "ceil") {
        return static_cast<int64_t>(std::ceil(at));
    }
    if (rules.nearest == "round_prefer_ceil") {
        return static_cast<int64_t>(std::floor(at + 0.5f));
    }
    call.require(rules.nearest == "round_prefer_floor", "nearest_mode " + rules.nearest + " is not known");
    return static_cast<int64_t>(std::ceil(at - 0.5f));
}

at::Tensor resize_axis(Call &call, const Rules &rules, const at::Tensor &x, int64_t axis, int64_t size_out,
                       float scale) {
    const int64_t size = x.size(axis);
    call.require(size > 0 || size_out == 0, "an empty axis cannot grow");
    const at::Tensor lower = at::empty({size_out}, at::kLong), upper = at::empty({size_out}, at::kLong);
    const at::Tensor share = at::empty({size_out}, at::kFloat);
    auto *low = lower.mutable_data_ptr<int64_t>(), *high = upper.mutable_data_ptr<int64_t>();
    auto *weight = share.mutable_data_ptr<float>();
    for (int64_t i = 0; i < size_out; ++i) {
        const float place = source(call, rules, i, scale, size, size_out);
        if (rules.linear) {
            const float inside = std::clamp(place, 0.f, static_cast<float>(size - 1));
            low[i] = std::min(static_cast<int64_t>(inside), size - 1);
            high[i] = std::min(low[i] + 1, size - 1);
            weight[i] = inside - static_cast<float>(low[i]);
        } else {
            low[i] = std::clamp<int64_t>(nearest(call, rules, place), 0, size - 1);
        }
    }
    if (!rules.linear) {
        return x.index_select(axis, lower);
    }
    std::vector<int64_t> along(static_cast<size_t>(x.dim()), 1);
    along[static_cast<size_t>(axis)] = size_out;
    return at::lerp(x.index_select(axis, lower), x.index_select(axis, upper), share.to(x.scalar_type()).view(along));
}

// Scales by axis: given, or from the sizes.
std::vector<float> scales_of(Call &call, const at::Tensor &x) {
    const bool old = call.type() == "Upsample" || call.opset() < 11;  // X, scales
    const size_t index = old ? 1 : 2;
    std::vector<float> scales;
    if (call.has(index) && call.raw(index).numel() > 0) {
        const at::Tensor given = call.input(index).to(at::kFloat).contiguous();
        scales.assign(given.const_data_ptr<float>(), given.const_data_ptr<float>() + given.numel());
    } else if (call.find("scales") != nullptr) {  // Upsample of opset 7
        const auto given = call.numbers("scales");
        scales.assign(given.begin(), given.end());
    } else {
        for (int64_t axis = 0; axis < x.dim(); ++axis) {
            const auto out = static_cast<float>(call.result().shape.at(static_cast<size_t>(axis)));
            scales.push_back(out / static_cast<float>(x.size(axis)));
        }
    }
    call.require(scales.size() == static_cast<size_t>(x.dim()), "scales must have one number per axis");
    return scales;
}

void resize(Call &call) {
    const std::string mode = call.text("mode", "nearest");
    call.require(mode == "nearest" || mode == "linear", "mode " + mode + " is not simulated");
    call.require(call.integer("antialias", 0) == 0 && call.find("axes") == nullptr,
                 "antialias and axes are not simulated");
    const bool old = call.type() == "Upsample" || call.opset() < 11;
    const Rules rules{call.text("coordinate_transformation_mode", old ? "asymmetric" : "half_pixel"),
                      call.text("nearest_mode", old ? "floor" : "round_prefer_floor"), mode == "linear"};
    at::Tensor x = rules.linear ? call.input(0) : call.raw(0);
    const std::vector<float> scales = scales_of(call, x);
    const std::vector<int64_t> out = call.result().shape;
    call.require(out.size() == scales.size(), "the result has another rank");
    // The axis that grows least comes first, so that the others walk over less.
    std::vector<size_t> axes;
    for (size_t axis = 0; axis < scales.size(); ++axis) {
        if (x.size(static_cast<int64_t>(axis)) != out[axis] || scales[axis] != 1.f) {
            axes.push_back(axis);
        }
    }
    std::sort(axes.begin(), axes.end(), [&](size_t a, size_t b) { return scales[a] < scales[b]; });
    for (const size_t axis : axes) {
        x = resize_axis(call, rules, x, static_cast<int64_t>(axis), out[axis], scales[axis]);
    }
    call.output(x);
}

const Registration registered{
    {"Resize", resize},
    {"Upsample", resize},
};

}  // namespace

}  // namespace cann_sim::executor
