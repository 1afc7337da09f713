// ACL operators that CANN has for mmcv. Prototypes, formulas and limits: CANN's operator specifications and the
// READMEs of ops-cv and ops-nn; where those leave something open, the comment says what is assumed. Half precision
// is computed in float32 and rounded once.

#include "compute_pch.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "acl_ops.h"

namespace cann_sim {

namespace {

using at::indexing::Slice;

at::Tensor floats(const at::Tensor &tensor) { return tensor.to(at::kFloat).contiguous(); }

// CANN documents that these operators take no empty tensors.
void require_filled(const OpCall &op) {
    for (size_t i = 0; i < op.num_inputs(); ++i) {
        op.require(op.input(i).defined() && op.input(i).numel() > 0, "input " + std::to_string(i) + " is empty");
    }
}

// ---- boxes ----

// Iou(bboxes [N, 4], gtboxes [M, 4]) -> [M, N]; aligned: ([4, N], [4, N]) -> [N, 1]. eps is added to widths and
// heights, of the intersection too; mode "iof" divides by the area of gtboxes.
void iou(OpCall &op) {
    require_filled(op);
    const float eps = static_cast<float>(op.get_float("eps", 1.0));
    op.require(eps == 0.f || eps == 0.01f || eps == 1.f, "eps must be 0, 0.01 or 1 on Atlas A2 and A3");
    const std::string mode = op.get_string("mode", "iou");
    op.require(mode == "iou" || mode == "iof", "mode must be iou or iof, not " + mode);
    const bool aligned = op.get_bool("aligned", false);
    const int64_t coordinate = aligned ? 0 : 1;
    at::Tensor boxes = floats(op.input(0)), truth = floats(op.input(1));
    op.require(boxes.dim() == 2 && boxes.size(coordinate) == 4, "bboxes must have shape [N, 4], or [4, N] if aligned");
    op.require(truth.dim() == 2 && truth.size(coordinate) == 4, "gtboxes must have shape [M, 4], or [4, M] if aligned");
    boxes = aligned ? boxes.t().unsqueeze(1) : boxes.unsqueeze(0);
    truth = aligned ? truth.t().unsqueeze(1) : truth.unsqueeze(1);
    const auto area = [eps](const at::Tensor &size) { return (size.select(-1, 0) + eps) * (size.select(-1, 1) + eps); };
    const auto corner = [](const at::Tensor &b, int64_t from) { return b.narrow(-1, from, 2); };
    const at::Tensor low = at::max(corner(boxes, 0), corner(truth, 0)),
                     high = at::min(corner(boxes, 2), corner(truth, 2));
    const at::Tensor sides = (high - low + eps).clamp_min(0), overlap = sides.select(-1, 0) * sides.select(-1, 1);
    const at::Tensor own = area(corner(boxes, 2) - corner(boxes, 0)),
                     reference = area(corner(truth, 2) - corner(truth, 0));
    op.output(0).copy_((overlap / (mode == "iou" ? own + reference - overlap : reference)).view(op.output(0).sizes()));
}

// A rotated box's corners. Assumed, as mmcv defines it: y points down, the angle (degrees) turns clockwise.
struct Point {
    double x, y;
};

std::vector<Point> corners(const float *box) {
    const double angle = static_cast<double>(box[4]) * M_PI / 180, cosine = std::cos(angle), sine = std::sin(angle);
    std::vector<Point> result;
    for (const auto &[u, v] : std::array<std::array<double, 2>, 4>{{{-.5, -.5}, {.5, -.5}, {.5, .5}, {-.5, .5}}}) {
        const double x = u * static_cast<double>(box[2]), y = v * static_cast<double>(box[3]);
        result.push_back(
            {static_cast<double>(box[0]) + x * cosine - y * sine, static_cast<double>(box[1]) + x * sine + y * cosine});
    }
    return result;
}

// Intersection over union of two rotated boxes: one polygon clipped at each side of the other.
double rotated_iou(const float *a, const float *b) {
    std::vector<Point> polygon = corners(a);
    const std::vector<Point> clip = corners(b);
    for (size_t side = 0; side < 4 && !polygon.empty(); ++side) {
        const Point from = clip[side], to = clip[(side + 1) % 4];
        const auto inside = [&](const Point &p) {
            return (to.x - from.x) * (p.y - from.y) - (to.y - from.y) * (p.x - from.x);
        };
        std::vector<Point> kept;
        for (size_t i = 0; i < polygon.size(); ++i) {
            const Point p = polygon[i], q = polygon[(i + 1) % polygon.size()];
            const double at_p = inside(p), at_q = inside(q);
            if (at_p >= 0) {
                kept.push_back(p);
            }
            if ((at_p > 0 && at_q < 0) || (at_p < 0 && at_q > 0)) {
                const double t = at_p / (at_p - at_q);
                kept.push_back({p.x + t * (q.x - p.x), p.y + t * (q.y - p.y)});
            }
        }
        polygon = std::move(kept);
    }
    double twice = 0;
    for (size_t i = 0; i < polygon.size(); ++i) {
        const Point p = polygon[i], q = polygon[(i + 1) % polygon.size()];
        twice += p.x * q.y - q.x * p.y;
    }
    const double overlap = std::abs(twice) / 2;
    const double all =
        static_cast<double>(a[2]) * static_cast<double>(a[3]) + static_cast<double>(b[2]) * static_cast<double>(b[3]);
    return all - overlap > 0 ? overlap / (all - overlap) : 0;
}

// RotatedIou(boxes [B, 5, N], query_boxes [B, 5, K]) -> [B, N, K], or [B, N] for is_cross false.
void rotated_iou_matrix(OpCall &op) {
    require_filled(op);
    op.require(op.get_string("mode", "iou") == "iou", "mode supports only iou");
    op.require(!op.get_bool("trans", false), "trans true (x1, y1, x2, y2, angle) has no user here");
    op.require(op.input(0).scalar_type() == at::kFloat && op.input(1).scalar_type() == at::kFloat,
               "boxes must be float32");
    const at::Tensor boxes = op.input(0).transpose(1, 2).contiguous(), query = op.input(1).transpose(1, 2).contiguous();
    const bool cross = op.get_bool("is_cross", true);
    const int64_t batch = boxes.size(0), n = boxes.size(1), k = query.size(1);
    op.require(cross || n == k, "is_cross false needs as many boxes as query boxes");
    op.require(op.output(0).numel() == batch * n * (cross ? k : 1), "iou must have one value per pair");
    float *out = op.output(0).data_ptr<float>();
    for (int64_t b = 0; b < batch; ++b) {
        const float *rows = boxes.data_ptr<float>() + b * n * 5, *columns = query.data_ptr<float>() + b * k * 5;
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = cross ? 0 : i; j < (cross ? k : i + 1); ++j) {
                *out++ = static_cast<float>(rotated_iou(rows + 5 * i, columns + 5 * j));
            }
        }
    }
}

