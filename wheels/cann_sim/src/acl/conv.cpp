// ACL operators of convolutions and their filters. torch_npu's own convolution comes as an aten operator; by name come
// those over the samples of DeformableOffsets. Prototypes, formulas and limits: CANN's operator specifications and the
// READMEs of ops-cv and ops-nn; where those leave something open, the comment says what is assumed. Half precision is
// computed in float32 and rounded once.

#include "pch.h"

#include "acl/operators.h"

namespace cann_sim {

namespace {

struct Convolution {
    std::vector<int64_t> strides, pads, dilations;
    int64_t groups;
};

// Attributes of a convolution over `spatial` dimensions, in the order N, C and those.
template <size_t spatial>
Convolution convolution_of(OpCall &op) {
    const std::string format = spatial == 2 ? "NCHW" : "NCDHW";
    op.require(op.get_string("data_format", format) == format, "data_format must be " + format + " here");
    const auto strides = op.get_ints("strides"), pads = op.get_ints("pads"), dilations = op.get_ints("dilations");
    op.require(strides.size() == spatial + 2 && pads.size() == spatial * 2 && dilations.size() == spatial + 2,
               "strides and dilations take a number per dimension, pads two per spatial one");
    Convolution c{{}, {}, {}, op.get_int("groups", 1)};
    for (size_t i = 0; i < spatial; ++i) {
        op.require(pads[2 * i] == pads[2 * i + 1], "pads must be the same on both sides here");
        c.strides.push_back(strides[i + 2]);
        c.pads.push_back(pads[2 * i]);
        c.dilations.push_back(dilations[i + 2]);
    }
    return c;
}

// Conv2D(x, filter, bias or nothing), Conv3D
template <size_t spatial>
void convolution(OpCall &op) {
    const Convolution c = convolution_of<spatial>(op);
    const bool biased = op.num_inputs() > 2 && op.input(2).defined();
    const std::optional<at::Tensor> bias = biased ? std::optional<at::Tensor>(floats(op.input(2))) : std::nullopt;
    const std::vector<int64_t> none(spatial, 0);
    op.output(0).copy_(at::convolution(floats(op.input(0)), floats(op.input(1)), bias, c.strides, c.pads, c.dilations,
                                       false, none, c.groups));
}

// Conv2DTranspose(input_size, x, filter, bias or nothing), attribute output_padding per dimension; Conv3DTranspose
template <size_t spatial>
void transposed_convolution(OpCall &op) {
    const Convolution c = convolution_of<spatial>(op);
    const bool biased = op.num_inputs() > 3 && op.input(3).defined();
    const std::optional<at::Tensor> bias = biased ? std::optional<at::Tensor>(floats(op.input(3))) : std::nullopt;
    std::vector<int64_t> added = op.get_ints("output_padding");
    op.require(added.size() == spatial + 2, "output_padding takes a number per dimension");
    added.erase(added.begin(), added.begin() + 2);
    op.output(0).copy_(at::convolution(floats(op.input(1)), floats(op.input(2)), bias, c.strides, c.pads, c.dilations,
                                       true, added, c.groups));
}

template <size_t spatial>
at::Tensor convolution_gradient(OpCall &op, const at::Tensor &x, const at::Tensor &filter, bool of_filter) {
    const Convolution c = convolution_of<spatial>(op);
    const std::vector<int64_t> none(spatial, 0);
    const auto gradients =
        at::convolution_backward(floats(op.input(2)), floats(x), floats(filter), std::nullopt, c.strides, c.pads,
                                 c.dilations, false, none, c.groups, {!of_filter, of_filter, false});
    return of_filter ? std::get<1>(gradients) : std::get<0>(gradients);
}

// Conv2DBackpropInput(input_size, filter, gradient), Conv2DBackpropFilter(x, filter_size, gradient); Conv3D…
template <size_t spatial>
void convolution_input_gradient(OpCall &op) {
    op.output(0).copy_(convolution_gradient<spatial>(op, at::zeros(op.output(0).sizes()), op.input(1), false));
}

template <size_t spatial>
void convolution_filter_gradient(OpCall &op) {
    op.output(0).copy_(convolution_gradient<spatial>(op, op.input(0), at::zeros(op.output(0).sizes()), true));
}

// ActiveRotatedFilter(x [O, I, orientations, H, W], indices [orientations, H, W, rotations], from 1)
//   -> [O * rotations, I * orientations, H, W]
at::Tensor filter_positions(OpCall &op, int64_t entries) {
    return op.input(1).to(at::kLong).reshape({entries, -1}) - 1;
}

void active_rotated_filter(OpCall &op) {
    require_filled(op);
    const at::Tensor &x = op.input(0);
    const int64_t outer = x.size(0), inner = x.size(1), entries = x.numel() / (outer * inner);
    const at::Tensor positions = filter_positions(op, entries), flat = x.reshape({outer, inner, entries});
    at::Tensor y = at::zeros({outer, positions.size(1), inner, entries}, x.options());
    for (int64_t k = 0; k < positions.size(1); ++k) {
        y.select(1, k).index_copy_(2, positions.select(1, k), flat);
    }
    op.output(0).copy_(y.view(op.output(0).sizes()));
}

void active_rotated_filter_grad(OpCall &op) {
    require_filled(op);
    const at::Tensor &x_grad = op.output(0);
    const int64_t outer = x_grad.size(0), inner = x_grad.size(1), entries = x_grad.numel() / (outer * inner);
    const at::Tensor positions = filter_positions(op, entries);
    const at::Tensor y_grad = op.input(0).reshape({outer, positions.size(1), inner, entries});
    at::Tensor total = at::zeros({outer, inner, entries}, x_grad.options());
    for (int64_t k = 0; k < positions.size(1); ++k) {
        total += y_grad.select(1, k).index_select(2, positions.select(1, k));
    }
    op.output(0).copy_(total.view(x_grad.sizes()));
}

const Registration registered{
    {"Conv2D", convolution<2>},
    {"Conv2DBackpropInput", convolution_input_gradient<2>},
    {"Conv2DBackpropFilter", convolution_filter_gradient<2>},
    {"Conv2DTranspose", transposed_convolution<2>},
    {"Conv3D", convolution<3>},
    {"Conv3DTranspose", transposed_convolution<3>},
    {"Conv3DBackpropInput", convolution_input_gradient<3>},
    {"Conv3DBackpropFilter", convolution_filter_gradient<3>},
    {"ActiveRotatedFilter", active_rotated_filter},
    {"ActiveRotatedFilterGrad", active_rotated_filter_grad},
};

}  // namespace

}  // namespace cann_sim
