// ACL operators of point-wise spatial attention.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include <algorithm>

#include "acl/operators.h"

namespace cann_sim {

namespace {

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

const Registration registered{
    {"PSAMask", psa_mask},
    {"PSAMaskGrad", psa_mask_grad},
};

}  // namespace

}  // namespace cann_sim
