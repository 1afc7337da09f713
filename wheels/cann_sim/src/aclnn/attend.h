// softmax(scale q k^T + bias) v and its gradient, of one batch.
#pragma once

#include <ATen/core/Tensor.h>

namespace cann_sim {

// Without dropout the CPU's flash attention computes it, which never forms the matrix of scores; it has no dropout, so
// with dropout a block of scores exists at a time.
struct Attention {
    at::Tensor query, key, value;  // batch, heads, tokens, channels; key and value repeated for the query's heads
    double scale = 1;
    at::Tensor bias;      // added to the scores, -infinity where a row does not see a key; undefined: none
    bool causal = false;  // beside the bias: row i sees no key after i
    at::Tensor kept;      // dropout's mask, a bit per score, the lowest first; undefined: no dropout
    int64_t first_bit = 0;
    double keep = 1;
};

// What the card keeps of the softmax of each row for the gradient, float32 [batch, heads, tokens]:
// softmax = exp(score - maximum) / sum.
struct Rows {
    at::Tensor maximum, sum;
};

std::pair<at::Tensor, Rows> attend(const Attention &attention);

struct Gradients {
    at::Tensor query, key, value;
};

// `output` is that of `attend`, `grad` the gradient with respect to it.
Gradients attend_backward(const Attention &attention, const Rows &rows, const at::Tensor &output,
                          const at::Tensor &grad);

}  // namespace cann_sim
