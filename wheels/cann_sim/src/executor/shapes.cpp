// Operators that move data or only change shapes. They keep data types; views are made where ATen can.
// All shapes are static, so where ONNX takes a new shape as an input, the program's own shape of the result is used.

#include "pch.h"

#include <algorithm>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

// Reshape, Flatten, Squeeze, Unsqueeze
void reshape(Call &call) { call.output(call.raw(0).reshape(call.result().shape)); }

void expand(Call &call) { call.output(call.raw(0).expand(call.result().shape)); }

void transpose(Call &call) {
    const at::Tensor &x = call.raw(0);
    std::vector<int64_t> reversed;
    for (int64_t axis = x.dim(); axis-- > 0;) {
        reversed.push_back(axis);
    }
    call.output(x.permute(call.integers("perm", reversed)));
}

void concat(Call &call) {
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < call.num_inputs(); ++i) {
        parts.push_back(call.raw(i));
    }
    call.output(at::cat(parts, call.axis(call.integer("axis", 1), parts.at(0).dim())));
}

// Sizes are an attribute or input 1; without, equal parts, of which the last may be smaller.
void split(Call &call) {
    const at::Tensor &x = call.raw(0);
    const int64_t axis = call.axis(call.integer("axis", 0), x.dim());
    const auto parts = static_cast<int64_t>(call.num_outputs());
    const int64_t equal = (x.size(axis) + parts - 1) / parts;
    const auto sizes = call.setting("split", 1, std::vector<int64_t>(static_cast<size_t>(parts), equal));
    call.require(sizes.size() == static_cast<size_t>(parts), "split has another length than the outputs");
    int64_t begin = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
        call.output(x.narrow(axis, begin, std::min(sizes[i], x.size(axis) - begin)), i);
        begin += sizes[i];
    }
}

// Starts, ends, axes and steps are inputs 1 to 4, before opset 10 attributes.
void slice(Call &call) {
    at::Tensor x = call.raw(0);
    const auto starts = call.setting("starts", 1), ends = call.setting("ends", 2);
    std::vector<int64_t> first_axes;
    for (size_t i = 0; i < starts.size(); ++i) {
        first_axes.push_back(static_cast<int64_t>(i));
    }
    const auto axes = call.setting("axes", 3, first_axes);
    const auto steps = call.has(4) ? call.integers(4) : std::vector<int64_t>(starts.size(), 1);
    call.require(ends.size() == starts.size() && axes.size() == starts.size() && steps.size() == starts.size(),
                 "starts, ends, axes and steps have different lengths");
    for (size_t i = 0; i < starts.size(); ++i) {
        const int64_t axis = call.axis(axes[i], x.dim()), size = x.size(axis), step = steps[i];
        call.require(step != 0, "a step is 0");
        // Counted from the end if negative, and cut to what is there; backwards, -1 is before the first element.
        const auto place = [size](int64_t at, int64_t low, int64_t high) {
            return std::clamp(at < 0 && at >= -size ? at + size : at < 0 ? low : at, low, high);
        };
        if (step > 0) {
            const int64_t begin = place(starts[i], 0, size), end = place(ends[i], 0, size);
            x = x.slice(axis, begin, std::max(begin, end), std::min(step, std::max<int64_t>(size, 1)));
        } else {
            const int64_t begin = place(starts[i], -1, size - 1), end = place(ends[i], -1, size - 1);
            const int64_t back = step < -size ? -size - 1 : step;
            x = begin > end ? x.index_select(axis, at::arange(begin, end, back, at::kLong)) : x.narrow(axis, 0, 0);
        }
    }
    call.output(x);
}

// For each place along an axis after padding, the place that it repeats.
at::Tensor repeated(Call &call, const std::string &mode, int64_t size, int64_t before, int64_t after) {
    call.require(size > 0, "an empty axis has nothing to repeat");
    at::Tensor places = at::arange(-before, size + after, at::kLong);
    if (mode == "edge") {
        return places.clamp_(0, size - 1);
    }
    if (mode == "wrap") {
        return places.remainder_(size);
    }
    call.require(mode == "reflect", "mode " + mode + " is not simulated");
    if (size == 1) {
        return places.zero_();
    }
    const int64_t period = 2 * (size - 1);
    places.remainder_(period);
    return at::minimum(places, period - places);
}

