// ACL operators on boxes: overlaps with their gradients, and the box coder of Faster R-CNN.
// Prototypes: CANN's operator IR (nn_detect_ops.h); semantics: its comments, torch_npu's documentation and examples.

#include "pch.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>
#include <algorithm>
#include <cmath>

#include "acl/operators.h"

namespace cann_sim {

namespace {

constexpr double kEpsilon = 1e-9;  // keeps boxes without area from dividing by zero

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

// ---- GIoU, DIoU, CIoU: bboxes [4, N], gtboxes [4, M] -> [M, N] (is_cross) or [1, N] ----
// trans: boxes are centre x, centre y, width, height; otherwise corners x1, y1, x2, y2.
// mode "iof": the intersection's share of the box of gtboxes, in the place of IoU.

enum class Penalty { kGeneralized, kDistance, kComplete };

struct Corners {
    at::Tensor x1, y1, x2, y2, width, height;
};

Corners corners_of(const at::Tensor &boxes, bool trans) {
    const at::Tensor a = boxes.select(0, 0), b = boxes.select(0, 1), c = boxes.select(0, 2), d = boxes.select(0, 3);
    const at::Tensor x1 = trans ? a - c / 2 : a, x2 = trans ? a + c / 2 : c;
    const at::Tensor y1 = trans ? b - d / 2 : b, y2 = trans ? b + d / 2 : d;
    return {x1, y1, x2, y2, x2 - x1, y2 - y1};
}

struct Overlap {
    at::Tensor value, angle;  // angle: difference of the two boxes' atan(width / height), for CIoU
};

Overlap overlap_of(OpCall &op, Penalty penalty, const at::Tensor &bboxes, const at::Tensor &gtboxes) {
    op.require(bboxes.dim() == 2 && bboxes.size(0) == 4 && gtboxes.dim() == 2 && gtboxes.size(0) == 4,
               "bboxes and gtboxes must have shape [4, N]");
    const bool cross = op.get_bool("is_cross", true), trans = op.get_bool("trans", false);
    op.require(cross || bboxes.size(1) == gtboxes.size(1), "is_cross false needs as many bboxes as gtboxes");
    const std::string mode = op.get_string("mode", "iou");
    op.require(mode == "iou" || mode == "iof", "mode must be iou or iof, not " + mode);

    const Corners p = corners_of(bboxes.unsqueeze(1), trans), g = corners_of(gtboxes.unsqueeze(cross ? 2 : 1), trans);
    const at::Tensor intersection = (at::min(p.x2, g.x2) - at::max(p.x1, g.x1)).clamp_min(0) *
                                    (at::min(p.y2, g.y2) - at::max(p.y1, g.y1)).clamp_min(0);
    const at::Tensor truth_area = g.width * g.height, all = p.width * p.height + truth_area - intersection + kEpsilon;
    const at::Tensor share = intersection / (mode == "iou" ? all : truth_area + kEpsilon);
    const at::Tensor hull_width = at::max(p.x2, g.x2) - at::min(p.x1, g.x1);
    const at::Tensor hull_height = at::max(p.y2, g.y2) - at::min(p.y1, g.y1);
    if (penalty == Penalty::kGeneralized) {
        const at::Tensor hull = hull_width * hull_height + kEpsilon;
        return {share - (hull - all) / hull, {}};
    }
    const at::Tensor apart = ((g.x1 + g.x2 - p.x1 - p.x2).square() + (g.y1 + g.y2 - p.y1 - p.y2).square()) / 4;
    const at::Tensor distant = share - apart / (hull_width.square() + hull_height.square() + kEpsilon);
    if (penalty == Penalty::kDistance) {
        return {distant, {}};
    }
    const at::Tensor angle = (g.width / (g.height + kEpsilon)).atan() - (p.width / (p.height + kEpsilon)).atan();
    const at::Tensor aspect = angle.square() * (4 / (M_PI * M_PI));
    // The weight of the aspect term is a constant to the gradient (the definition of the loss).
    const at::Tensor weight = (aspect / (1 - share + aspect + kEpsilon)).detach();
    return {distant - weight * aspect, angle};
}

template <Penalty penalty>
void overlap(OpCall &op) {
    const Overlap result = overlap_of(op, penalty, op.input(0).to(at::kFloat), op.input(1).to(at::kFloat));
    op.output(0).copy_(result.value.view(op.output(0).sizes()));
    if (penalty == Penalty::kComplete) {
        op.output(1).copy_(result.angle.view(op.output(1).sizes()));
    }
}

// (dy, bboxes, gtboxes, …) -> (dbboxes, dgtboxes): the derivative of the overlap, by autograd.
template <Penalty penalty>
void overlap_grad(OpCall &op) {
    // With TASK_QUEUE_ENABLE=0 this runs inside torch_npu's operator, that is below autograd.
    const c10::impl::ForceDispatchKeyGuard from_the_top(c10::default_included_set, c10::default_excluded_set);
    const at::AutoGradMode differentiate(true);
    const at::Tensor bboxes = op.input(1).to(at::kFloat).detach().requires_grad_(true);
    const at::Tensor gtboxes = op.input(2).to(at::kFloat).detach().requires_grad_(true);
    const at::Tensor value = overlap_of(op, penalty, bboxes, gtboxes).value;
    const auto gradients =
        torch::autograd::grad({value}, {bboxes, gtboxes}, {op.input(0).to(at::kFloat).view(value.sizes())});
    op.output(0).copy_(gradients[0]);
    op.output(1).copy_(gradients[1]);
}

// ---- box coder: corners x0, y0, x1, y1 in pixels, both ends included; deltas dx, dy, dw, dh ----

struct Extent {
    at::Tensor x, y, width, height;  // centre and size
};

Extent extent_of(const at::Tensor &boxes) {
    const at::Tensor x0 = boxes.select(1, 0), y0 = boxes.select(1, 1), x1 = boxes.select(1, 2), y1 = boxes.select(1, 3);
    return {(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0 + 1, y1 - y0 + 1};
}

at::Tensor row_of(OpCall &op, const char *attribute, float otherwise) {
    const std::vector<float> values = op.get_floats(attribute);
    return values.empty() ? at::full({4}, otherwise) : at::tensor(values);
}

// BoundingBoxEncode(anchor_box [N, 4], ground_truth_box [N, 4]) -> deltas [N, 4] = (raw - means) / stds
void encode_boxes(OpCall &op) {
    const Extent anchor = extent_of(op.input(0).to(at::kFloat)), truth = extent_of(op.input(1).to(at::kFloat));
    const at::Tensor raw = at::stack({(truth.x - anchor.x) / anchor.width, (truth.y - anchor.y) / anchor.height,
                                      (truth.width / anchor.width).log(), (truth.height / anchor.height).log()},
                                     1);
    op.output(0).copy_((raw - row_of(op, "means", 0)) / row_of(op, "stds", 1));
}

// BoundingBoxDecode(rois [N, 4], deltas [N, 4]) -> boxes [N, 4] within max_shape (height, width);
// dw and dh are limited to |log(wh_ratio_clip)|.
void decode_boxes(OpCall &op) {
    const std::vector<int64_t> shape = op.get_ints("max_shape");
    op.require(shape.size() == 2, "max_shape must be height and width");
    const Extent roi = extent_of(op.input(0).to(at::kFloat));
    const at::Tensor deltas = op.input(1).to(at::kFloat) * row_of(op, "stds", 1) + row_of(op, "means", 0);
    const double most = std::abs(std::log(op.get_float("wh_ratio_clip", 0.016)));
    const at::Tensor width = roi.width * deltas.select(1, 2).clamp(-most, most).exp();
    const at::Tensor height = roi.height * deltas.select(1, 3).clamp(-most, most).exp();
    const at::Tensor x = roi.x + roi.width * deltas.select(1, 0), y = roi.y + roi.height * deltas.select(1, 1);
    const auto inside = [](const at::Tensor &coordinate, int64_t length) { return coordinate.clamp(0, length - 1); };
    op.output(0).copy_(at::stack({inside(x - width / 2 + .5, shape[1]), inside(y - height / 2 + .5, shape[0]),
                                  inside(x + width / 2 - .5, shape[1]), inside(y + height / 2 - .5, shape[0])},
                                 1));
}

// YoloBoxesEncode(anchor_boxes [N, 4], gt_bboxes [N, 4], stride [N]), corners x1, y1, x2, y2 -> (x and y in a cell, from 0 to
// 1, logarithms of the sizes' ratios). mmdetection's YOLOBBoxCoder, whose operator it is; both performance modes.
void encode_yolo_boxes(OpCall &op) {
    constexpr double eps = 1e-6;
    const at::Tensor anchor = floats(op.input(0)), truth = floats(op.input(1)), stride = floats(op.input(2));
    op.require(anchor.dim() == 2 && anchor.size(1) == 4 && truth.sizes() == anchor.sizes(),
               "anchor_boxes and gt_bboxes must have shape [N, 4]");
    op.require(stride.numel() == anchor.size(0), "stride must have one number per box");
    const auto low = [](const at::Tensor &b) { return b.narrow(1, 0, 2); };
    const auto high = [](const at::Tensor &b) { return b.narrow(1, 2, 2); };
    const at::Tensor apart = (low(truth) + high(truth)) / 2 - (low(anchor) + high(anchor)) / 2;
    const at::Tensor ratio = (high(truth) - low(truth)) / (high(anchor) - low(anchor));
    op.output(0).copy_(
        at::cat({(apart / stride.view({-1, 1}) + 0.5).clamp(eps, 1 - eps), ratio.clamp_min(eps).log()}, 1));
}

// AnchorResponseFlags(ground truth [N, 4]) -> [height * width * num_base_anchors], 1 for all anchors of a cell of the feature
// map in which a box has its centre. A centre outside of the map has no cell.
void anchor_response_flags(OpCall &op) {
    const auto size = op.get_ints("featmap_size"), strides = op.get_ints("strides");
    op.require(size.size() == 2 && strides.size() == 2, "featmap_size and strides take two numbers");
    const at::Tensor box = op.input(0).to(at::kFloat);
    const auto cell = [&box](int64_t from, int64_t stride) {
        return ((box.select(1, from) + box.select(1, from + 2)) * .5 / stride).floor().to(at::kLong);
    };
    const at::Tensor x = cell(0, strides[0]), y = cell(1, strides[1]);
    const at::Tensor inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0]);
    at::Tensor grid = at::zeros({size[0] * size[1]}, op.output(0).options());
    grid.index_fill_(0, (y * size[1] + x).masked_select(inside), 1);
    op.output(0).copy_(grid.repeat_interleave(op.get_int("num_base_anchors", 1)));
}

// GridAssignPositive(assigned [N], overlaps [K, N], responsible [N], max_overlaps [N], argmax_overlaps [N],
// gt_max_overlaps [K], gt_argmax_overlaps [K], number of ground truths) -> assigned [N], 1 + the ground truth of a positive
// anchor. mmdetection's GridAssigner, whose operator it is: first every responsible anchor with an overlap above pos_iou_thr,
// then for each ground truth its best responsible anchors from min_pos_iou on.
void grid_assign_positive(OpCall &op) {
    const at::Tensor overlaps = op.input(1).to(at::kFloat), responsible = op.input(2).to(at::kBool);
    at::Tensor assigned = op.input(0).clone();
    const at::Tensor positive = (op.input(3).to(at::kFloat) > op.get_float("pos_iou_thr", 0)) & responsible;
    assigned = at::where(positive, (op.input(4) + 1).to(assigned.scalar_type()), assigned);
    const at::Tensor best = op.input(5).to(at::kFloat), best_at = op.input(6).to(at::kLong);
    const int64_t count = std::min<int64_t>(op.input(7).reshape({}).to(at::kLong).item<int64_t>(), overlaps.size(0));
    for (int64_t k = 0; k < count; ++k) {
        if (best[k].item<float>() <= op.get_float("min_pos_iou", 0)) {
            continue;
        }
        if (op.get_bool("gt_max_assign_all", true)) {
            assigned.masked_fill_((overlaps[k] == best[k]) & responsible, k + 1);
        } else if (responsible[best_at[k].item<int64_t>()].item<bool>()) {
            assigned[best_at[k].item<int64_t>()] = k + 1;
        }
    }
    op.output(0).copy_(assigned);
}

const Registration registered{
    {"AnchorResponseFlags", anchor_response_flags},
    {"GridAssignPositive", grid_assign_positive},
    {"Iou", iou},
    {"GIoU", overlap<Penalty::kGeneralized>},
    {"GIoUGrad", overlap_grad<Penalty::kGeneralized>},
    {"DIoU", overlap<Penalty::kDistance>},
    {"DIoUGrad", overlap_grad<Penalty::kDistance>},
    {"CIoU", overlap<Penalty::kComplete>},
    {"CIoUGrad", overlap_grad<Penalty::kComplete>},
    {"BoundingBoxEncode", encode_boxes},
    {"BoundingBoxDecode", decode_boxes},
    {"YoloBoxesEncode", encode_yolo_boxes},
};

}  // namespace

}  // namespace cann_sim
