#include "pch.h"

#include "executor/windows.h"

#include <algorithm>

namespace cann_sim::executor {

namespace {

// ATen wants (begin, end) per dimension, the last dimension first.
std::vector<int64_t> for_aten(const std::vector<int64_t> &begin, const std::vector<int64_t> &end) {
    std::vector<int64_t> result;
    for (size_t i = begin.size(); i-- > 0;) {
        result.push_back(begin[i]);
        result.push_back(end[i]);
    }
    return result;
}

at::Tensor padded(const at::Tensor &x, const std::vector<int64_t> &widths, double value) {
    const bool none = std::all_of(widths.begin(), widths.end(), [](int64_t width) { return width == 0; });
    return none ? x : at::constant_pad_nd(x, widths, value);
}

}  // namespace

Windows::Windows(Call &call, at::IntArrayRef kernel_shape) : kernel(kernel_shape.vec()) {
    const size_t spatial = kernel.size();
    const at::IntArrayRef sizes = call.raw(0).sizes();
    const std::vector<int64_t> &out = call.result().shape;
    call.require(spatial >= 1 && spatial <= 3 && sizes.size() == spatial + 2 && out.size() == spatial + 2,
                 "it needs 1 to 3 dimensions of space");
    strides = call.integers("strides", std::vector<int64_t>(spatial, 1));
    dilations = call.integers("dilations", std::vector<int64_t>(spatial, 1));
    const auto pads = call.integers("pads", std::vector<int64_t>(2 * spatial));
    const std::string auto_pad = call.text("auto_pad", "NOTSET");
    call.require(strides.size() == spatial && dilations.size() == spatial && pads.size() == 2 * spatial,
                 "strides, dilations and pads must fit the kernel");
    for (size_t i = 0; i < spatial; ++i) {
        call.require(kernel[i] > 0 && strides[i] > 0 && dilations[i] > 0 && pads[i] >= 0 && pads[i + spatial] >= 0,
                     "kernel, strides and dilations must be positive, and pads not negative");
        int64_t first = pads[i], last = pads[i + spatial];
        // From the first window's first cell to the last window's last, with the size that the program says.
        const int64_t reach = (out[i + 2] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1;
        if (auto_pad == "SAME_UPPER" || auto_pad == "SAME_LOWER") {
            const int64_t total = std::max<int64_t>(reach - sizes[i + 2], 0);
            first = auto_pad == "SAME_UPPER" ? total / 2 : total - total / 2;
            last = total - first;
        } else if (auto_pad == "VALID") {
            first = last = 0;
        }
        begin.push_back(first);
        end.push_back(last);
        behind.push_back(std::max<int64_t>(reach - sizes[i + 2] - first - last, 0));
    }
}

at::Tensor Windows::pad(const at::Tensor &x, double value) const { return padded(x, for_aten(begin, end), value); }

at::Tensor Windows::pad_behind(const at::Tensor &x, double value) const {
    return padded(x, for_aten(std::vector<int64_t>(behind.size()), behind), value);
}

}  // namespace cann_sim::executor
