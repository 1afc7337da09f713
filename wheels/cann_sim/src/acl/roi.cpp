// ACL operators that pool regions of interest: RoIAlign (prototype: ops-cv's objdetect/roi_align) and RoIPooling.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include <ATen/Parallel.h>
#include <algorithm>
#include <cmath>

#include "acl/operators.h"
#include "acl/roi_samples.h"

namespace cann_sim {

namespace {

using at::indexing::Slice;

// ---- RoIAlign ----
// roi_end_mode 0: boxes at least one pixel wide and high, no half-pixel shift (aligned=False);
// 2: half-pixel shift (PyTorch's aligned=True). 1 (TensorFlow) and 3 (MMDetection 0.6) have no user here.

RoiAlign roi_align_of(OpCall &op, const at::Tensor &feature_shape_of) {
    const int64_t mode = op.get_int("roi_end_mode", 1);
    op.require(mode == 0 || mode == 2, "roi_end_mode must be 0 or 2 here, not " + std::to_string(mode));
    return {feature_shape_of.size(2),
            feature_shape_of.size(3),
            op.get_int("pooled_height", 0),
            op.get_int("pooled_width", 0),
            op.get_int("sample_num", 2),
            static_cast<float>(op.get_float("spatial_scale", 1)),
            mode == 2};
}

// ROIAlign(features [B, C, H, W], rois [N, 5] = batch index, x1, y1, x2, y2) -> [N, C, pooled_height, pooled_width]
void roi_align(OpCall &op) {
    const at::Tensor features = op.input(0).to(at::kFloat).contiguous();
    const at::Tensor rois = op.input(1).to(at::kFloat).contiguous();
    const RoiAlign g = roi_align_of(op, features);
    const int64_t channels = features.size(1), bins = g.pooled_height * g.pooled_width, plane = g.height * g.width;
    at::Tensor &output = op.output(0);
    at::Tensor pooled = output.scalar_type() == at::kFloat ? output : at::empty(output.sizes(), at::kFloat);
    const float *in = features.data_ptr<float>(), *roi = rois.data_ptr<float>();
    float *out = pooled.data_ptr<float>();
    at::parallel_for(0, rois.size(0), 1, [&](int64_t first, int64_t last) {
        Sampling sampling;
        for (int64_t n = first; n < last; ++n) {
            place_samples(g, roi + 5 * n, sampling);
            const float *map = in + static_cast<int64_t>(roi[5 * n]) * channels * plane;
            float *bin = out + n * channels * bins;
            for (int64_t c = 0; c < channels; ++c, map += plane) {
                const Sampling::Point *point = sampling.points.data();
                for (int64_t b = 0; b < bins; ++b, ++bin, point += sampling.per_bin) {
                    *bin = mean_of_samples(sampling, point, map);
                }
            }
        }
    });
    if (!pooled.is_same(output)) {
        output.copy_(pooled);
    }
}

// ROIAlignGrad(ydiff [N, C, pooled_height, pooled_width], rois [N, 5]) -> xdiff [B, C, H, W]; float32 only.
// Split over channels: every sum is formed in the order of the boxes, whatever the number of threads.
void roi_align_grad(OpCall &op) {
    const at::Tensor &gradient = op.input(0);
    op.require(gradient.scalar_type() == at::kFloat,
               std::string("ydiff must be float32, not ") + toString(gradient.scalar_type()));
    const at::Tensor rois = op.input(1).to(at::kFloat).contiguous();
    at::Tensor &output = op.output(0);
    const RoiAlign g = roi_align_of(op, output);
    const int64_t channels = output.size(1), bins = g.pooled_height * g.pooled_width, plane = g.height * g.width;
    const float *in = gradient.data_ptr<float>(), *roi = rois.data_ptr<float>();
    float *out = output.data_ptr<float>();
    output.zero_();
    at::parallel_for(0, channels, 1, [&](int64_t first, int64_t last) {
        Sampling sampling;
        for (int64_t n = 0; n < rois.size(0); ++n) {
            place_samples(g, roi + 5 * n, sampling);
            const float samples = static_cast<float>(std::max<int64_t>(sampling.per_bin, 1));
            for (int64_t c = first; c < last; ++c) {
                float *map = out + (static_cast<int64_t>(roi[5 * n]) * channels + c) * plane;
                const float *bin = in + (n * channels + c) * bins;
                const Sampling::Point *point = sampling.points.data();
                for (int64_t b = 0; b < bins; ++b) {
                    for (int64_t s = 0; s < sampling.per_bin; ++s, ++point) {
                        for (int corner = 0; corner < 4; ++corner) {
                            map[point->corner[corner]] += bin[b] * point->weight[corner] / samples;
                        }
                    }
                }
            }
        }
    });
}

// ---- RoIPooling ----

// The whole-cell bounds of one bin of RoiPooling.
std::pair<int64_t, int64_t> bin_bounds(float start, float size, int64_t index, int64_t length) {
    const auto clip = [length](float value) {
        return std::min<int64_t>(std::max<int64_t>(static_cast<int64_t>(value), 0), length);
    };
    return {clip(std::floor(static_cast<float>(index) * size + start)),
            clip(std::ceil(static_cast<float>(index + 1) * size + start))};
}

void require_roi_pooling(OpCall &op, const at::Tensor &x, const at::Tensor &rois) {
    require_filled(op);
    op.require(op.get_int("pool_channel", 0) == x.size(1), "pool_channel must equal the channels of x");
    op.require(x.size(0) <= 1024 && rois.size(0) <= 1024, "at most 1024 images and 1024 rois");
}

// RoiPoolingWithArgMax(x [N, C, H, W], rois [n, 5], roi_actual_num) -> (y [n, C, ph, pw], argmax), of x2 + 1 and y2 +
// 1; argmax is the index in H x W, -1 for an empty bin.
void roi_pooling(OpCall &op) {
    const at::Tensor x = floats(op.input(0)), rois = floats(op.input(1));
    require_roi_pooling(op, x, rois);
    op.require(x.size(1) % 16 == 0 || op.has("_exclude_engines"), "channels must be a multiple of 16 on the AI Core");
    const at::Tensor count = op.input(2).reshape(-1).to(at::kLong);
    op.require(count.eq(rois.size(0)).all().item<bool>(), "roi_actual_num must equal the number of rois");
    const int64_t ph = op.get_int("pooled_h", 0), pw = op.get_int("pooled_w", 0);
    const float scale_h = static_cast<float>(op.get_float("spatial_scale_h", 1)),
                scale_w = static_cast<float>(op.get_float("spatial_scale_w", 1));
    const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
    at::Tensor y = at::zeros(op.output(0).sizes(), at::kFloat), argmax = at::full(op.output(1).sizes(), -1, at::kInt);
    for (int64_t n = 0; n < rois.size(0); ++n) {
        const float *roi = rois.data_ptr<float>() + 5 * n;
        const float left = roi[1] * scale_w, top = roi[2] * scale_h;
        const float bin_w = ((roi[3] + 1) * scale_w - left) / static_cast<float>(pw),
                    bin_h = ((roi[4] + 1) * scale_h - top) / static_cast<float>(ph);
        if (bin_w <= 0 || bin_h <= 0) {
            continue;
        }
        for (int64_t i = 0; i < ph; ++i) {
            const auto [y1, y2] = bin_bounds(top, bin_h, i, height);
            for (int64_t j = 0; j < pw; ++j) {
                const auto [x1, x2] = bin_bounds(left, bin_w, j, width);
                if (y2 <= y1 || x2 <= x1) {
                    continue;
                }
                const at::Tensor cells =
                    x[static_cast<int64_t>(roi[0])].slice(1, y1, y2).slice(2, x1, x2).reshape({channels, -1});
                const auto [best, where] = cells.max(1);
                const at::Tensor row = at::floor_divide(where, x2 - x1) + y1, column = where.remainder(x2 - x1) + x1;
                y.index_put_({n, Slice(), i, j}, best);
                argmax.index_put_({n, Slice(), i, j}, (row * width + column).to(at::kInt));
            }
        }
    }
    op.output(0).copy_(y);
    op.output(1).copy_(argmax);
}

// RoiPoolingGradWithArgMax(grad, x, rois, roi_actual_num, argmax) -> gradient of x
void roi_pooling_grad(OpCall &op) {
    const at::Tensor grad = floats(op.input(0)), rois = floats(op.input(2)), argmax = op.input(4).to(at::kLong);
    require_roi_pooling(op, op.input(1), rois);
    const int64_t channels = grad.size(1), plane = op.input(1).size(2) * op.input(1).size(3);
    at::Tensor total =
        at::zeros({op.input(1).size(0), channels, plane + 1}, at::kFloat);  // the last cell takes argmax -1
    for (int64_t n = 0; n < rois.size(0); ++n) {
        const at::Tensor where = argmax[n].reshape({channels, -1});
        total[static_cast<int64_t>(rois[n][0].item<float>())].scatter_add_(1, where.masked_fill(where < 0, plane),
                                                                           grad[n].reshape({channels, -1}));
    }
    op.output(0).copy_(total.narrow(2, 0, plane).view(op.output(0).sizes()));
}

// ---- position-sensitive RoI pooling (R-FCN): bin (i, j) of output channel c averages input channel (c G + i) G + j ----

// Calls visit(input channel, output element, rows, columns) for each bin that is not empty; rows and columns are begin and
// end. Rounding and limits: torch_npu's own test of the operator.
template <typename Visit>
void for_each_bin(OpCall &op, const at::Tensor &rois_by_image, int64_t height, int64_t width, Visit visit) {
    const int64_t group = op.get_int("group_size", 1), outputs = op.get_int("output_dim", 1);
    const float scale = static_cast<float>(op.get_float("spatial_scale", 1));
    const at::Tensor rois = rois_by_image.to(at::kFloat).transpose(1, 2).reshape({-1, 5}).contiguous();
    for (int64_t n = 0; n < rois.size(0); ++n) {
        const float *roi = rois.data_ptr<float>() + 5 * n;
        const float left = std::nearbyint(roi[1]) * scale, top = std::nearbyint(roi[2]) * scale;
        const float bin_width = std::max(std::nearbyint(roi[3] + 1.f) * scale - left, .1f) / static_cast<float>(group);
        const float bin_height = std::max(std::nearbyint(roi[4] + 1.f) * scale - top, .1f) / static_cast<float>(group);
        const auto range = [](int64_t bin, float size, float from, int64_t most) {
            const auto limit = [most](float edge) { return std::clamp<int64_t>(static_cast<int64_t>(edge), 0, most); };
            return std::pair(limit(std::floor(static_cast<float>(bin) * size + from)),
                             limit(std::ceil(static_cast<float>(bin + 1) * size + from)));
        };
        for (int64_t c = 0; c < outputs; ++c) {
            for (int64_t i = 0; i < group; ++i) {
                for (int64_t j = 0; j < group; ++j) {
                    const auto rows = range(i, bin_height, top, height), columns = range(j, bin_width, left, width);
                    if (rows.first < rows.second && columns.first < columns.second) {
                        visit(static_cast<int64_t>(roi[0]), (c * group + i) * group + j,
                              ((n * outputs + c) * group + i) * group + j, rows, columns);
                    }
                }
            }
        }
    }
}

using Range = std::pair<int64_t, int64_t>;

at::Tensor bin_of(const at::Tensor &image, int64_t channel, Range rows, Range columns) {
    return image.select(0, channel).slice(0, rows.first, rows.second).slice(1, columns.first, columns.second);
}

// PSROIPoolingV2(x [B, C G G, H, W], rois [B, 5, N]) -> [B N, C, G, G]
void ps_roi_pooling(OpCall &op) {
    const at::Tensor x = floats(op.input(0));
    at::Tensor y = at::zeros(op.output(0).sizes());
    for_each_bin(op, op.input(1), x.size(2), x.size(3),
                 [&](int64_t image, int64_t channel, int64_t element, Range rows, Range columns) {
                     op.require(image >= 0 && image < x.size(0), "a roi's image does not exist");
                     y.view(-1)[element] = bin_of(x[image], channel, rows, columns).mean();
                 });
    op.output(0).copy_(y);
}

// PSROIPoolingGradV2D(gradient, rois) -> gradient of x
void ps_roi_pooling_grad(OpCall &op) {
    const at::Tensor gradient = floats(op.input(0)).reshape(-1);
    at::Tensor x = at::zeros(op.output(0).sizes());
    for_each_bin(op, op.input(1), x.size(2), x.size(3),
                 [&](int64_t image, int64_t channel, int64_t element, Range rows, Range columns) {
                     at::Tensor bin = bin_of(x[image], channel, rows, columns);
                     bin.add_(gradient[element] / static_cast<double>(bin.numel()));
                 });
    op.output(0).copy_(x);
}

const Registration registered{
    {"PSROIPoolingV2", ps_roi_pooling},
    {"PSROIPoolingGradV2D", ps_roi_pooling_grad},
    {"ROIAlign", roi_align},
    {"ROIAlignGrad", roi_align_grad},
    {"RoiPoolingWithArgMax", roi_pooling},
    {"RoiPoolingGradWithArgMax", roi_pooling_grad},
};

}  // namespace

}  // namespace cann_sim
