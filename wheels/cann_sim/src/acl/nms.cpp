// ACL operators that suppress overlapping boxes. Prototypes and semantics: ops-cv's operator headers
// (image/non_max_suppression_v3).

#include "pch.h"

#include <algorithm>
#include <limits>

#include "acl/operators.h"

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
    const at::Tensor boxes = at::cat({at::min(a, b), at::max(a, b)}, 1),
                     scores = op.input(1).to(at::kFloat).contiguous();
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
    const auto kept =
        suppress(rows.narrow(1, 0, 4).contiguous(), rows.select(1, 4).contiguous(), rows.size(0),
                 static_cast<float>(op.get_float("iou_threshold", 0.5)), -std::numeric_limits<float>::infinity(), 0);
    op.output(0).copy_(rows.narrow(1, 0, 5));
    op.output(1).copy_(at::arange(rows.size(0)));
    op.output(2).zero_();
    for (const int64_t index : kept) {
        op.output(2)[index] = 1;
    }
}

// BatchMultiClassNonMaxSuppression(boxes [B, N, 1 or C, 4], scores [B, N, C]) -> (boxes [B, M, 4], scores [B, M],
// classes [B, M], how many of the M are valid [B]): each class by itself, at most max_size_per_class of it, then the M
// (max_total_size) best of a picture, 0 after the last. What has no area is no box.
void batch_multi_class_nms(OpCall &op) {
    const at::Tensor boxes = floats(op.input(0)), scores = floats(op.input(1));
    op.require(!op.get_bool("transpose_box", false), "transpose_box must be false");
    op.require(!op.get_bool("change_coordinate_frame", false), "change_coordinate_frame needs a clip_window");
    op.require(op.num_inputs() == 2, "clip_window and num_valid_boxes have no user here");
    op.require(boxes.dim() == 4 && boxes.size(3) == 4, "boxes must have shape [B, N, 1 or C, 4]");
    op.require(scores.dim() == 3 && scores.size(0) == boxes.size(0) && scores.size(1) == boxes.size(1) &&
                   (boxes.size(2) == 1 || boxes.size(2) == scores.size(2)),
               "scores must have shape [B, N, C], and boxes be one per class or one for all");
    const auto iou = static_cast<float>(op.get_float("iou_threshold", 0)),
               least = static_cast<float>(op.get_float("score_threshold", 0));
    const int64_t per_class = op.get_int("max_size_per_class", 0), most = op.get_int("max_total_size", 0);
    struct Kept {
        float score;
        int64_t class_index, box;
    };
    for (size_t i = 0; i < op.num_outputs(); ++i) {
        op.output(i).zero_();
    }
    for (int64_t b = 0; b < scores.size(0); ++b) {
        std::vector<Kept> kept;
        const auto boxes_of = [&](int64_t c) { return boxes[b].select(1, boxes.size(2) == 1 ? 0 : c).contiguous(); };
        for (int64_t c = 0; c < scores.size(2); ++c) {
            const at::Tensor own = boxes_of(c), flat = (own.narrow(1, 2, 2) <= own.narrow(1, 0, 2)).any(1);
            const at::Tensor score =
                scores[b].select(1, c).masked_fill(flat, -std::numeric_limits<float>::infinity()).contiguous();
            for (const int64_t box : suppress(own, score, per_class, iou, least, 0)) {
                kept.push_back({score.data_ptr<float>()[box], c, box});
            }
        }
        std::stable_sort(kept.begin(), kept.end(), [](const Kept &x, const Kept &y) { return x.score > y.score; });
        kept.resize(std::min(kept.size(), static_cast<size_t>(most)));
        for (size_t i = 0; i < kept.size(); ++i) {
            const auto row = static_cast<int64_t>(i);
            op.output(0)[b][row].copy_(boxes_of(kept[i].class_index)[kept[i].box]);
            op.output(1)[b][row] = kept[i].score;
            op.output(2)[b][row] = kept[i].class_index;
        }
        op.output(3)[b] = static_cast<int64_t>(kept.size());
    }
}

const Registration registered{
    {"BatchMultiClassNonMaxSuppression", batch_multi_class_nms},
    {"NMSWithMask", nms_with_mask},
    {"NonMaxSuppressionV3", non_max_suppression},
    {"NonMaxSuppressionV4", non_max_suppression_v4},
};

}  // namespace

}  // namespace cann_sim
