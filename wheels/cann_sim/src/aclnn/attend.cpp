#include "pch.h"

#include "aclnn/attend.h"
#include "compute/formulas.h"

#include <cmath>
#include <limits>

namespace cann_sim {

namespace {

constexpr int64_t kScores = 1 << 18;  // that exist at a time: as many as a cache holds
constexpr float kLowest = std::numeric_limits<float>::lowest();

struct Sizes {
    int64_t batch, heads, rows, keys;

    explicit Sizes(const Attention &a)
        : batch(a.query.size(0)), heads(a.query.size(1)), rows(a.query.size(2)), keys(a.key.size(2)) {}
};

// Scores of some heads (of all batches, one after the other) and rows.
struct Block {
    int64_t head, heads, row, rows;

    at::Tensor of_rows(const at::Tensor &tensor) const { return tensor.narrow(0, head, heads).narrow(1, row, rows); }
    at::Tensor of_keys(const at::Tensor &tensor) const { return tensor.narrow(0, head, heads); }
};

template <typename F>
void for_blocks(const Sizes &sizes, const F &compute) {
    const int64_t rows = std::clamp<int64_t>(kScores / sizes.keys, 1, sizes.rows);
    const int64_t heads = std::clamp<int64_t>(kScores / (rows * sizes.keys), 1, sizes.batch * sizes.heads);
    for (int64_t head = 0; head < sizes.batch * sizes.heads; head += heads) {
        for (int64_t row = 0; row < sizes.rows; row += rows) {
            compute(
                Block{head, std::min(heads, sizes.batch * sizes.heads - head), row, std::min(rows, sizes.rows - row)});
        }
    }
}

// In at least float32, with batches and heads as one dimension.
at::Tensor wide_rows(const at::Tensor &tensor) { return wide(tensor).flatten(0, 1); }

at::Tensor scores(const Attention &a, const at::Tensor &scaled_query, const at::Tensor &key, const Block &block) {
    at::Tensor result = at::bmm(block.of_rows(scaled_query), block.of_keys(key).transpose(1, 2));
    if (a.bias.defined()) {
        const Sizes sizes(a);
        const at::Tensor bias = a.bias.expand({sizes.batch, sizes.heads, sizes.rows, sizes.keys});
        for (int64_t i = 0; i < block.heads; ++i) {
            const int64_t head = block.head + i;
            result[i].add_(bias[head / sizes.heads][head % sizes.heads].narrow(0, block.row, block.rows));
        }
    }
    if (a.causal) {
        const at::Tensor after = at::ones(result.sizes().slice(1), result.options().dtype(at::kBool));
        result.masked_fill_(after.triu(1 + block.row), -INFINITY);
    }
    return result;
}

// 1 / keep for what dropout keeps, else 0.
at::Tensor kept(const Attention &a, const Block &block, const at::TensorOptions &options) {
    const Sizes sizes(a);
    const at::Tensor result = at::empty({block.heads, block.rows, sizes.keys}, options.dtype(at::kFloat));
    const int64_t count = block.rows * sizes.keys;
    for (int64_t i = 0; i < block.heads; ++i) {
        const int64_t first = a.first_bit + ((block.head + i) * sizes.rows + block.row) * sizes.keys;
        result[i].copy_(unpack_bits(a.kept, first, count).view({block.rows, sizes.keys}));
    }
    return result.mul_(1 / a.keep);
}

// A row that sees no key has the maximum that masked scores have on a card, and its softmax is 0.
at::Tensor finite(const at::Tensor &maximum) { return maximum.clamp_min(kLowest); }

// The flash attention tells log(sum(exp(score))) alone, and its gradient needs that number to the last bit. So the sum that
// belongs to the rows' true maxima is chosen, and the maximum within its last bits, such that
// log_sum(maximum, sum) is that number.
float log_sum(float maximum, float sum) {
    return static_cast<float>(static_cast<double>(maximum) + std::log(static_cast<double>(sum)));
}

Rows rows_of(const at::Tensor &maximum, const at::Tensor &logarithm, int64_t keys) {
    const at::Tensor logarithms = logarithm.to(at::kFloat).contiguous();
    Rows rows{maximum.contiguous(), at::empty(maximum.sizes(), maximum.options())};
    const auto *wanted = logarithms.const_data_ptr<float>();
    auto *maxima = rows.maximum.data_ptr<float>(), *sums = rows.sum.data_ptr<float>();
    for (int64_t i = 0; i < rows.sum.numel(); ++i) {
        if (maxima[i] == kLowest) {
            sums[i] = static_cast<float>(keys);
            continue;
        }
        const auto nearest = static_cast<float>(std::exp(static_cast<double>(wanted[i]) - maxima[i]));
        float sum = nearest, maximum_for_it = maxima[i];
        for (int step = 0; step < 64; ++step) {
            maximum_for_it = static_cast<float>(wanted[i] - std::log(static_cast<double>(sum)));
            if (log_sum(maximum_for_it, sum) == wanted[i]) {
                break;
            }
            sum = std::nextafter(sum, std::numeric_limits<float>::infinity());
        }
        maxima[i] = maximum_for_it;
        sums[i] = sum;
    }
    return rows;
}

// With zeros for the channels that it lacks to be as wide as query and key, as the flash attention wants it.
at::Tensor widened(const at::Tensor &tensor, const Attention &a) {
    const int64_t lacking = a.query.size(-1) - tensor.size(-1);
    return lacking == 0 ? tensor : at::constant_pad_nd(tensor, {0, lacking});
}
// It reads channels one after the other, whatever their stride.
at::Tensor dense(const at::Tensor &tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }
at::Tensor narrowed(const at::Tensor &tensor, const Attention &a) { return tensor.narrow(-1, 0, a.value.size(-1)); }

std::optional<at::Tensor> optional(const at::Tensor &tensor) {
    return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

}  // namespace

std::pair<at::Tensor, Rows> attend(const Attention &a) {
    const Sizes sizes(a);
    const at::Tensor query = wide_rows(a.query) * a.scale, key = wide_rows(a.key);
    const at::Tensor maximum = at::empty({sizes.batch * sizes.heads, sizes.rows}, query.options().dtype(at::kFloat));
    const at::IntArrayRef by_row = a.query.sizes().slice(0, 3);
    if (!a.kept.defined()) {
        for_blocks(sizes, [&](const Block &block) {
            block.of_rows(maximum).copy_(finite(scores(a, query, key, block).amax(-1)));
        });
        const auto [output, logarithm] = at::_scaled_dot_product_flash_attention_for_cpu(
            dense(a.query), dense(a.key), dense(widened(a.value, a)), 0., a.causal, optional(a.bias), a.scale);
        return {narrowed(output, a), rows_of(maximum.view(by_row), logarithm, sizes.keys)};
    }
    const at::Tensor value = wide_rows(a.value);
    const at::Tensor sum = at::empty_like(maximum);
    const at::Tensor output = at::empty({sizes.batch * sizes.heads, sizes.rows, value.size(-1)}, query.options());
    for_blocks(sizes, [&](const Block &block) {
        const at::Tensor score = scores(a, query, key, block);
        const at::Tensor highest = finite(score.amax(-1, true));
        const at::Tensor softmax = score.sub(highest).exp_();
        at::Tensor total = softmax.sum(-1, true);
        total = total.masked_fill(total == 0, static_cast<double>(sizes.keys));
        block.of_rows(maximum).copy_(highest.squeeze(-1));
        block.of_rows(sum).copy_(total.squeeze(-1));
        const at::Tensor dropped = softmax.div_(total).mul_(kept(a, block, query.options()));
        block.of_rows(output).copy_(at::bmm(dropped, block.of_keys(value)));
    });
    return {output.to(a.query.scalar_type()).unflatten(0, {sizes.batch, sizes.heads}),
            {maximum.view(by_row), sum.view(by_row)}};
}

Gradients attend_backward(const Attention &a, const Rows &rows, const at::Tensor &output, const at::Tensor &grad) {
    if (!a.kept.defined()) {
        const at::Tensor logarithm = rows.maximum.to(at::kDouble).add(rows.sum.to(at::kDouble).log()).to(at::kFloat);
        auto [query, key, value] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
            dense(widened(grad, a)), dense(a.query), dense(a.key), dense(widened(a.value, a)),
            dense(widened(output, a)), logarithm.contiguous(), 0., a.causal, optional(a.bias), a.scale);
        return {query, key, narrowed(value, a)};
    }
    const Sizes sizes(a);
    const at::Tensor query = wide_rows(a.query), scaled = query * a.scale, key = wide_rows(a.key),
                     value = wide_rows(a.value);
    const at::Tensor grad_out = wide_rows(grad);
    const at::Tensor inner = (grad_out * wide_rows(output)).sum(-1, true);
    const at::Tensor maximum = rows.maximum.flatten(0, 1).unsqueeze(-1), sum = rows.sum.flatten(0, 1).unsqueeze(-1);
    const Gradients whole{at::empty_like(query), at::zeros_like(key), at::zeros_like(value)};
    for_blocks(sizes, [&](const Block &block) {
        const at::Tensor softmax =
            scores(a, scaled, key, block).sub_(block.of_rows(maximum)).exp_().div_(block.of_rows(sum));
        const at::Tensor mask = kept(a, block, query.options());
        const at::Tensor from = block.of_rows(grad_out);
        const at::Tensor through = at::bmm(from, block.of_keys(value).transpose(1, 2)).mul_(mask);
        const at::Tensor grad_scores = through.sub_(block.of_rows(inner)).mul_(softmax).mul_(a.scale);
        block.of_rows(whole.query).copy_(at::bmm(grad_scores, block.of_keys(key)));
        block.of_keys(whole.key).add_(at::bmm(grad_scores.transpose(1, 2), block.of_rows(query)));
        block.of_keys(whole.value).add_(at::bmm((softmax * mask).transpose(1, 2), from));
    });
    const auto ended = [&](const at::Tensor &tensor) {
        return tensor.to(a.query.scalar_type()).unflatten(0, {sizes.batch, sizes.heads});
    };
    return {ended(whole.query), ended(whole.key), ended(whole.value)};
}

}  // namespace cann_sim
