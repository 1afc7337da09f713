// ACL operators on rotated boxes and on polygons.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "acl/operators.h"

namespace cann_sim {

namespace {

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

// The area that two rotated boxes share: one polygon clipped at each side of the other.
double rotated_overlap(const float *a, const float *b) {
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
    return std::abs(twice) / 2;
}

double rotated_iou(const float *a, const float *b) {
    const double overlap = rotated_overlap(a, b);
    const double all =
        static_cast<double>(a[2]) * static_cast<double>(a[3]) + static_cast<double>(b[2]) * static_cast<double>(b[3]);
    return all - overlap > 0 ? overlap / (all - overlap) : 0;
}

// What `measure` says of each pair of boxes [B, 5, N] and query_boxes [B, 5, K]: [B, N, K], or [B, N] for is_cross false.
void write_pairs(OpCall &op, double (*measure)(const float *, const float *)) {
    require_filled(op);
    op.require(!op.get_bool("trans", false), "trans true (x1, y1, x2, y2, angle) has no user here");
    op.require(op.input(0).scalar_type() == at::kFloat && op.input(1).scalar_type() == at::kFloat,
               "boxes must be float32");
    for (size_t i = 0; i < 2; ++i) {
        op.require(op.input(i).dim() == 3 && op.input(i).size(1) == 5, "boxes must have shape [B, 5, N]");
    }
    const at::Tensor boxes = op.input(0).transpose(1, 2).contiguous(), query = op.input(1).transpose(1, 2).contiguous();
    const bool cross = op.get_bool("is_cross", true);
    const int64_t batch = boxes.size(0), n = boxes.size(1), k = query.size(1);
    op.require(query.size(0) == batch, "boxes and query boxes must have as many batches");
    op.require(cross || n == k, "is_cross false needs as many boxes as query boxes");
    op.require(op.output(0).numel() == batch * n * (cross ? k : 1), "the result must have one value per pair");
    float *out = op.output(0).data_ptr<float>();
    for (int64_t b = 0; b < batch; ++b) {
        const float *rows = boxes.data_ptr<float>() + b * n * 5, *columns = query.data_ptr<float>() + b * k * 5;
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t j = cross ? 0 : i; j < (cross ? k : i + 1); ++j) {
                *out++ = static_cast<float>(measure(rows + 5 * i, columns + 5 * j));
            }
        }
    }
}

// RotatedIou(boxes, query_boxes)
void rotated_iou_matrix(OpCall &op) {
    op.require(op.get_string("mode", "iou") == "iou", "mode supports only iou");
    write_pairs(op, rotated_iou);
}

// RotatedOverlaps(boxes, query_boxes): the areas
void rotated_overlaps(OpCall &op) { write_pairs(op, rotated_overlap); }

// ---- coder of rotated boxes: [B, 5, N] as corners x0, y0, x1, y1 before the turn, and an angle in degrees ----

struct Turned {
    at::Tensor x, y, width, height, slope;  // centre, size (at least 1), tangent of the angle
};

Turned turned(const OpCall &op, size_t index) {
    const at::Tensor boxes = floats(op.input(index));
    op.require(boxes.dim() == 3 && boxes.size(1) == 5, "boxes must have shape [B, 5, N]");
    const at::Tensor x = boxes.select(1, 0), y = boxes.select(1, 1);
    const at::Tensor width = (boxes.select(1, 2) - x).clamp_min(1), height = (boxes.select(1, 3) - y).clamp_min(1);
    return {x + width / 2, y + height / 2, width, height, boxes.select(1, 4).deg2rad().tan()};
}

at::Tensor weights_of(const OpCall &op) {
    const std::vector<float> weights = op.get_floats("weight");
    op.require(weights.empty() || weights.size() == 5, "weight must have five numbers");
    return (weights.empty() ? at::ones({5}) : at::tensor(weights)).view({1, 5, 1});
}

// RotatedBoxEncode(anchor_box, gt_box) -> (dx, dy, dw, dh, difference of the angles' tangents) times weight
void encode_rotated(OpCall &op) {
    op.require(op.input(0).sizes() == op.input(1).sizes(), "both boxes must have one shape");
    const Turned anchor = turned(op, 0), truth = turned(op, 1);
    const at::Tensor deltas = at::stack(
        {(truth.x - anchor.x) / anchor.width, (truth.y - anchor.y) / anchor.height, (truth.width / anchor.width).log(),
         (truth.height / anchor.height).log(), truth.slope - anchor.slope},
        1);
    op.output(0).copy_(deltas * weights_of(op));
}

