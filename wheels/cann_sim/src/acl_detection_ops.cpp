// ACL operators of object detection. Prototypes and semantics: ops-cv's operator headers
// (objdetect/roi_align, image/non_max_suppression_v3).

#include "compute_pch.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "acl_ops.h"

namespace cann_sim {

namespace {

// Greedy non-maximum suppression of `boxes` (float [N, 4], corners x1, y1, x2, y2): the indices that stay, best score
// first, at most `most`. `offset` is added to widths and heights.
std::vector<int64_t> suppress(const at::Tensor &boxes, const at::Tensor &scores, int64_t most, float iou_threshold,
                              float score_threshold, float offset) {
    const int64_t count = boxes.size(0);
    const float *box = boxes.data_ptr<float>(), *score = scores.data_ptr<float>();
    // torch's own sort: boxes of equal score then come in the order in which the CPU's NMS takes them.
    const at::Tensor sorted = std::get<1>(scores.reshape(-1).sort(0, /*descending=*/true));
    std::vector<int64_t> order;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = sorted.data_ptr<int64_t>()[i];
        if (score[index] > score_threshold) {
            order.push_back(index);
        }
    }

    // Sorted copies, one array per coordinate: the inner loop below then runs over contiguous memory.
    const size_t n = order.size();
    std::vector<float> x1(n), y1(n), x2(n), y2(n), area(n);
    for (size_t i = 0; i < n; ++i) {
        const float *b = box + 4 * order[i];
        x1[i] = b[0], y1[i] = b[1], x2[i] = b[2], y2[i] = b[3];
        area[i] = (b[2] - b[0] + offset) * (b[3] - b[1] + offset);
    }
    std::vector<char> suppressed(n, 0);
    std::vector<int64_t> kept;
    for (size_t i = 0; i < n && static_cast<int64_t>(kept.size()) < most; ++i) {
        if (suppressed[i]) {
            continue;
        }
        kept.push_back(order[i]);
        for (size_t j = i + 1; j < n; ++j) {
            const float width = std::max(0.f, std::min(x2[i], x2[j]) - std::max(x1[i], x1[j]) + offset);
            const float height = std::max(0.f, std::min(y2[i], y2[j]) - std::max(y1[i], y1[j]) + offset);
            const float overlap = width * height;
            suppressed[j] |= overlap / (area[i] + area[j] - overlap) > iou_threshold;
        }
    }
    return kept;
}

// `indices` (int32) begins with `kept`; `rest` follows.
void write_indices(at::Tensor &indices, const std::vector<int64_t> &kept, int32_t rest) {
    int32_t *out = std::copy(kept.begin(), kept.end(), indices.data_ptr<int32_t>());
    std::fill(out, indices.data_ptr<int32_t>() + indices.numel(), rest);
}

// NonMaxSuppressionV3(boxes [N, 4] float, scores [N], max_output_size, iou_threshold, score_threshold)
//   -> indices [N] int32, best score first, -1 after the last one kept.
// boxes are corners x1, y1, x2, y2; attribute offset (0 or 1) is added to their width and height.
void non_max_suppression(OpCall &op) {
    const at::Tensor boxes = op.input(0).to(at::kFloat).contiguous();
    const at::Tensor scores = op.input(1).to(at::kFloat).contiguous();
    op.require(boxes.dim() == 2 && boxes.size(1) == 4, "boxes must have shape [N, 4]");
    op.require(scores.numel() == boxes.size(0), "scores must have one value per box");
    const int64_t most = std::min<int64_t>(op.ints(2).at(0), op.output(0).numel());
    const float iou_threshold = op.input(3).to(at::kFloat).item<float>();
    const float score_threshold = op.input(4).to(at::kFloat).item<float>();
    const float offset = static_cast<float>(op.get_int("offset", 0));
    write_indices(op.output(0), suppress(boxes, scores, most, iou_threshold, score_threshold, offset), -1);
}

// NonMaxSuppressionV4(boxes [N, 4], scores [N], max_output_size, iou_threshold, score_threshold)
//   -> (indices [max_output_size] int32, best score first, 0 after the last one kept; how many are valid).
// A box is any two opposite corners, as in TensorFlow, whose operator it is.
void non_max_suppression_v4(OpCall &op) {
    const at::Tensor corners = op.input(0).to(at::kFloat);
    op.require(corners.dim() == 2 && corners.size(1) == 4, "boxes must have shape [N, 4]");
    const at::Tensor a = corners.narrow(1, 0, 2), b = corners.narrow(1, 2, 2);
    const at::Tensor boxes = at::cat({at::min(a, b), at::max(a, b)}, 1), scores = op.input(1).to(at::kFloat).contiguous();
    op.require(scores.numel() == boxes.size(0), "scores must have one value per box");
    const int64_t most = std::min<int64_t>(op.ints(2).at(0), op.output(0).numel());
    const auto kept = suppress(boxes, scores, most, op.input(3).to(at::kFloat).item<float>(),
                               op.input(4).to(at::kFloat).item<float>(), 0);
    write_indices(op.output(0), kept, 0);
    op.output(1).fill_(static_cast<int64_t>(kept.size()));
}

// NMSWithMask(box_scores [N, 5 or 8] = x1, y1, x2, y2, score, …) -> (boxes and scores [N, 5], index [N] int32,
// mask [N] uint8: 1 = kept), all in the order of the input.
void nms_with_mask(OpCall &op) {
    const at::Tensor rows = op.input(0).to(at::kFloat);
    op.require(rows.dim() == 2 && rows.size(1) >= 5, "box_scores must have shape [N, 5] or [N, 8]");
    const auto kept = suppress(rows.narrow(1, 0, 4).contiguous(), rows.select(1, 4).contiguous(), rows.size(0),
                               static_cast<float>(op.get_float("iou_threshold", 0.5)),
                               -std::numeric_limits<float>::infinity(), 0);
    op.output(0).copy_(rows.narrow(1, 0, 5));
    op.output(1).copy_(at::arange(rows.size(0)));
    op.output(2).zero_();
    for (const int64_t index : kept) {
        op.output(2)[index] = 1;
    }
}

// ---- RoIAlign ----
// roi_end_mode 0: boxes at least one pixel wide and high, no half-pixel shift (aligned=False);
// 2: half-pixel shift (PyTorch's aligned=True). 1 (TensorFlow) and 3 (MMDetection 0.6) have no user here.

struct RoiAlign {
    int64_t height, width, pooled_height, pooled_width, samples;
    float scale;
    bool aligned;
};

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

// Where one box's bins read the feature map: per bin `per_bin` sample points of four corners each.
struct Sampling {
    struct Point {
        int32_t corner[4];
        float weight[4];
    };
    std::vector<Point> points;
    int64_t per_bin = 0;
};

// One coordinate of a sample point: the two neighbouring cells and their weights; false outside the map.
bool interpolate(float at, int64_t length, int64_t cell[2], float weight[2]) {
    if (at < -1.f || at > static_cast<float>(length)) {
        return false;
    }
    at = std::max(at, 0.f);
    cell[0] = static_cast<int64_t>(at);
    if (cell[0] >= length - 1) {
        cell[0] = cell[1] = length - 1;
        at = static_cast<float>(cell[0]);
    } else {
        cell[1] = cell[0] + 1;
    }
    weight[1] = at - static_cast<float>(cell[0]);
    weight[0] = 1.f - weight[1];
    return true;
}

void place_samples(const RoiAlign &g, const float *roi, Sampling &sampling) {
    const float shift = g.aligned ? 0.5f : 0.f;
    const float left = roi[1] * g.scale - shift, top = roi[2] * g.scale - shift;
    float roi_width = roi[3] * g.scale - shift - left, roi_height = roi[4] * g.scale - shift - top;
    if (!g.aligned) {
        roi_width = std::max(roi_width, 1.f);
        roi_height = std::max(roi_height, 1.f);
    }
    const float bin_height = roi_height / static_cast<float>(g.pooled_height);
    const float bin_width = roi_width / static_cast<float>(g.pooled_width);
    const int64_t rows = g.samples > 0 ? g.samples : static_cast<int64_t>(std::ceil(bin_height));
    const int64_t columns = g.samples > 0 ? g.samples : static_cast<int64_t>(std::ceil(bin_width));
    sampling.points.clear();
    sampling.per_bin = std::max<int64_t>(rows, 0) * std::max<int64_t>(columns, 0);
    for (int64_t ph = 0; ph < g.pooled_height; ++ph) {
        for (int64_t pw = 0; pw < g.pooled_width; ++pw) {
            for (int64_t iy = 0; iy < rows; ++iy) {
                const float y = top + static_cast<float>(ph) * bin_height +
                                (static_cast<float>(iy) + .5f) * bin_height / static_cast<float>(rows);
                int64_t row[2];
                float row_weight[2];
                const bool row_inside = interpolate(y, g.height, row, row_weight);
                for (int64_t ix = 0; ix < columns; ++ix) {
                    const float x = left + static_cast<float>(pw) * bin_width +
                                    (static_cast<float>(ix) + .5f) * bin_width / static_cast<float>(columns);
                    int64_t column[2];
                    float column_weight[2];
                    Sampling::Point point = {{0, 0, 0, 0}, {0, 0, 0, 0}};
                    if (row_inside && interpolate(x, g.width, column, column_weight)) {
                        for (int corner = 0; corner < 4; ++corner) {
                            point.corner[corner] = static_cast<int32_t>(row[corner / 2] * g.width + column[corner % 2]);
                            point.weight[corner] = row_weight[corner / 2] * column_weight[corner % 2];
                        }
                    }
                    sampling.points.push_back(point);
                }
            }
        }
    }
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
            const float samples = static_cast<float>(std::max<int64_t>(sampling.per_bin, 1));
            const float *map = in + static_cast<int64_t>(roi[5 * n]) * channels * plane;
            float *bin = out + n * channels * bins;
            for (int64_t c = 0; c < channels; ++c, map += plane) {
                const Sampling::Point *point = sampling.points.data();
                for (int64_t b = 0; b < bins; ++b, ++bin) {
                    float sum = 0.f;
                    for (int64_t s = 0; s < sampling.per_bin; ++s, ++point) {
                        sum += point->weight[0] * map[point->corner[0]] + point->weight[1] * map[point->corner[1]] +
                               point->weight[2] * map[point->corner[2]] + point->weight[3] * map[point->corner[3]];
                    }
                    *bin = sum / samples;
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
    op.require(gradient.scalar_type() == at::kFloat, std::string("ydiff must be float32, not ") + toString(gradient.scalar_type()));
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

}  // namespace

void register_detection_ops() {
    register_op("NMSWithMask", nms_with_mask);
    register_op("NonMaxSuppressionV3", non_max_suppression);
    register_op("NonMaxSuppressionV4", non_max_suppression_v4);
    register_op("ROIAlign", roi_align);
    register_op("ROIAlignGrad", roi_align_grad);
}

}  // namespace cann_sim
