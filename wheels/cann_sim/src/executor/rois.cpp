// Pooling of regions: ONNX's RoiAlign and RoiExtractor, which ATC registers on top of ONNX.

#include "pch.h"

#include <cmath>

#include "acl/roi_samples.h"
#include "executor/operations.h"
#include "executor/parallel.h"

namespace cann_sim::executor {

namespace {

// One level of features with its geometry.
struct Level {
    at::Tensor features;  // [B, C, H, W]
    RoiAlign geometry;
};

// boxes [N, 5] (picture, x1, y1, x2, y2), each on its level -> [N, C, height, width]
at::Tensor pool(Call &call, const std::vector<Level> &levels, const std::vector<int64_t> &level_of,
                const at::Tensor &boxes) {
    const int64_t count = boxes.size(0), channels = levels.at(0).features.size(1);
    const int64_t height = levels[0].geometry.pooled_height, width = levels[0].geometry.pooled_width;
    call.require(height > 0 && width > 0, "the pooled size must be positive");
    const float *box = boxes.const_data_ptr<float>();
    for (int64_t n = 0; n < count; ++n) {
        const Level &level = levels[static_cast<size_t>(level_of[static_cast<size_t>(n)])];
        call.require(box[5 * n] >= 0 && box[5 * n] < static_cast<float>(level.features.size(0)),
                     "a box is of a picture that does not exist");
    }
    const at::Tensor result = at::empty({count, channels, height, width}, at::kFloat);
    float *out = result.mutable_data_ptr<float>();
    in_parallel(count, [&, out](int64_t first, int64_t last) {
        Sampling sampling;
        for (int64_t n = first; n < last; ++n) {
            const Level &level = levels[static_cast<size_t>(level_of[static_cast<size_t>(n)])];
            const int64_t plane = level.geometry.height * level.geometry.width;
            place_samples(level.geometry, box + 5 * n, sampling);
            const float *map =
                level.features.const_data_ptr<float>() + static_cast<int64_t>(box[5 * n]) * channels * plane;
            float *bin = out + n * channels * height * width;
            for (int64_t c = 0; c < channels; ++c, map += plane) {
                const Sampling::Point *point = sampling.points.data();
                for (int64_t b = 0; b < height * width; ++b, ++bin, point += sampling.per_bin) {
                    *bin = mean_of_samples(sampling, point, map);
                }
            }
        }
    });
    return result;
}

Level level_of(Call &call, const at::Tensor &features, int64_t height, int64_t width, int64_t samples, double scale,
               bool aligned) {
    call.require(features.dim() == 4, "features must have 4 dimensions");
    return {features.contiguous(),
            {features.size(2), features.size(3), height, width, samples, static_cast<float>(scale), aligned}};
}

// RoiAlign(X, rois [N, 4], batch_indices [N]); half pixels are from opset 16 on, and the default there.
void roi_align(Call &call) {
    const std::string mode = call.text("mode", "avg");
    call.require(mode == "avg", "mode " + mode + " is not simulated");
    const std::string coordinates =
        call.text("coordinate_transformation_mode", call.opset() < 16 ? "output_half_pixel" : "half_pixel");
    const Level level =
        level_of(call, call.input(0), call.integer("output_height", 1), call.integer("output_width", 1),
                 call.integer("sampling_ratio", 0), call.number("spatial_scale", 1), coordinates == "half_pixel");
    const at::Tensor boxes = at::cat({call.raw(2).to(at::kFloat).unsqueeze(1), call.input(1)}, 1).contiguous();
    call.require(boxes.dim() == 2 && boxes.size(1) == 5, "rois must be [N, 4]");
    call.output(pool(call, {level}, std::vector<int64_t>(static_cast<size_t>(boxes.size(0))), boxes));
}

// RoiExtractor(features by level …, rois [N, 5]): MMDetection's SingleRoIExtractor in one operator. A box goes to level
// floor(log2(sqrt(w h) / finest_scale + 1e-6)), within the levels there are; roi_scale_factor, if it is not 0, widens it
// around its middle before it is pooled.
void roi_extractor(Call &call) {
    call.require(call.num_inputs() >= 2, "it needs features and rois");
    // An index, of the order in which a card pools, may follow the rois; it changes no result.
    size_t last = call.num_inputs() - 1;
    while (last > 1 && (!call.has(last) || call.raw(last).dim() == 1)) {
        --last;
    }
    const std::string mode = call.text("pool_mode", "avg");
    call.require(mode == "avg", "pool_mode " + mode + " is not simulated");
    const auto scales = call.numbers("spatial_scale");
    call.require(scales.size() == last, "spatial_scale must have one number per level");
    std::vector<Level> levels;
    for (size_t i = 0; i < last; ++i) {
        levels.push_back(level_of(call, call.input(i), call.integer("pooled_height", 7),
                                  call.integer("pooled_width", 7), call.integer("sample_num", 0), scales[i],
                                  call.integer("aligned", 1) != 0));
    }
    const at::Tensor rois = call.input(last).to(at::kFloat).contiguous();
    call.require(rois.dim() == 2 && rois.size(1) == 5, "rois must be [N, 5]");
    const auto finest = static_cast<float>(call.number("finest_scale", 56));
    const auto factor = static_cast<float>(call.number("roi_scale_factor", 0));
    const at::Tensor widened = rois.clone();
    float *box = widened.mutable_data_ptr<float>();
    std::vector<int64_t> level;
    for (int64_t n = 0; n < rois.size(0); ++n, box += 5) {
        const float width = box[3] - box[1], height = box[4] - box[2];
        const float found = std::floor(std::log2(std::sqrt(width * height) / finest + 1e-6f));
        const auto highest = static_cast<float>(last - 1);
        level.push_back(found >= 0 ? static_cast<int64_t>(std::min(found, highest)) : 0);  // NaN, too, is level 0
        if (factor > 0) {
            const float x = (box[1] + box[3]) * 0.5f, y = (box[2] + box[4]) * 0.5f;
            const float half_width = width * factor * 0.5f, half_height = height * factor * 0.5f;
            box[1] = x - half_width;
            box[2] = y - half_height;
            box[3] = x + half_width;
            box[4] = y + half_height;
        }
    }
    call.output(pool(call, levels, level, widened));
}

const Registration registered{
    {"RoiAlign", roi_align},
    {"RoiExtractor", roi_extractor},
};

}  // namespace

}  // namespace cann_sim::executor
