// ACL operators on point clouds.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include <array>
#include <cmath>
#include <map>

#include "acl/operators.h"

namespace cann_sim {

namespace {

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

const Registration registered{
    {"Voxelization", voxelization},
};

}  // namespace

}  // namespace cann_sim