// Pads (and axes) are inputs, before opset 11 the attributes pads and value. Negative ones cut.
void pad(Call &call) {
    at::Tensor x = call.raw(0);
    const auto given = call.setting("pads", 1);
    std::vector<int64_t> axes;
    for (int64_t axis = 0; axis < x.dim(); ++axis) {
        axes.push_back(axis);
    }
    axes = call.has(3) ? call.integers(3) : axes;
    call.require(given.size() == 2 * axes.size(), "pads must have two numbers per axis");
    std::vector<int64_t> before(static_cast<size_t>(x.dim())), after(before);
    for (size_t i = 0; i < axes.size(); ++i) {
        const auto axis = static_cast<size_t>(call.axis(axes[i], x.dim()));
        before[axis] = given[i];
        after[axis] = given[i + axes.size()];
    }
    const std::string mode = call.text("mode", "constant");
    if (mode == "constant") {
        std::vector<int64_t> widths;  // the last axis first
        for (size_t axis = before.size(); axis-- > 0;) {
            widths.push_back(before[axis]);
            widths.push_back(after[axis]);
        }
        const at::Scalar value = call.has(2) ? call.raw(2).item() : at::Scalar(call.number("value", 0));
        call.output(at::constant_pad_nd(x, widths, value));
        return;
    }
    for (size_t axis = 0; axis < before.size(); ++axis) {
        const auto dim = static_cast<int64_t>(axis);
        if (before[axis] != 0 || after[axis] != 0) {
            x = x.index_select(dim, repeated(call, mode, x.size(dim), before[axis], after[axis]));
        }
    }
    call.output(x);
}

void tile(Call &call) { call.output(call.raw(0).repeat(call.integers(1))); }

void shape(Call &call) {
    const at::Tensor &x = call.raw(0);
    const auto place = [&](const char *name, int64_t otherwise) {
        const int64_t at = call.integer(name, otherwise);
        return std::clamp<int64_t>(at < 0 ? at + x.dim() : at, 0, x.dim());
    };
    const int64_t begin = place("start", 0), end = std::max(begin, place("end", x.dim()));
    call.output(at::tensor(x.sizes().slice(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), at::kLong));
}

void size(Call &call) { call.output(at::scalar_tensor(call.raw(0).numel(), at::kLong)); }

void constant_of_shape(Call &call) {
    const Value &result = call.result();
    call.output(at::full(result.shape, call.number("value", 0), at::TensorOptions().dtype(result.dtype)));
}

// start + i delta, as many as the program says.
void range(Call &call) {
    const int64_t count = call.result().shape.at(0);
    const at::ScalarType dtype = call.input(0).scalar_type();
    call.output(call.input(0).reshape({}) + at::arange(count, at::kLong).to(dtype) * call.input(2).reshape({}));
}

void trilu(Call &call) {
    const int64_t diagonal = call.has(1) ? call.integers(1).at(0) : 0;
    const at::Tensor &x = call.raw(0);
    call.output(call.integer("upper", 1) != 0 ? x.triu(diagonal) : x.tril(diagonal));
}

void depth_to_space(Call &call) {
    const at::Tensor &x = call.raw(0);
    const int64_t block = call.integer("blocksize", 0);
    call.require(block > 0 && x.dim() == 4 && x.size(1) % (block * block) == 0, "the channels do not fit blocksize");
    const int64_t channels = x.size(1) / (block * block);
    const bool depth_first = call.text("mode", "DCR") == "DCR";
    const at::Tensor parts =
        depth_first ? x.reshape({x.size(0), block, block, channels, x.size(2), x.size(3)}).permute({0, 3, 4, 1, 5, 2})
                    : x.reshape({x.size(0), channels, block, block, x.size(2), x.size(3)}).permute({0, 1, 4, 2, 5, 3});
    call.output(parts.reshape(call.result().shape));
}

void space_to_depth(Call &call) {
    const at::Tensor &x = call.raw(0);
    const int64_t block = call.integer("blocksize", 0);
    call.require(block > 0 && x.dim() == 4 && x.size(2) % block == 0 && x.size(3) % block == 0,
                 "the map does not fit blocksize");
    const at::Tensor parts = x.reshape({x.size(0), x.size(1), x.size(2) / block, block, x.size(3) / block, block});
    call.output(parts.permute({0, 3, 5, 1, 2, 4}).reshape(call.result().shape));
}

const Registration registered{
    {"Reshape", reshape},
    {"Flatten", reshape},
    {"Squeeze", reshape},
    {"Unsqueeze", reshape},
    {"Expand", expand},
    {"Transpose", transpose},
    {"Concat", concat},
    {"Split", split},
    {"Slice", slice},
    {"Pad", pad},
    {"Tile", tile},
    {"Shape", shape},
    {"Size", size},
    {"ConstantOfShape", constant_of_shape},
    {"Range", range},
    {"Trilu", trilu},
    {"DepthToSpace", depth_to_space},
    {"SpaceToDepth", space_to_depth},
};

}  // namespace

}  // namespace cann_sim::executor
