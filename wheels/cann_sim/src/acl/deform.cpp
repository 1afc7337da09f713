// ACL operators that sample where learned offsets say: deformable pooling and deformable convolution.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include <algorithm>
#include <cmath>

#include "acl/bilinear.h"
#include "acl/operators.h"

namespace cann_sim {

namespace {

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
                    Neighbours row, column;
                    if (between_cells(point.y, x.size(2), &row) && between_cells(point.x, x.size(3), &column)) {
                        const Cells cells = cells_of(row, column, x.size(3));
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
    Cells cells;
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
                s.cells = cells_of(between_cells_or_zero(y, height), between_cells_or_zero(x, width), width);
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

const Registration registered{
    {"DeformableRoiPool", deformable_roi_pool},
    {"DeformableRoiPoolGrad", deformable_roi_pool_grad},
    {"DeformableOffsets", deformable_offsets},
    {"DeformableOffsetsGrad", deformable_offsets_grad},
};

}  // namespace

}  // namespace cann_sim
