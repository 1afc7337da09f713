// Bilinear sampling of a map: which cells a point lies between, with which weights, and how those change with the
// point.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace cann_sim {

// One coordinate between two neighbouring cells; a cell of -1 is outside the map.
struct Neighbours {
    int64_t cell[2];
    float weight[2];
    float slope[2];  // derivative of the weight by the coordinate
};

// RoIAlign's rule: up to one cell outside counts as the border, and further outside (or NaN) is nothing: false.
inline bool between_cells(float at, int64_t length, Neighbours *result) {
    if (!(at >= -1.f && at <= static_cast<float>(length))) {
        return false;
    }
    at = std::max(at, 0.f);
    const int64_t first = std::min(static_cast<int64_t>(at), length - 1), second = std::min(first + 1, length - 1);
    const float weight = second > first ? at - static_cast<float>(first) : 0.f, slope = second > first ? 1.f : 0.f;
    *result = {{first, second}, {1.f - weight, weight}, {-slope, slope}};
    return true;
}

// Deformable convolution's rule: a cell outside the map counts as 0.
inline Neighbours between_cells_or_zero(float at, int64_t length) {
    const float below = std::floor(at);
    const int64_t first = static_cast<int64_t>(below), second = first + 1;
    const auto inside = [length](int64_t cell) { return cell >= 0 && cell < length ? cell : -1; };
    return {{inside(first), inside(second)}, {below + 1 - at, at - below}, {-1.f, 1.f}};
}

// The four cells around a point: index in the map and weight, and the weight's derivatives. An index of -1 is outside.
struct Cells {
    int64_t index[4];
    float weight[4], by_y[4], by_x[4];
};

inline Cells cells_of(const Neighbours &row, const Neighbours &column, int64_t width) {
    Cells cells;
    for (int k = 0; k < 4; ++k) {
        const int r = k / 2, c = k % 2;
        const bool inside = row.cell[r] >= 0 && column.cell[c] >= 0;
        cells.index[k] = inside ? row.cell[r] * width + column.cell[c] : -1;
        cells.weight[k] = row.weight[r] * column.weight[c];
        cells.by_y[k] = row.slope[r] * column.weight[c];
        cells.by_x[k] = column.slope[c] * row.weight[r];
    }
    return cells;
}

}  // namespace cann_sim
