// Where the windows of a convolution or a pooling lie: strides, dilations and padding of both ends, of each dimension of
// space, from ONNX's attributes (pads, auto_pad, ceil_mode).
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "executor/operations.h"

namespace cann_sim::executor {

struct Windows {
    std::vector<int64_t> kernel, strides, dilations, begin, end;
    // What ceil_mode adds behind the padding, so that the last window is whole.
    std::vector<int64_t> behind;

    Windows(Call &call, at::IntArrayRef kernel_shape);

    // x with its borders of `value`, and those of `behind` too.
    at::Tensor pad(const at::Tensor &x, double value) const;
    at::Tensor pad_behind(const at::Tensor &x, double value) const;
};

}  // namespace cann_sim::executor