// RotatedNMS(boxes [N, 5] in degrees, scores [N], labels [N]) -> (selected [n, 5], indices [n]), best score first;
// n is known only afterwards. Boxes of different labels do not suppress each other; no labels: all are one class.
void rotated_nms(OpCall &op) {
    op.require(op.input(0).scalar_type() == at::kFloat && op.input(1).scalar_type() == at::kFloat,
               "boxes and scores must be float32");
    op.require(op.input(0).numel() > 0, "boxes is empty");
    const at::Tensor boxes = op.input(0).contiguous(), scores = op.input(1);
    const at::Tensor labels =
        op.input(2).numel() > 0 ? op.input(2).to(at::kLong) : at::zeros({boxes.size(0)}, at::kLong);
    const double threshold = op.get_float("iou_threshold", 0);
    const at::Tensor sorted = std::get<1>(scores.sort(0, /*descending=*/true));
    std::vector<int64_t> kept;
    for (int64_t i = 0; i < boxes.size(0); ++i) {
        const int64_t index = sorted.data_ptr<int64_t>()[i];
        const bool suppressed = std::any_of(kept.begin(), kept.end(), [&](int64_t better) {
            return labels.data_ptr<int64_t>()[better] == labels.data_ptr<int64_t>()[index] &&
                   rotated_iou(boxes.data_ptr<float>() + 5 * better, boxes.data_ptr<float>() + 5 * index) > threshold;
        });
        if (!suppressed) {
            kept.push_back(index);
        }
    }
    const at::Tensor indices = at::tensor(kept, at::kLong);
    op.shrink_output(0, {indices.numel(), 5});
    op.shrink_output(1, {indices.numel()});
    op.output(0).copy_(boxes.index_select(0, indices));
    op.output(1).copy_(indices);
}

// PointsInPolygons(points [N, 2], polygons [8, M]) -> [N, M]: 1 inside a quadrilateral, else 0. On a side: unspecified.
void points_in_polygons(OpCall &op) {
    require_filled(op);
    const at::Tensor &points = op.input(0), &polygons = op.input(1);
    op.require(polygons.dim() == 2 && polygons.size(0) == 8, "polygons must have shape [8, M]");
    const at::Tensor x = points.select(1, 0).unsqueeze(1), y = points.select(1, 1).unsqueeze(1);
    at::Tensor crossings = at::zeros({points.size(0), polygons.size(1)}, at::kInt);
    for (int64_t i = 0; i < 4; ++i) {
        const int64_t j = (i + 1) % 4;
        const at::Tensor x1 = polygons[2 * i], y1 = polygons[2 * i + 1], x2 = polygons[2 * j], y2 = polygons[2 * j + 1];
        const at::Tensor spans = (y1 < y).logical_xor(y2 < y);
        crossings += (spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))).to(at::kInt);
    }
    op.output(0).copy_(crossings.remainder(2));
}

