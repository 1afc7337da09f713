// aclnn functions that draw random numbers. torch_npu passes its generator's seed and Philox offset; the numbers are those of
// level aten (compute/random.h).

#include "pch.h"

#include "aclnn/adapter.h"
#include "compute/formulas.h"
#include "compute/random.h"

namespace cann_sim {

namespace {

// v: seed, offset
at::Generator generator(const Value *v) {
    return generator_of(static_cast<uint64_t>(v[0].i), static_cast<uint64_t>(v[1].i));
}
// v: seed and offset as tensors, and what is added to the offset
at::Generator generator_of_tensors(const Value *v) {
    return generator_of(static_cast<uint64_t>(tensor(v[0]).item<int64_t>()),
                        static_cast<uint64_t>(tensor(v[1]).item<int64_t>() + v[2].i));
}

void uniform(const Value *v) { tensor(v[0]).uniform_(v[1].d, v[2].d, generator(v + 3)); }
void uniform_by_tensors(const Value *v) { tensor(v[0]).uniform_(v[1].d, v[2].d, generator_of_tensors(v + 3)); }
void normal(const Value *v) { tensor(v[0]).normal_(v[1].d, v[2].d, generator(v + 3)); }
void normal_by_tensors(const Value *v) { tensor(v[0]).normal_(v[1].d, v[2].d, generator_of_tensors(v + 3)); }
void random(const Value *v) { tensor(v[0]).random_(v[1].i, v[2].i, generator(v + 3)); }
void random_by_tensors(const Value *v) { tensor(v[0]).random_(v[1].i, v[2].i, generator_of_tensors(v + 3)); }
void bernoulli(const Value *v) { tensor(v[0]).bernoulli_(scalar(v[1]).toDouble(), generator(v + 2)); }
void bernoulli_of(const Value *v) { tensor(v[0]).bernoulli_(tensor(v[1]), generator(v + 2)); }
void randperm(const Value *v) { write(v[3], at::randperm(v[0].i, generator(v + 1))); }

// (mean, std, seed, offset, out); each of the first two a tensor or a number
void normal_of(const Value *v) {
    at::Tensor out = tensor(v[4]);
    const bool numbers = v[0].kind != Value::kTensor && v[1].kind != Value::kTensor;
    const at::Tensor drawn =
        at::empty(out.sizes(), out.options()).normal_(numbers ? v[0].d : 0, numbers ? v[1].d : 1, generator(v + 2));
    if (numbers) {
        out.copy_(drawn);
        return;
    }
    const at::Tensor scaled = v[1].kind == Value::kTensor ? drawn.mul(tensor(v[1])) : drawn.mul(v[1].d);
    out.copy_(v[0].kind == Value::kTensor ? scaled.add(tensor(v[0])) : scaled.add(v[0].d));
}

// (self, number, replacement, seed, offset, out)
void multinomial(const Value *v) { write(v[5], at::multinomial(tensor(v[0]), v[1].i, v[2].i != 0, generator(v + 3))); }
void multinomial_by_tensors(const Value *v) {
    write(v[6], at::multinomial(tensor(v[0]), v[1].i, v[2].i != 0, generator_of_tensors(v + 3)));
}

// (self, noise, lower, upper, training, seed, offset, out)
void rrelu(const Value *v) {
    at::Tensor noise = tensor(v[1]);
    write(v[7], at::rrelu_with_noise(tensor(v[0]), noise, scalar(v[2]), scalar(v[3]), v[4].i != 0, generator(v + 5)));
}

// ---- dropout: a mask of bits ----

void pack(const Value *v, const Value &out, const at::Generator &generator) {
    at::Tensor mask = tensor(out);
    pack_bits(at::empty({c10::multiply_integers(v[0].ints())}, at::kByte).bernoulli_(1 - v[1].d, generator), mask);
}
// (shape, probability of a zero, seed, offset, data type, out)
void dropout_mask(const Value *v) { pack(v, v[5], generator(v + 2)); }
// (shape, probability of a zero, seed, offset, more offset, data type, out)
void dropout_mask_by_tensors(const Value *v) { pack(v, v[6], generator_of_tensors(v + 2)); }

// (self, mask, probability of a zero, out)
void dropout(const Value *v) { write(v[3], dropped_out(tensor(v[0]), tensor(v[1]), 1 - v[2].d)); }

const ComputationRegistration registered{
    {"aclnnInplaceUniform", uniform},
    {"aclnnInplaceUniformTensor", uniform_by_tensors},
    {"aclnnInplaceNormal", normal},
    {"aclnnInplaceNormalTensor", normal_by_tensors},
    {"aclnnInplaceRandom", random},
    {"aclnnInplaceRandomTensor", random_by_tensors},
    {"aclnnInplaceBernoulli", bernoulli},
    {"aclnnInplaceBernoulliTensor", bernoulli_of},
    {"aclnnRandperm", randperm},
    {"aclnnNormalTensorTensor", normal_of},
    {"aclnnNormalTensorFloat", normal_of},
    {"aclnnNormalFloatTensor", normal_of},
    {"aclnnNormalFloatFloat", normal_of},
    {"aclnnMultinomial", multinomial},
    {"aclnnMultinomialTensor", multinomial_by_tensors},
    {"aclnnRReluWithNoise", rrelu},
    {"aclnnDropoutGenMaskV2", dropout_mask},
    {"aclnnDropoutGenMaskV2Tensor", dropout_mask_by_tensors},
    {"aclnnDropoutDoMask", dropout},
};

}  // namespace

}  // namespace cann_sim
