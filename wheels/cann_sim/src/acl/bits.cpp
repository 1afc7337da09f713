// ACL operators that pack a bit per element into bytes, the lowest bit first: masks of dropout, signs of 1-bit Adam.
// Prototypes and semantics: CANN's operator specifications, torch_npu's documentation of its functions.

#include "pch.h"

#include "acl/operators.h"
#include "compute/formulas.h"
#include "compute/random.h"

namespace cann_sim {

namespace {

// StatelessDropOutGenMask(shape, probability to stay, seed, seed1, offset) -> bytes, 1 is kept, padded to 128 bits.
// torch_npu passes its generator's Philox offset behind a 0, and a seed1 of 0.
void generate_mask(OpCall &op) {
    const auto offset = op.ints(4);
    const at::Generator generator =
        generator_of(static_cast<uint64_t>(op.ints(2).at(0)), static_cast<uint64_t>(offset.back()));
    const double stays = floats(op.input(1)).reshape({}).item<double>();
    op.require(stays >= 0 && stays <= 1, "the probability of a zero must be in [0, 1]");
    const at::Tensor kept = at::empty({c10::multiply_integers(op.ints(0))}, at::kByte);
    pack_bits(kept.bernoulli_(stays, generator), op.output(0));
}

// DropOutDoMask(x, mask, probability to stay)
void apply_mask(OpCall &op) {
    op.output(0).copy_(dropped_out(floats(op.input(0)), op.input(1), floats(op.input(2)).reshape({}).item<double>()));
}

// SignBitsPack(x [N]) -> bytes [size, …]: 0 is negative; behind the last element come zeros.
void pack_signs(OpCall &op) {
    op.require(op.output(0).numel() == (op.input(0).numel() + 7) / 8, "y must have a bit per element");
    pack_bits((op.input(0) < 0).logical_not(), op.output(0));
}

// SignBitsUnpack(bytes [N]) -> 1 and -1 [size, …]
void unpack_signs(OpCall &op) {
    at::Tensor &out = op.output(0);
    op.require(out.numel() == op.input(0).numel() * 8, "y must have an element per bit");
    out.copy_(unpack_bits(op.input(0), 0, out.numel()).to(at::kFloat).mul(2).sub(1).view(out.sizes()));
}

const Registration registered{
    {"DropOutDoMask", apply_mask},
    {"SignBitsPack", pack_signs},
    {"SignBitsUnpack", unpack_signs},
    {"StatelessDropOutGenMask", generate_mask},
};

}  // namespace

}  // namespace cann_sim