// ---- pooling ----

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

// ---- DeformableRoiPool ----

struct Deformed {
    float y, x, weight;  // where a sample point lies, and its share of the bin
};

// The sample points of bin (i, j) of one roi; `offset` [2, ph, pw] moves the bin by gamma times the roi's size.
std::vector<Deformed> sample_points(const OpCall &op, const float *roi, const float *offset, int64_t ph, int64_t pw,
                                    int64_t i, int64_t j) {
    const float scale = static_cast<float>(op.get_float("spatial_scale", 1)),
                gamma = static_cast<float>(op.get_float("gamma", 0.1));
    const int64_t ratio = op.get_int("sampling_ratio", 0);
    const float width = roi[3] * scale - roi[1] * scale, height = roi[4] * scale - roi[2] * scale;
    const float bin_w = width / static_cast<float>(pw), bin_h = height / static_cast<float>(ph);
    const int64_t rows = ratio > 0 ? ratio : static_cast<int64_t>(std::ceil(bin_h)),
                  columns = ratio > 0 ? ratio : static_cast<int64_t>(std::ceil(bin_w));
    float left = roi[1] * scale - .5f + static_cast<float>(j) * bin_w,
          top = roi[2] * scale - .5f + static_cast<float>(i) * bin_h;
    if (offset != nullptr) {
        left += gamma * width * offset[i * pw + j];
        top += gamma * height * offset[ph * pw + i * pw + j];
    }
    std::vector<Deformed> points;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
            points.push_back({top + (static_cast<float>(r) + .5f) * bin_h / static_cast<float>(rows),
                              left + (static_cast<float>(c) + .5f) * bin_w / static_cast<float>(columns),
                              1.f / static_cast<float>(rows * columns)});
        }
    }
    return points;
}

// The four cells around a point: index and weight, and the weight's derivatives; false outside the map.
struct Cells {
    int64_t index[4];
    float weight[4], by_y[4], by_x[4];
};

bool cells_around(float y, float x, int64_t height, int64_t width, Cells &cells) {
    if (!(y >= -1.f && y <= static_cast<float>(height) && x >= -1.f && x <= static_cast<float>(width))) {
        return false;
    }
    const auto axis = [](float at, int64_t length, int64_t cell[2], float weight[2]) {
        at = std::max(at, 0.f);
        cell[0] = std::min(static_cast<int64_t>(at), length - 1);
        cell[1] = std::min(cell[0] + 1, length - 1);
        weight[1] = cell[0] < length - 1 ? at - static_cast<float>(cell[0]) : 0.f;
        weight[0] = 1.f - weight[1];
        return cell[1] > cell[0];
    };
    int64_t row[2], column[2];
    float row_weight[2], column_weight[2];
    const float moves_y = axis(y, height, row, row_weight) ? 1.f : 0.f,
                moves_x = axis(x, width, column, column_weight) ? 1.f : 0.f;
    for (int k = 0; k < 4; ++k) {
        cells.index[k] = row[k / 2] * width + column[k % 2];
        cells.weight[k] = row_weight[k / 2] * column_weight[k % 2];
        cells.by_y[k] = moves_y * (k / 2 ? 1.f : -1.f) * column_weight[k % 2];
        cells.by_x[k] = moves_x * (k % 2 ? 1.f : -1.f) * row_weight[k / 2];
    }
    return true;
}

// DeformableRoiPool(x, rois, offset) and its gradient share this walk over rois, bins, sample points and channels.
template <typename Visit>
void walk(const OpCall &op, const at::Tensor &x, const at::Tensor &rois, const at::Tensor &offset, Visit visit) {
    const std::vector<int64_t> size = op.get_ints("output_size");
    op.require(size.size() == 2, "output_size must be [height, width]");
    op.require(op.get_int("sampling_ratio", 0) >= 0, "sampling_ratio must not be negative");
    const int64_t ph = size[0], pw = size[1];
    for (int64_t n = 0; n < rois.size(0); ++n) {
        const float *roi = rois.data_ptr<float>() + 5 * n;
        const float *shift = offset.numel() > 0 ? offset.data_ptr<float>() + n * 2 * ph * pw : nullptr;
        for (int64_t i = 0; i < ph; ++i) {
            for (int64_t j = 0; j < pw; ++j) {
                for (const Deformed &point : sample_points(op, roi, shift, ph, pw, i, j)) {
                    Cells cells;
                    if (cells_around(point.y, point.x, x.size(2), x.size(3), cells)) {
                        for (int64_t c = 0; c < x.size(1); ++c) {
                            visit(n, c, i, j, (static_cast<int64_t>(roi[0]) * x.size(1) + c) * x.size(2) * x.size(3),
                                  point.weight, cells, roi[3] - roi[1], roi[4] - roi[2]);
                        }
                    }
                }
            }
        }
    }
}

