// Norms of an order that CANN's aclnn functions do not take: torch_npu asks for them in two steps, the second of which
// takes the root. Prototypes: CANN's operator IR. Infinite orders come as the limits of int.

#include "pch.h"

#include <ATen/Parallel.h>
#include <ATen/WrapDimUtilsMulti.h>

#include <climits>
#include <numeric>

#include "acl/operators.h"

namespace cann_sim {

namespace {

double order(const OpCall &op) {
    const double p = op.get_float("p", 2);
    const double limit = INT_MAX;
    return p >= limit ? INFINITY : p <= -limit ? -INFINITY : p;
}

// Orders whose norm has no root.
bool is_rootless(double p) { return p == 0 || p == 1 || std::isinf(p); }

float sum_of_powers(const float *x, int64_t count, float p) {
    return std::accumulate(x, x + count, 0.0F,
                           [p](float sum, float value) { return sum + std::pow(std::abs(value), p); });
}

// The CPU's norm before its root: the same sums in the same order, so that both steps give its last bit. It adds number by
// number, and where one result is left, in one part per thread.
at::Tensor sums_of_powers(const at::Tensor &x, float p, const std::vector<int64_t> &axes, bool keep) {
    at::Tensor result = x.sum(axes, keep);  // for its shape
    std::vector<int64_t> kept, reduced;
    const auto mask = at::dim_list_to_bitset(axes, static_cast<size_t>(x.dim()));
    for (int64_t dim = 0; dim < x.dim(); ++dim) {
        (axes.empty() || mask[static_cast<size_t>(dim)] ? reduced : kept).push_back(dim);
    }
    kept.insert(kept.end(), reduced.begin(), reduced.end());
    const at::Tensor rows = x.permute(kept).contiguous();
    const float *from = rows.data_ptr<float>();
    float *to = result.data_ptr<float>();
    const int64_t results = result.numel(), count = results == 0 ? 0 : x.numel() / results;
    const int64_t parts =
        results == 1 ? std::min<int64_t>(at::get_num_threads(), at::divup(count, at::internal::GRAIN_SIZE)) : 1;
    const int64_t part = at::divup(count, std::max<int64_t>(parts, 1));
    for (int64_t i = 0; i < results; ++i, from += count) {
        to[i] = 0;
        for (int64_t first = 0; first < count; first += part) {
            to[i] += sum_of_powers(from + first, std::min(part, count - first), p);
        }
    }
    return result;
}

// LpNormReduceV2(x), attributes p, axes (none: all), keepdim, epsilon
void lp_norm_reduce(OpCall &op) {
    const double p = order(op);
    const std::vector<int64_t> axes = op.get_ints("axes");
    const bool keep = op.get_bool("keepdim", false);
    const at::Tensor x = floats(op.input(0));
    const at::Tensor result = is_rootless(p) ? at::linalg_vector_norm(x, p, axes, keep)
                                             : sums_of_powers(x, static_cast<float>(p), axes, keep);
    op.output(0).copy_(result.view(op.output(0).sizes()));
}

// LpNormUpdateV2(x), attributes p, epsilon: the root, and at least epsilon
void lp_norm_update(OpCall &op) {
    const auto p = static_cast<float>(order(op));
    at::Tensor result = floats(op.input(0)).clone();
    if (p == 2) {
        result.sqrt_();
    } else if (!is_rootless(p)) {
        // Number by number, as the CPU's norm does: at::pow computes with vectors, which round otherwise.
        float *values = result.data_ptr<float>();
        std::transform(values, values + result.numel(), values, [p](float sum) { return std::pow(sum, 1.0F / p); });
    }
    op.output(0).copy_(result.clamp_min_(op.get_float("epsilon", 1e-12)).view(op.output(0).sizes()));
}

const Registration registered{
    {"LpNormReduceV2", lp_norm_reduce},
    {"LpNormUpdateV2", lp_norm_update},
};

}  // namespace

}  // namespace cann_sim
