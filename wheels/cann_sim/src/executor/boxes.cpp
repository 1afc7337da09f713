// NonMaxSuppression.

#include "pch.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

struct Box {
    float y1, x1, y2, x2;
};

// From two corners in any order, or from the middle: x, y, width, height.
Box box_of(const float *numbers, bool center) {
    if (center) {
        const float width = numbers[2] / 2, height = numbers[3] / 2;
        return {numbers[1] - height, numbers[0] - width, numbers[1] + height, numbers[0] + width};
    }
    return {std::min(numbers[0], numbers[2]), std::min(numbers[1], numbers[3]), std::max(numbers[0], numbers[2]),
            std::max(numbers[1], numbers[3])};
}

bool overlap(const Box &a, const Box &b, float threshold) {
    const float height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1),
                width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1);
    if (!(height > 0 && width > 0)) {
        return false;
    }
    const float area_a = (a.y2 - a.y1) * (a.x2 - a.x1), area_b = (b.y2 - b.y1) * (b.x2 - b.x1);
    const float both = height * width, either = area_a + area_b - both;
    return area_a > 0 && area_b > 0 && either > 0 && both / either > threshold;
}

// boxes [B, N, 4], scores [B, C, N], and at most so many per class, IoU and score thresholds -> [n, 3]: picture, class,
// box. A static shape has room for the most; rows without a box are -1.
void non_max_suppression(Call &call) {
    const at::Tensor boxes = call.input(0).contiguous(), scores = call.input(1).contiguous();
    call.require(boxes.dim() == 3 && boxes.size(2) == 4 && scores.dim() == 3 && scores.size(0) == boxes.size(0) &&
                     scores.size(2) == boxes.size(1),
                 "boxes must be [B, N, 4] and scores [B, C, N]");
    const auto most = call.has(2) ? static_cast<int64_t>(call.number(2)) : 0;
    const auto iou = static_cast<float>(call.has(3) ? call.number(3) : 0);
    const auto least = static_cast<float>(call.has(4) ? call.number(4) : -std::numeric_limits<double>::infinity());
    const bool center = call.integer("center_point_box", 0) != 0;
    const int64_t count = boxes.size(1), classes = scores.size(1);
    std::vector<int64_t> chosen;
    std::vector<Box> kept;
    for (int64_t row = 0; row < scores.size(0) * classes; ++row) {
        const float *score = scores.const_data_ptr<float>() + row * count;
        const float *box = boxes.const_data_ptr<float>() + row / classes * count * 4;
        std::vector<int64_t> order;
        for (int64_t i = 0; i < count; ++i) {
            if (score[i] > least) {
                order.push_back(i);
            }
        }
        std::stable_sort(order.begin(), order.end(), [score](int64_t a, int64_t b) { return score[a] > score[b]; });
        kept.clear();
        for (const int64_t i : order) {
            if (static_cast<int64_t>(kept.size()) >= most) {
                break;
            }
            const Box candidate = box_of(box + 4 * i, center);
            if (std::none_of(kept.begin(), kept.end(),
                             [&](const Box &other) { return overlap(candidate, other, iou); })) {
                kept.push_back(candidate);
                chosen.insert(chosen.end(), {row / classes, row % classes, i});
            }
        }
    }
    const int64_t room = call.result().shape.at(0), found = static_cast<int64_t>(chosen.size()) / 3;
    at::Tensor result = at::full({room, 3}, -1, at::kLong);
    std::copy_n(chosen.begin(), 3 * std::min(room, found), result.mutable_data_ptr<int64_t>());
    call.output(result);
}

const Registration registered{{"NonMaxSuppression", non_max_suppression}};

}  // namespace

}  // namespace cann_sim::executor