void deformable_roi_pool(OpCall &op) {
    const at::Tensor x = floats(op.input(0)), rois = floats(op.input(1)), offset = floats(op.input(2));
    at::Tensor y = at::zeros(op.output(0).sizes(), at::kFloat);
    auto out = y.accessor<float, 4>();
    walk(op, x, rois, offset,
         [&](int64_t n, int64_t c, int64_t i, int64_t j, int64_t plane, float share, const Cells &cells, float, float) {
             for (int k = 0; k < 4; ++k) {
                 out[n][c][i][j] += share * cells.weight[k] * x.data_ptr<float>()[plane + cells.index[k]];
             }
         });
    op.output(0).copy_(y);
}

// DeformableRoiPoolGrad(grad, x, rois, offset) -> (gradient of x, gradient of offset); float32 only.
void deformable_roi_pool_grad(OpCall &op) {
    for (size_t i = 0; i < 3; ++i) {
        op.require(op.input(i).scalar_type() == at::kFloat, "input " + std::to_string(i) + " must be float32");
    }
    const at::Tensor grad = op.input(0).contiguous(), x = op.input(1).contiguous(), rois = op.input(2).contiguous(),
                     offset = floats(op.input(3));
    at::Tensor grad_x = at::zeros_like(x), grad_offset = at::zeros(offset.sizes(), at::kFloat);
    const float scale = static_cast<float>(op.get_float("spatial_scale", 1)),
                gamma = static_cast<float>(op.get_float("gamma", 0.1));
    const auto in = grad.accessor<float, 4>();
    walk(op, x, rois, offset,
         [&](int64_t n, int64_t c, int64_t i, int64_t j, int64_t plane, float share, const Cells &cells, float width,
             float height) {
             float by_x = 0, by_y = 0;
             for (int k = 0; k < 4; ++k) {
                 grad_x.data_ptr<float>()[plane + cells.index[k]] += in[n][c][i][j] * share * cells.weight[k];
                 by_x += cells.by_x[k] * x.data_ptr<float>()[plane + cells.index[k]];
                 by_y += cells.by_y[k] * x.data_ptr<float>()[plane + cells.index[k]];
             }
             if (offset.numel() > 0) {
                 auto out = grad_offset.accessor<float, 4>();
                 out[n][0][i][j] += in[n][c][i][j] * share * by_x * gamma * width * scale;
                 out[n][1][i][j] += in[n][c][i][j] * share * by_y * gamma * height * scale;
             }
         });
    op.output(0).copy_(grad_x);
    if (offset.numel() > 0) {
        op.output(1).copy_(grad_offset);
    }
}

// ---- deformable convolution ----
// DeformableOffsets collects what a convolution of stride ksize then reads: x [N, C, H, W], offsets
// [N, 3 * groups * kh * kw, oh, ow] (all x, all y, all masks) -> [N, C, oh * kh, ow * kw]. A cell outside x counts 0.

struct DeformableOffsets {
    at::Tensor x, offsets;
    int64_t kh, kw, stride_h, stride_w, top, left, dilation_h, dilation_w, groups;
    bool channels_last;
};

at::Tensor to_nchw(const at::Tensor &tensor, bool channels_last) {
    return floats(channels_last ? tensor.permute({0, 3, 1, 2}) : tensor);
}

