// Reductions, running sums, and the order of elements.

#include "pch.h"

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

struct Reduction {
    at::Tensor x;
    std::vector<int64_t> axes;
    bool keep;
    bool nothing;  // no axes, and noop_with_empty_axes
};

// Axes are an attribute or input 1; without, all are reduced.
Reduction reduction_of(Call &call) {
    Reduction result{call.input(0), call.setting("axes", 1), call.integer("keepdims", 1) != 0, false};
    result.nothing = result.axes.empty() && call.integer("noop_with_empty_axes", 0) != 0;
    if (result.axes.empty()) {
        for (int64_t axis = 0; axis < result.x.dim(); ++axis) {
            result.axes.push_back(axis);
        }
    }
    return result;
}

using Reduce = at::Tensor (*)(const Reduction &);

template <Reduce function>
void reduce(Call &call) {
    const Reduction r = reduction_of(call);
    call.output(r.nothing || (r.x.dim() == 0 && r.axes.empty()) ? r.x : function(r));
}

at::Tensor sum(const Reduction &r) { return r.x.sum(r.axes, r.keep); }
at::Tensor mean(const Reduction &r) {
    return r.x.is_floating_point() ? r.x.mean(r.axes, r.keep) : r.x.to(at::kDouble).mean(r.axes, r.keep).trunc_();
}
at::Tensor largest(const Reduction &r) { return r.x.amax(r.axes, r.keep); }
at::Tensor smallest(const Reduction &r) { return r.x.amin(r.axes, r.keep); }
at::Tensor l1(const Reduction &r) { return r.x.abs().sum(r.axes, r.keep); }
at::Tensor sum_square(const Reduction &r) { return r.x.square().sum(r.axes, r.keep); }
at::Tensor l2(const Reduction &r) { return r.x.square().sum(r.axes, r.keep).to(at::kDouble).sqrt_(); }
at::Tensor log_sum(const Reduction &r) { return r.x.sum(r.axes, r.keep).log_(); }
at::Tensor log_sum_exp(const Reduction &r) { return at::logsumexp(r.x, r.axes, r.keep); }

at::Tensor product(const Reduction &r) {
    at::Tensor result = r.x;
    for (const int64_t axis : r.axes) {
        result = result.prod(axis, true, r.x.scalar_type());
    }
    return r.keep ? result : result.squeeze(r.axes);
}

// ArgMax and ArgMin: the first of equal elements, with select_last_index the last.
template <bool largest>
void arg(Call &call) {
    const at::Tensor x = call.input(0);
    const int64_t axis = call.axis(call.integer("axis", 0), x.dim());
    const bool keep = call.integer("keepdims", 1) != 0, last = call.integer("select_last_index", 0) != 0;
    const at::Tensor searched = last ? x.flip(axis) : x;
    const at::Tensor found = largest ? searched.argmax(axis, keep) : searched.argmin(axis, keep);
    call.output(last ? x.size(axis) - 1 - found : found);
}

void cum_sum(Call &call) {
    const at::Tensor x = call.input(0);
    const int64_t axis = call.axis(static_cast<int64_t>(call.number(1)), x.dim());
    const bool reverse = call.integer("reverse", 0) != 0;
    const at::Tensor ordered = reverse ? x.flip(axis) : x;
    at::Tensor sums = ordered.cumsum(axis, x.scalar_type());
    if (call.integer("exclusive", 0) != 0) {
        sums = sums - ordered;
        if (x.is_floating_point() && x.size(axis) > 0) {  // not by subtraction, which rounds
            const auto before = ordered.narrow(axis, 0, x.size(axis) - 1).cumsum(axis);
            sums = at::cat({at::zeros_like(ordered.narrow(axis, 0, 1)), before}, axis);
        }
    }
    call.output(reverse ? sums.flip(axis) : sums);
}

// Of equal elements that with the smaller index comes first: ATen's topk promises nothing there, its stable sort does.
void top_k(Call &call) {
    const at::Tensor x = call.input(0);
    const int64_t axis = call.axis(call.integer("axis", -1), x.dim());
    const int64_t count = call.has(1) ? call.integers(1).at(0) : call.integer("k", 1);
    call.require(count >= 0 && count <= (x.dim() == 0 ? 1 : x.size(axis)), "K is larger than the axis");
    const bool largest = call.integer("largest", 1) != 0;
    const auto [values, places] = at::sort(x, true, axis, largest);
    call.output(values.narrow(axis, 0, count));
    call.output(places.narrow(axis, 0, count), 1);
}

const Registration registered{
    {"ReduceSum", reduce<sum>},
    {"ReduceMean", reduce<mean>},
    {"ReduceMax", reduce<largest>},
    {"ReduceMin", reduce<smallest>},
    {"ReduceProd", reduce<product>},
    {"ReduceL1", reduce<l1>},
    {"ReduceL2", reduce<l2>},
    {"ReduceSumSquare", reduce<sum_square>},
    {"ReduceLogSum", reduce<log_sum>},
    {"ReduceLogSumExp", reduce<log_sum_exp>},
    {"ArgMax", arg<true>},
    {"ArgMin", arg<false>},
    {"CumSum", cum_sum},
    {"TopK", top_k},
};

}  // namespace

}  // namespace cann_sim::executor