// RotatedBoxDecode(anchor_box, deltas) -> boxes; the angle lies between -90 and 90.
void decode_rotated(OpCall &op) {
    op.require(op.input(0).sizes() == op.input(1).sizes(), "anchor_box and deltas must have one shape");
    const Turned anchor = turned(op, 0);
    const at::Tensor deltas = floats(op.input(1)) / weights_of(op);
    const at::Tensor x = anchor.x + deltas.select(1, 0) * anchor.width,
                     y = anchor.y + deltas.select(1, 1) * anchor.height;
    const at::Tensor width = deltas.select(1, 2).exp() * anchor.width / 2,
                     height = deltas.select(1, 3).exp() * anchor.height / 2;
    const at::Tensor angle = (anchor.slope + deltas.select(1, 4)).atan().rad2deg();
    op.output(0).copy_(at::stack({x - width, y - height, x + width, y + height, angle}, 1));
}

// RotatedNMS(boxes [N, 5] in degrees, scores [N], labels [N]) -> (selected [n, 5], indices [n]), best score first;
// n is known only afterwards. Labels do not separate boxes: mmcv's test of it, which runs on cards, says so.
void rotated_nms(OpCall &op) {
    op.require(op.input(0).scalar_type() == at::kFloat && op.input(1).scalar_type() == at::kFloat,
               "boxes and scores must be float32");
    op.require(op.input(0).numel() > 0, "boxes is empty");
    const at::Tensor boxes = op.input(0).contiguous(), scores = op.input(1);
    const double threshold = op.get_float("iou_threshold", 0);
    const at::Tensor sorted = std::get<1>(scores.sort(0, /*descending=*/true));
    std::vector<int64_t> kept;
    for (int64_t i = 0; i < boxes.size(0); ++i) {
        const int64_t index = sorted.data_ptr<int64_t>()[i];
        const bool suppressed = std::any_of(kept.begin(), kept.end(), [&](int64_t better) {
            return rotated_iou(boxes.data_ptr<float>() + 5 * better, boxes.data_ptr<float>() + 5 * index) > threshold;
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

// PointsInPolygons(points [N, 2], polygons [8, M]) -> [N, M]: 1 inside a quadrilateral, else 0; on a side or a corner, as
// mmcv's test of it expects, 0.
void points_in_polygons(OpCall &op) {
    require_filled(op);
    const at::Tensor &points = op.input(0), &polygons = op.input(1);
    op.require(polygons.dim() == 2 && polygons.size(0) == 8, "polygons must have shape [8, M]");
    const at::Tensor x = points.select(1, 0).unsqueeze(1), y = points.select(1, 1).unsqueeze(1);
    at::Tensor crossings = at::zeros({points.size(0), polygons.size(1)}, at::kInt);
    at::Tensor on_side = crossings.to(at::kBool);
    for (int64_t i = 0; i < 4; ++i) {
        const int64_t j = (i + 1) % 4;
        const at::Tensor x1 = polygons[2 * i], y1 = polygons[2 * i + 1], x2 = polygons[2 * j], y2 = polygons[2 * j + 1];
        const at::Tensor spans = (y1 < y).logical_xor(y2 < y);
        crossings += (spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))).to(at::kInt);
        // In line with both corners, and between them.
        const at::Tensor across = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1);
        const at::Tensor along = (x - x1) * (x - x2) + (y - y1) * (y - y2);
        on_side.logical_or_((across == 0) & (along <= 0));
    }
    op.output(0).copy_(crossings.remainder(2).masked_fill_(on_side, 0));
}

const Registration registered{
    {"RotatedBoxDecode", decode_rotated}, {"RotatedBoxEncode", encode_rotated},
    {"RotatedIou", rotated_iou_matrix},   {"RotatedOverlaps", rotated_overlaps},
    {"RotatedNMS", rotated_nms},          {"PointsInPolygons", points_in_polygons},
};

}  // namespace

}  // namespace cann_sim