DeformableOffsets deformable_offsets_of(OpCall &op, size_t first) {
    const std::string format = op.get_string("data_format", "NCHW");
    op.require(format == "NCHW" || format == "NHWC", "data_format must be NCHW or NHWC, not " + format);
    op.require(op.get_bool("modulated", true), "modulated supports only true");
    const bool last = format == "NHWC";
    const auto kernel = op.get_ints("ksize"), strides = op.get_ints("strides"), pads = op.get_ints("pads"),
               dilations = op.get_ints("dilations");
    op.require(kernel.size() == 2 && strides.size() == 4 && pads.size() == 4 && dilations.size() == 4,
               "ksize takes 2 numbers, strides, pads and dilations take 4");
    const size_t h = last ? 1 : 2;
    DeformableOffsets d = {to_nchw(op.input(first), last),
                           to_nchw(op.input(first + 1), last),
                           kernel[0],
                           kernel[1],
                           strides[h],
                           strides[h + 1],
                           pads[0],
                           pads[2],
                           dilations[h],
                           dilations[h + 1],
                           op.get_int("deformable_groups", 1),
                           last};
    op.require(d.offsets.size(1) == 3 * d.groups * d.kh * d.kw,
               "offsets must have 3 * deformable_groups * ksize channels");
    const int64_t rows = (d.x.size(2) + pads[0] + pads[1] - (d.dilation_h * (d.kh - 1) + 1)) / d.stride_h + 1;
    const int64_t columns = (d.x.size(3) + pads[2] + pads[3] - (d.dilation_w * (d.kw - 1) + 1)) / d.stride_w + 1;
    op.require(d.offsets.size(2) == rows && d.offsets.size(3) == columns,
               "offsets must have the height and width of the result");
    return d;
}

// One sample of the walk: which channels it is for, where its offset and mask are, which cells it reads.
struct Sample {
    int64_t n, first_channel, last_channel, at_x, at_y, at_mask, row, column;
    float mask;
    Cells cells;  // an index of -1 is outside
};

template <typename Visit>
void walk_offsets(const DeformableOffsets &d, Visit visit) {
    const int64_t height = d.x.size(2), width = d.x.size(3), rows = d.offsets.size(2), columns = d.offsets.size(3);
    const int64_t taps = d.groups * d.kh * d.kw, plane = rows * columns, channels = d.x.size(1) / d.groups;
    const float *offsets = d.offsets.data_ptr<float>();
    for (int64_t n = 0; n < d.x.size(0); ++n) {
        for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t group = tap / (d.kh * d.kw), i = tap / d.kw % d.kh, j = tap % d.kw;
            for (int64_t cell = 0; cell < plane; ++cell) {
                const int64_t oh = cell / columns, ow = cell % columns, first = n * 3 * taps * plane + cell;
                Sample s{n,
                         group * channels,
                         (group + 1) * channels,
                         first + tap * plane,
                         first + (taps + tap) * plane,
                         first + (2 * taps + tap) * plane,
                         oh * d.kh + i,
                         ow * d.kw + j,
                         0,
                         {}};
                s.mask = offsets[s.at_mask];
                const float y = static_cast<float>(oh * d.stride_h - d.top + i * d.dilation_h) + offsets[s.at_y];
                const float x = static_cast<float>(ow * d.stride_w - d.left + j * d.dilation_w) + offsets[s.at_x];
                const float y0 = std::floor(y), x0 = std::floor(x);
                for (int k = 0; k < 4; ++k) {
                    const int64_t row = static_cast<int64_t>(y0) + k / 2, column = static_cast<int64_t>(x0) + k % 2;
                    const bool inside = row >= 0 && row < height && column >= 0 && column < width;
                    const float weight_y = k / 2 ? y - y0 : y0 + 1 - y, weight_x = k % 2 ? x - x0 : x0 + 1 - x;
                    s.cells.index[k] = inside ? row * width + column : -1;
                    s.cells.weight[k] = weight_y * weight_x;
                    s.cells.by_y[k] = (k / 2 ? 1.f : -1.f) * weight_x;
                    s.cells.by_x[k] = (k % 2 ? 1.f : -1.f) * weight_y;
                }
                visit(s);
            }
        }
    }
}

void deformable_offsets(OpCall &op) {
    const DeformableOffsets d = deformable_offsets_of(op, 0);
    const int64_t plane = d.x.size(2) * d.x.size(3);
    at::Tensor y =
        at::zeros({d.x.size(0), d.x.size(1), d.offsets.size(2) * d.kh, d.offsets.size(3) * d.kw}, at::kFloat);
    auto out = y.accessor<float, 4>();
    walk_offsets(d, [&](const Sample &s) {
        for (int64_t c = s.first_channel; c < s.last_channel; ++c) {
            const float *in = d.x.data_ptr<float>() + (s.n * d.x.size(1) + c) * plane;
            for (int k = 0; k < 4; ++k) {
                out[s.n][c][s.row][s.column] +=
                    s.cells.index[k] < 0 ? 0 : s.mask * s.cells.weight[k] * in[s.cells.index[k]];
            }
        }
    });
    op.output(0).copy_(d.channels_last ? y.permute({0, 2, 3, 1}) : y);
}

