// MaxPool, AveragePool and their global forms.

#include "pch.h"

#include <limits>

#include "executor/operations.h"
#include "executor/windows.h"

namespace cann_sim::executor {

namespace {

// Largest values, and where they are in the padded input.
std::pair<at::Tensor, at::Tensor> maxima(const at::Tensor &x, const Windows &w) {
    const std::vector<int64_t> none(w.kernel.size());
    switch (w.kernel.size()) {
        case 1: {
            const auto [values, places] = at::max_pool1d_with_indices(x, w.kernel, w.strides, none, w.dilations);
            return {values, places};
        }
        case 2: {
            const auto [values, places] = at::max_pool2d_with_indices(x, w.kernel, w.strides, none, w.dilations);
            return {values, places};
        }
        default: {
            const auto [values, places] = at::max_pool3d_with_indices(x, w.kernel, w.strides, none, w.dilations);
            return {values, places};
        }
    }
}

void max_pool(Call &call) {
    const at::Tensor x = call.input(0);
    const Windows w(call, call.integers("kernel_shape"));
    call.require(!call.wanted(1), "Indices are not simulated, as ATC refuses them");
    const bool floating = x.is_floating_point();
    const at::Tensor values = floating ? x : x.to(at::kFloat);  // int8 and uint8 are exact in float32
    constexpr double kNothing = -std::numeric_limits<double>::infinity();
    const at::Tensor padded = w.pad_behind(w.pad(values, kNothing), kNothing);
    call.output(maxima(padded, w).first.to(x.scalar_type()));
}

at::Tensor sums(const at::Tensor &x, const Windows &w) {
    const std::vector<int64_t> none(w.kernel.size());
    switch (w.kernel.size()) {
        case 1:
            return at::avg_pool2d(x.unsqueeze(-2), {1, w.kernel[0]}, {1, w.strides[0]}, {0, 0}, false, true, 1)
                .squeeze(-2);
        case 2: return at::avg_pool2d(x, w.kernel, w.strides, none, false, true, 1);
        default: return at::avg_pool3d(x, w.kernel, w.strides, none, false, true, 1);
    }
}

// A window's sum by the number of its cells: those of the input, with count_include_pad those of the padding, too, but
// none of what ceil_mode adds.
void average_pool(Call &call) {
    const at::Tensor x = call.input(0);
    const Windows w(call, call.integers("kernel_shape"));
    for (const int64_t dilation : w.dilations) {
        call.require(dilation == 1, "dilations are not simulated");
    }
    const bool all = call.integer("count_include_pad", 0) != 0;
    std::vector<int64_t> one = x.sizes().vec();
    one[0] = one[1] = 1;
    const at::Tensor cells = w.pad_behind(w.pad(at::ones(one), all ? 1 : 0), 0);
    call.output(sums(w.pad_behind(w.pad(x, 0), 0), w) / sums(cells, w));
}

std::vector<int64_t> space_of(const at::Tensor &x) {
    std::vector<int64_t> axes;
    for (int64_t axis = 2; axis < x.dim(); ++axis) {
        axes.push_back(axis);
    }
    return axes;
}

void global_average_pool(Call &call) {
    const at::Tensor x = call.input(0);
    call.output(x.mean(space_of(x), true));
}

void global_max_pool(Call &call) {
    const at::Tensor x = call.input(0);
    call.output(x.amax(space_of(x), true));
}

const Registration registered{
    {"MaxPool", max_pool},
    {"AveragePool", average_pool},
    {"GlobalAveragePool", global_average_pool},
    {"GlobalMaxPool", global_max_pool},
};

}  // namespace

}  // namespace cann_sim::executor
