// Normalisations and softmax.

#include "pch.h"

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

// Softmax and LogSoftmax: from opset 13 along one axis (-1), before that over everything from axis (1) on.
template <bool logarithm>
void softmax(Call &call) {
    const bool one_axis = call.opset() >= 13;
    const auto sizes = call.raw(0).sizes().vec();
    const int64_t rank = call.raw(0).dim();
    const int64_t axis = call.axis(call.integer("axis", one_axis ? -1 : 1), rank);
    at::Tensor x;
    if (one_axis || axis == rank - 1) {
        // In place row by row: the kernel of the last axis has read a row before it writes it.
        if (!logarithm && axis == rank - 1 && call.owned(0) && call.raw(0).is_contiguous() &&
            call.raw(0).is_floating_point()) {
            x = call.input(0);
            call.output(at::softmax_out(x, x, axis));
            return;
        }
        x = call.input(0);
        call.output(logarithm ? x.log_softmax(axis) : x.softmax(axis));
        return;
    }
    x = call.input(0).flatten(axis);
    call.output((logarithm ? x.log_softmax(axis) : x.softmax(axis)).view(sizes));
}

void layer_normalization(Call &call) {
    const at::Tensor x = call.input(0);
    const int64_t axis = call.axis(call.integer("axis", -1), x.dim());
    const auto shape = x.sizes().slice(static_cast<size_t>(axis));
    const at::Tensor scale = call.input(1).expand(shape), bias = call.optional(2);
    const auto [y, mean, inverse] = at::native_layer_norm(x, shape, scale, bias.defined() ? bias.expand(shape) : bias,
                                                          call.number("epsilon", 1e-5));
    call.output(y);
    call.output(mean, 1);
    call.output(inverse, 2);
}

// Groups of channels; InstanceNormalization has one of each channel.
at::Tensor normalize_groups(Call &call, int64_t groups) {
    const at::Tensor x = call.input(0).contiguous();
    const int64_t batch = x.size(0), channels = x.size(1), rest = x.numel() / std::max<int64_t>(batch * channels, 1);
    call.require(groups > 0 && channels % groups == 0, "the channels do not split into groups");
    return std::get<0>(at::native_group_norm(x, call.input(1), call.input(2), batch, channels, rest, groups,
                                             call.number("epsilon", 1e-5)));
}

void instance_normalization(Call &call) { call.output(normalize_groups(call, call.raw(0).size(1))); }

// Of opset 18 scale and bias are per group, from 21 per channel.
void group_normalization(Call &call) {
    const int64_t groups = call.integer("num_groups", 1);
    if (call.raw(1).numel() == call.raw(0).size(1)) {
        call.output(normalize_groups(call, groups));
        return;
    }
    const at::Tensor x = call.input(0).contiguous();
    const int64_t batch = x.size(0), channels = x.size(1), rest = x.numel() / std::max<int64_t>(batch * channels, 1);
    call.require(groups > 0 && channels % groups == 0, "the channels do not split into groups");
    const int64_t each = channels / groups;
    call.output(std::get<0>(at::native_group_norm(x, call.input(1).repeat_interleave(each),
                                                  call.input(2).repeat_interleave(each), batch, channels, rest, groups,
                                                  call.number("epsilon", 1e-5))));
}

// With the stored mean and variance.
void batch_normalization(Call &call) {
    call.require(call.integer("training_mode", 0) == 0, "training_mode is not simulated");
    call.output(at::batch_norm(call.input(0), call.input(1), call.input(2), call.input(3), call.input(4), false, 0,
                               call.number("epsilon", 1e-5), false));
}

void lp_normalization(Call &call) {
    const at::Tensor x = call.input(0);
    const int64_t axis = call.axis(call.integer("axis", -1), x.dim());
    call.output(x / at::norm(x, call.integer("p", 2), axis, true));
}

const Registration registered{
    {"Softmax", softmax<false>},
    {"LogSoftmax", softmax<true>},
    {"LayerNormalization", layer_normalization},
    {"InstanceNormalization", instance_normalization},
    {"GroupNormalization", group_normalization},
    {"BatchNormalization", batch_normalization},
    {"LpNormalization", lp_normalization},
};

}  // namespace

}  // namespace cann_sim::executor