// DeformableOffsetsGrad(grad, x, offsets) -> (gradient of x, gradient of offsets and masks)
void deformable_offsets_grad(OpCall &op) {
    const DeformableOffsets d = deformable_offsets_of(op, 1);
    const int64_t plane = d.x.size(2) * d.x.size(3);
    const at::Tensor grad = to_nchw(op.input(0), d.channels_last);
    at::Tensor grad_x = at::zeros_like(d.x), grad_offsets = at::zeros_like(d.offsets);
    const auto in = grad.accessor<float, 4>();
    walk_offsets(d, [&](const Sample &s) {
        for (int64_t c = s.first_channel; c < s.last_channel; ++c) {
            const int64_t first = (s.n * d.x.size(1) + c) * plane;
            const float upstream = in[s.n][c][s.row][s.column];
            for (int k = 0; k < 4; ++k) {
                if (s.cells.index[k] >= 0) {
                    const float value = d.x.data_ptr<float>()[first + s.cells.index[k]];
                    grad_x.data_ptr<float>()[first + s.cells.index[k]] += upstream * s.mask * s.cells.weight[k];
                    grad_offsets.data_ptr<float>()[s.at_x] += upstream * s.mask * s.cells.by_x[k] * value;
                    grad_offsets.data_ptr<float>()[s.at_y] += upstream * s.mask * s.cells.by_y[k] * value;
                    grad_offsets.data_ptr<float>()[s.at_mask] += upstream * s.cells.weight[k] * value;
                }
            }
        }
    });
    op.output(0).copy_(d.channels_last ? grad_x.permute({0, 2, 3, 1}) : grad_x);
    op.output(1).copy_(d.channels_last ? grad_offsets.permute({0, 2, 3, 1}) : grad_offsets);
}

// The convolution over those samples. torch_npu's own convolution comes as an aten operator and not this way.
struct Convolution {
    std::vector<int64_t> strides, pads, dilations;
    int64_t groups;
};

Convolution convolution_of(OpCall &op) {
    op.require(op.get_string("data_format", "NCHW") == "NCHW", "data_format must be NCHW here");
    const auto strides = op.get_ints("strides"), pads = op.get_ints("pads"), dilations = op.get_ints("dilations");
    op.require(strides.size() == 4 && pads.size() == 4 && dilations.size() == 4,
               "strides, pads and dilations take 4 numbers");
    op.require(pads[0] == pads[1] && pads[2] == pads[3], "pads must be the same on both sides here");
    return {{strides[2], strides[3]}, {pads[0], pads[2]}, {dilations[2], dilations[3]}, op.get_int("groups", 1)};
}

// Conv2D(x, filter, bias or nothing)
void convolution(OpCall &op) {
    const Convolution c = convolution_of(op);
    const bool biased = op.num_inputs() > 2 && op.input(2).defined();
    const std::optional<at::Tensor> bias = biased ? std::optional<at::Tensor>(floats(op.input(2))) : std::nullopt;
    op.output(0).copy_(
        at::conv2d(floats(op.input(0)), floats(op.input(1)), bias, c.strides, c.pads, c.dilations, c.groups));
}

at::Tensor convolution_gradient(OpCall &op, const at::Tensor &x, const at::Tensor &filter, bool of_filter) {
    const Convolution c = convolution_of(op);
    const auto gradients =
        at::convolution_backward(floats(op.input(2)), floats(x), floats(filter), std::nullopt, c.strides, c.pads,
                                 c.dilations, false, {0, 0}, c.groups, {!of_filter, of_filter, false});
    return of_filter ? std::get<1>(gradients) : std::get<0>(gradients);
}

// Conv2DBackpropInput(input_size, filter, gradient), Conv2DBackpropFilter(x, filter_size, gradient)
void convolution_input_gradient(OpCall &op) {
    op.output(0).copy_(convolution_gradient(op, at::zeros(op.output(0).sizes()), op.input(1), false));
}

void convolution_filter_gradient(OpCall &op) {
    op.output(0).copy_(convolution_gradient(op, op.input(0), at::zeros(op.output(0).sizes()), true));
}

// ---- losses ----
// `target` is one-hot (of SigmoidFocalLossGrad: its complement) and int32, `weight` per element; no reduction here.

struct Focal {
    at::Tensor pred, target, weight;
    float gamma, alpha;
};

Focal focal(OpCall &op, size_t weight) {
    require_filled(op);
    const at::Tensor &pred = op.input(0), &target = op.input(1);
    op.require(op.get_string("reduction", "mean") == "none", "reduction must be none here");
    op.require(target.scalar_type() == at::kInt,
               std::string("target must be int32, not ") + toString(target.scalar_type()));
    op.require(pred.dim() == 2 && target.sizes() == pred.sizes(), "pred and target must be matrices of one shape");
    op.require(op.input(weight).sizes() == pred.sizes(), "weight must have the shape of pred");
    return {floats(pred), floats(target), floats(op.input(weight)), static_cast<float>(op.get_float("gamma", 2)),
            static_cast<float>(op.get_float("alpha", 0.25))};
}

