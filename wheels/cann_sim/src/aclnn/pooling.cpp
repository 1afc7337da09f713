// aclnn functions of pooling whose indices are not torch's.
//
// CANN's mask for max-pooling has [N, C, kh * kw, (ceil(Ho * Wo / 16) + 1) * 32] bytes. How a card fills it is not known to
// callers, who pass it to the gradient; here each output's place in its window is in it, as int16.

#include "pch.h"

#include "aclnn/adapter.h"

namespace cann_sim {

namespace {

struct Window {
    std::array<int64_t, 2> kernel, stride, padding, dilation;  // down, across

    // v: kernel, stride, padding, dilation; one number stands for both, no stride for the kernel
    explicit Window(const Value *v) {
        kernel = pair(v[0].ints());
        stride = v[1].ints().empty() ? kernel : pair(v[1].ints());
        padding = pair(v[2].ints());
        dilation = pair(v[3].ints());
    }
    static std::array<int64_t, 2> pair(const std::vector<int64_t> &values) {
        TORCH_CHECK(!values.empty(), "a list of no numbers");
        return {values.front(), values.back()};
    }
    // Where the windows of `size` outputs begin, along one of the two axes.
    at::Tensor begins(size_t axis, int64_t size) const {
        return at::arange(size, at::kLong).mul(stride[axis]).sub(padding[axis]);
    }
};

at::Tensor places(const Value &mask, at::IntArrayRef sizes) {
    at::Tensor bytes = tensor(mask);
    TORCH_CHECK(bytes.is_contiguous() && static_cast<int64_t>(bytes.nbytes()) >= c10::multiply_integers(sizes) * 2,
                "the mask has ", bytes.nbytes(), " bytes");
    return at::from_blob(bytes.data_ptr(), sizes, at::kShort);
}

// (self, kernel, stride, padding, dilation, ceil mode, out, mask)
void max_pool(const Value *v) {
    const at::Tensor self = tensor(v[0]);
    const Window window(v + 1);
    const auto [out, index] =
        at::max_pool2d_with_indices(self, window.kernel, window.stride, window.padding, window.dilation, v[5].i != 0);
    write(v[6], out);
    const at::Tensor down = index.div(self.size(-1), "floor") - window.begins(0, out.size(-2)).unsqueeze(-1);
    const at::Tensor across = index.remainder(self.size(-1)) - window.begins(1, out.size(-1));
    const at::Tensor place =
        down.div(window.dilation[0], "floor") * window.kernel[1] + across.div(window.dilation[1], "floor");
    places(v[7], out.sizes()).copy_(place);
}

// (gradient, self, mask, kernel, stride, padding, dilation, ceil mode, out)
void max_pool_backward(const Value *v) {
    const at::Tensor gradient = tensor(v[0]), self = tensor(v[1]);
    const Window window(v + 3);
    const at::Tensor place = places(v[2], gradient.sizes()).to(at::kLong);
    const at::Tensor down =
        place.div(window.kernel[1], "floor") * window.dilation[0] + window.begins(0, gradient.size(-2)).unsqueeze(-1);
    const at::Tensor across =
        place.remainder(window.kernel[1]) * window.dilation[1] + window.begins(1, gradient.size(-1));
    write(v[8], at::max_pool2d_with_indices_backward(gradient, self, window.kernel, window.stride, window.padding,
                                                     window.dilation, v[7].i != 0, down * self.size(-1) + across));
}

const ComputationRegistration registered{
    {"aclnnMaxPool2dWithMask", max_pool},
    {"aclnnMaxPool2dWithMaskBackward", max_pool_backward},
};

}  // namespace

}  // namespace cann_sim
