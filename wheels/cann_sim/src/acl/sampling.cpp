// ACL operators that draw samples. Prototypes and semantics: CANN's operator specifications, op-plugin's tests.
// Random numbers are neither a card's nor the CPU's.

#include "pch.h"

#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

#include "acl/operators.h"

namespace cann_sim {

namespace {

// Of a seed, the same numbers each time. Without one a card takes a random seed; here one sequence per process goes on.
at::Generator generator_of_seeds(uint64_t seed, uint64_t seed2) {
    static const at::Generator unseeded = at::make_generator<at::CPUGeneratorImpl>();
    return seed == 0 && seed2 == 0 ? unseeded : at::make_generator<at::CPUGeneratorImpl>(seed ^ seed2 << 32);
}

// At most `most` rows of `rows`, at random and in random order.
at::Tensor draw(const at::Tensor &rows, int64_t most, const at::Generator &generator) {
    const at::Tensor order = at::randperm(rows.size(0), generator, at::kLong);
    return rows.index_select(0, order.narrow(0, 0, std::min(most, rows.size(0))));
}

// RandomChoiceWithMask(x, bool) -> (indices of elements that are true [count, dimensions of x], which of them are valid
// [count]); 0 after the last one.
void random_choice_with_mask(OpCall &op) {
    const at::Generator generator =
        generator_of_seeds(static_cast<uint64_t>(op.get_int("seed", 0)), static_cast<uint64_t>(op.get_int("seed2", 0)));
    const at::Tensor chosen = draw(at::nonzero(op.input(0).to(at::kBool)), op.output(1).numel(), generator);
    for (size_t i = 0; i < 2; ++i) {
        op.output(i).zero_();
        at::Tensor valid = op.output(i).narrow(0, 0, chosen.size(0));
        i == 0 ? valid.copy_(chosen) : valid.fill_(1);
    }
}

// SubSample(labels [N]: 1, 0 or -1) -> the labels of at most batch_size_per_images samples, of which at most positive_fraction
// are 1; the others become -1. Zeros fill up what the ones leave.
void sub_sample(OpCall &op) {
    const at::Tensor &labels = op.input(0);
    op.require(labels.scalar_type() == at::kInt && labels.dim() == 1, "labels must be int32 [N]");
    op.require((labels.abs() <= 1).all().item<bool>(), "a label must be 1, 0 or -1 here");
    const int64_t most = op.get_int("batch_size_per_images", 0);
    const auto fraction = static_cast<float>(op.get_float("positive_fraction", 0));
    op.require(most >= 0, "batch_size_per_images must not be negative");
    op.require(fraction >= 0 && fraction <= 1, "positive_fraction must be in [0, 1]");
    const at::Generator generator = generator_of_seeds(0, 0);
    const at::Tensor positive =
        draw(at::nonzero(labels == 1).flatten(), static_cast<int64_t>(static_cast<float>(most) * fraction), generator);
    const at::Tensor negative = draw(at::nonzero(labels == 0).flatten(), most - positive.numel(), generator);
    op.output(0).fill_(-1).index_fill_(0, positive, 1).index_fill_(0, negative, 0);
}

const Registration registered{
    {"RandomChoiceWithMask", random_choice_with_mask},
    {"SubSample", sub_sample},
};

}  // namespace

}  // namespace cann_sim