void sigmoid_focal_loss(OpCall &op) {
    const Focal f = focal(op, 2);
    const at::Tensor p = f.pred.sigmoid(), tiny = at::full({}, std::numeric_limits<float>::min());
    const at::Tensor positive = -f.alpha * (1 - p).pow(f.gamma) * at::maximum(p, tiny).log();
    const at::Tensor negative = -(1 - f.alpha) * p.pow(f.gamma) * at::maximum(1 - p, tiny).log();
    op.output(0).copy_((f.target * positive + (1 - f.target) * negative) * f.weight);
}

// SigmoidFocalLossGrad(pred, complement of target, dout, weight)
void sigmoid_focal_loss_grad(OpCall &op) {
    const Focal f = focal(op, 3);
    const at::Tensor p = f.pred.sigmoid(), q = 1 - p, tiny = at::full({}, std::numeric_limits<float>::min());
    const at::Tensor positive =
        f.alpha * (f.gamma * p * q.pow(f.gamma) * at::maximum(p, tiny).log() - q.pow(f.gamma + 1));
    const at::Tensor negative =
        (1 - f.alpha) * (p.pow(f.gamma + 1) - f.gamma * p.pow(f.gamma) * q * at::maximum(q, tiny).log());
    op.output(0).copy_((positive * (1 - f.target) + negative * f.target) * floats(op.input(2)) * f.weight);
}

// SoftmaxFocalLoss(pred after softmax, target, weight) -> the shape of pred, every element of a row that row's loss.
void softmax_focal_loss(OpCall &op) {
    const Focal f = focal(op, 2);
    const at::Tensor entropy = (-f.pred.log() * f.target * f.weight).sum(-1, true);
    const at::Tensor factor = (f.alpha * (1 - f.pred).pow(f.gamma) * f.target).sum(-1, true);
    op.output(0).copy_((entropy * factor).expand_as(f.pred));
}

// SoftmaxFocalLossGrad(pred after softmax, target, dout, weight): with respect to what went into the softmax.
void softmax_focal_loss_grad(OpCall &op) {
    const Focal f = focal(op, 3);
    const at::Tensor p = (f.pred * f.target).sum(-1, true), weight = (f.weight * f.target).sum(-1, true);
    const at::Tensor slope = f.alpha * (f.gamma * (1 - p).pow(f.gamma - 1) * p * p.log() - (1 - p).pow(f.gamma));
    op.output(0).copy_(slope * weight * (f.target - f.pred) * floats(op.input(2)));
}

// ---- the rest ----

void fused_bias_leaky_relu(OpCall &op) {
    const at::Tensor x = floats(op.input(0)) + floats(op.input(1));
    op.output(0).copy_(at::leaky_relu(x, op.get_float("negative_slope", 0.2)) * op.get_float("scale", 1.414213562373));
}

