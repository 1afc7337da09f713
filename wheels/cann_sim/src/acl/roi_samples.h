// RoIAlign's sample points: which cells of a map the bins of a box read, with which weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "acl/bilinear.h"

namespace cann_sim {

// The map's size, the bins, the sample points per bin and direction (0: as many as the bin has cells), the map's scale,
// and whether boxes are shifted by half a pixel (aligned) or are at least one pixel wide and high.
struct RoiAlign {
    int64_t height, width, pooled_height, pooled_width, samples;
    float scale;
    bool aligned;
};

// Where one box's bins read the feature map: per bin `per_bin` sample points of four corners each.
struct Sampling {
    struct Point {
        int32_t corner[4];
        float weight[4];
    };
    std::vector<Point> points;
    int64_t per_bin = 0;
};

inline void place_samples(const RoiAlign &g, const float *roi, Sampling &sampling) {
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
                Neighbours row;
                const bool row_inside = between_cells(y, g.height, &row);
                for (int64_t ix = 0; ix < columns; ++ix) {
                    const float x = left + static_cast<float>(pw) * bin_width +
                                    (static_cast<float>(ix) + .5f) * bin_width / static_cast<float>(columns);
                    Neighbours column;
                    Sampling::Point point = {{0, 0, 0, 0}, {0, 0, 0, 0}};
                    if (row_inside && between_cells(x, g.width, &column)) {
                        const Cells cells = cells_of(row, column, g.width);
                        for (int corner = 0; corner < 4; ++corner) {
                            point.corner[corner] = static_cast<int32_t>(cells.index[corner]);
                            point.weight[corner] = cells.weight[corner];
                        }
                    }
                    sampling.points.push_back(point);
                }
            }
        }
    }
}

// The mean of one bin's samples in a channel's map; `point` is the bin's first.
inline float mean_of_samples(const Sampling &sampling, const Sampling::Point *point, const float *map) {
    float sum = 0.f;
    for (int64_t s = 0; s < sampling.per_bin; ++s, ++point) {
        sum += point->weight[0] * map[point->corner[0]] + point->weight[1] * map[point->corner[1]] +
               point->weight[2] * map[point->corner[2]] + point->weight[3] * map[point->corner[3]];
    }
    return sum / static_cast<float>(std::max<int64_t>(sampling.per_bin, 1));
}

}  // namespace cann_sim