// FusedBiasLeakyReluGrad(y_grad, features)
void fused_bias_leaky_relu_grad(OpCall &op) {
    const double slope = op.get_float("negative_slope", 0.2), scale = op.get_float("scale", 1.414213562373);
    const at::Tensor gradient = floats(op.input(0)) * scale;
    op.output(0).copy_(at::where(op.input(1) > 0, gradient, gradient * slope));
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

// PSAMask: mask [n, hm * wm, h, w] <-> map [n, h * w, h, w]. Assumed, as mmcv calls it: psa_type 0 collects, 1
// distributes (the specification says 1 and 2). `visit` gets the flat indices of mask and map that belong together.
template <typename Visit>
void walk_psa(const OpCall &op, Visit visit) {
    const int64_t type = op.get_int("psa_type", 0), num = op.get_int("num", 0), h = op.get_int("h_feature", 0),
                  w = op.get_int("w_feature", 0);
    const int64_t hm = op.get_int("h_mask", 0), wm = op.get_int("w_mask", 0), half_h = op.get_int("half_h_mask", 0),
                  half_w = op.get_int("half_w_mask", 0);
    op.require(type == 0 || type == 1, "psa_type must be 0 or 1, not " + std::to_string(type));
    for (int64_t n = 0; n < num; ++n) {
        for (int64_t y = 0; y < h; ++y) {
            for (int64_t x = 0; x < w; ++x) {
                for (int64_t my = std::max<int64_t>(0, half_h - y); my < std::min(hm, h + half_h - y); ++my) {
                    for (int64_t mx = std::max<int64_t>(0, half_w - x); mx < std::min(wm, w + half_w - x); ++mx) {
                        const int64_t here = y * w + x, there = (y + my - half_h) * w + x + mx - half_w;
                        const int64_t row = type == 0 ? there : here, column = type == 0 ? here : there;
                        visit(((n * hm + my) * wm + mx) * h * w + here, (n * h * w + row) * h * w + column);
                    }
                }
            }
        }
    }
}

void psa_mask(OpCall &op) {
    require_filled(op);
    const at::Tensor mask = floats(op.input(0));
    at::Tensor map = at::zeros(op.output(0).sizes(), at::kFloat);
    walk_psa(op, [&](int64_t in, int64_t out) { map.data_ptr<float>()[out] = mask.data_ptr<float>()[in]; });
    op.output(0).copy_(map);
}

void psa_mask_grad(OpCall &op) {
    require_filled(op);
    const at::Tensor map = floats(op.input(0));
    at::Tensor mask = at::zeros(op.output(0).sizes(), at::kFloat);
    walk_psa(op, [&](int64_t out, int64_t in) { mask.data_ptr<float>()[out] = map.data_ptr<float>()[in]; });
    op.output(0).copy_(mask);
}

// Voxelization(points [M, C], voxel_size [3], coors_range [6])
//   -> (voxels [V, max_points, C], coors [V, 3], num_points_per_voxel [V], voxel_num). Voxels in the order of their
// first points; coors assumed as mmcv's: z, y, x.
void voxelization(OpCall &op) {
    require_filled(op);
    op.require(op.get_bool("deterministic", true), "deterministic supports only true");
    const at::Tensor points = floats(op.input(0)), size = floats(op.input(1)), range = floats(op.input(2));
    const int64_t max_points = op.get_int("max_points", 35), max_voxels = op.get_int("max_voxels", 20000);
    at::Tensor &voxels = op.output(0), &coors = op.output(1), &counts = op.output(2);
    voxels.zero_(), coors.zero_(), counts.zero_();
    std::map<std::array<int, 3>, int64_t> seen;
    for (int64_t p = 0; p < points.size(0); ++p) {
        std::array<int, 3> cell{};
        bool inside = true;
        for (int64_t d = 0; d < 3; ++d) {
            const float step = size.data_ptr<float>()[d], low = range.data_ptr<float>()[d],
                        high = range.data_ptr<float>()[d + 3];
            const int at = static_cast<int>(std::floor((points[p][d].item<float>() - low) / step));
            inside = inside && at >= 0 && at < static_cast<int>(std::round((high - low) / step));
            cell[static_cast<size_t>(2 - d)] = at;
        }
        if (!inside || (seen.count(cell) == 0 && static_cast<int64_t>(seen.size()) >= max_voxels)) {
            continue;
        }
        const int64_t voxel = seen.emplace(cell, static_cast<int64_t>(seen.size())).first->second;
        coors[voxel].copy_(at::tensor({cell[0], cell[1], cell[2]}, at::kInt));
        const int count = counts[voxel].item<int>();
        if (count < max_points) {
            voxels[voxel][count].copy_(points[p]);
            counts[voxel] += 1;
        }
    }
    op.output(3).fill_(static_cast<int64_t>(seen.size()));
}

}  // namespace

void register_mmcv_ops() {
    register_op("Iou", iou);
    register_op("RotatedIou", rotated_iou_matrix);
    register_op("RotatedNMS", rotated_nms);
    register_op("PointsInPolygons", points_in_polygons);
    register_op("RoiPoolingWithArgMax", roi_pooling);
    register_op("RoiPoolingGradWithArgMax", roi_pooling_grad);
    register_op("DeformableRoiPool", deformable_roi_pool);
    register_op("DeformableRoiPoolGrad", deformable_roi_pool_grad);
    register_op("DeformableOffsets", deformable_offsets);
    register_op("DeformableOffsetsGrad", deformable_offsets_grad);
    register_op("Conv2D", convolution);
    register_op("Conv2DBackpropInput", convolution_input_gradient);
    register_op("Conv2DBackpropFilter", convolution_filter_gradient);
    register_op("SigmoidFocalLoss", sigmoid_focal_loss);
    register_op("SigmoidFocalLossGrad", sigmoid_focal_loss_grad);
    register_op("SoftmaxFocalLoss", softmax_focal_loss);
    register_op("SoftmaxFocalLossGrad", softmax_focal_loss_grad);
    register_op("FusedBiasLeakyRelu", fused_bias_leaky_relu);
    register_op("FusedBiasLeakyReluGrad", fused_bias_leaky_relu_grad);
    register_op("ActiveRotatedFilter", active_rotated_filter);
    register_op("ActiveRotatedFilterGrad", active_rotated_filter_grad);
    register_op("PSAMask", psa_mask);
    register_op("PSAMaskGrad", psa_mask_grad);
    register_op("Voxelization", voxelization);
}

}  // namespace cann_sim
