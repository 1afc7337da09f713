// Fused attention, torch_npu.npu_fusion_attention and _v2: aclnnFlashAttention… in all its versions, which differ in their
// arguments only. What one asks for is brought to one batch, or one sequence of TND, with heads first (attend.h).

#include "pch.h"

#include "aclnn/adapter.h"
#include "aclnn/attend.h"

namespace cann_sim {

namespace {

// What a version's arguments hold beside those of aclnnFlashAttentionScore.
enum Parts : int { kScore = 0, kGrad = 1, kLengths = 2, kStarts = 4, kRope = 8, kLayoutOfRows = 16 };

constexpr int64_t kTriangle = 2048;  // the mask that the modes 2, 3 and 4 take, whatever the sizes

struct Given {
    at::Tensor query, query_rope, key, key_rope, value, grad, shift, kept, mask, maximum, sum, output;
    std::vector<int64_t> query_ends, key_ends;  // of the sequences of TND
    double scale, keep;
    int64_t before, after;  // keys that a row sees beside its own
    int64_t heads;
    std::string layout, layout_of_rows;
    int64_t mode, shift_type = 1;
    at::Tensor grad_query, grad_query_rope, grad_key, grad_key_rope, grad_value, grad_shift;

    bool packed() const { return layout == "TND"; }
};

std::vector<int64_t> ints(const Value &value) { return value.is_null() ? std::vector<int64_t>() : value.ints(); }
std::string text(const Value &value) { return value.is_null() ? "" : value.text(); }
bool is_given(const Value &tensor) { return !tensor.is_null() && !tensor.tensor()->sizes.empty(); }

Given read(const Value *v, int parts) {
    const bool grad = (parts & kGrad) != 0, rope = (parts & kRope) != 0;
    Given g;
    g.query = tensor(*v++);
    g.query_rope = rope ? tensor(*v++) : at::Tensor();
    g.key = tensor(*v++);
    g.key_rope = rope ? tensor(*v++) : at::Tensor();
    g.value = tensor(*v++);
    g.grad = grad ? tensor(*v++) : at::Tensor();
    g.shift = tensor(*v++);
    g.kept = tensor(*v++);
    TORCH_CHECK(!is_given(*v), "padding_mask is reserved: CANN has no use for it");
    ++v;
    g.mask = tensor(*v++);
    if (grad) {
        g.maximum = tensor(*v++);
        g.sum = tensor(*v++);
        ++v;  // the softmax itself: reserved
        g.output = tensor(*v++);
    }
    ++v;  // prefixes: of modes that are refused
    if ((parts & kLengths) != 0) {
        g.query_ends = ints(*v++);
        g.key_ends = ints(*v++);
    }
    if ((parts & kStarts) != 0) {
        const std::vector<int64_t> query_starts = ints(*v++), key_starts = ints(*v++);
        for (const auto &starts : {query_starts, key_starts}) {
            TORCH_CHECK(std::all_of(starts.begin(), starts.end(), [](int64_t start) { return start == 0; }),
                        "q_start_idx and kv_start_idx other than 0 are not simulated");
        }
    }
    g.scale = (v++)->d;
    g.keep = (v++)->d;
    g.before = (v++)->i;
    g.after = (v++)->i;
    g.heads = (v++)->i;
    g.layout = text(*v++);
    ++v;  // inner_precise: for the units of a card
    g.mode = (v++)->i;
    g.shift_type = (parts & kStarts) != 0 ? (v++)->i : 1;
    if (!grad) {
        g.layout_of_rows = (parts & kLayoutOfRows) != 0 ? text(*v++) : "";
        g.maximum = tensor(*v++);
        g.sum = tensor(*v++);
        ++v;
        g.output = tensor(*v++);
        return g;
    }
    g.grad_query = tensor(*v++);
    g.grad_query_rope = rope ? tensor(*v++) : at::Tensor();
    g.grad_key = tensor(*v++);
    g.grad_key_rope = rope ? tensor(*v++) : at::Tensor();
    g.grad_value = tensor(*v++);
    g.grad_shift = tensor(*v++);
    g.layout_of_rows = (parts & kLayoutOfRows) != 0 ? text(*v++) : "";
    return g;
}

// What a card refuses, most of it when it lays out the computation, and what is not simulated.
void check(const Given &g, int parts) {
    const at::ScalarType type = g.query.scalar_type();
    TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
                "query must be float32, float16 or bfloat16, not ", type);
    TORCH_CHECK(g.key.scalar_type() == type && g.value.scalar_type() == type,
                "query, key and value must have one data type, not ", type, ", ", g.key.scalar_type(), " and ",
                g.value.scalar_type());
    const bool lengths = (parts & kLengths) != 0;
    TORCH_CHECK(lengths == g.packed(), "input_layout ", g.layout, lengths ? " with" : " without",
                " actual_seq_qlen and actual_seq_kvlen: TND takes them, and no other layout");
    TORCH_CHECK(g.packed() || g.layout == "BNSD" || g.layout == "BSND" || g.layout == "BSH" || g.layout == "SBH",
                "input_layout ", g.layout, " is none of BNSD, BSND, BSH, SBH and TND");
    const auto dimensions = static_cast<int64_t>(g.layout.size());
    TORCH_CHECK(g.query.dim() == dimensions && g.key.dim() == dimensions && g.value.dim() == dimensions,
                "query, key and value of ", g.layout, " must have ", dimensions, " dimensions, not ", g.query.dim(),
                ", ", g.key.dim(), " and ", g.value.dim());
    TORCH_CHECK(g.heads > 0 && (g.layout.back() != 'H' || (g.query.size(2) > 0 && g.query.size(2) % g.heads == 0)),
                "head_num ", g.heads, " does not divide query's shape ", g.query.sizes(), " of ", g.layout);
    TORCH_CHECK(g.keep > 0 && g.keep <= 1, "keep_prob must be in (0, 1], not ", g.keep);
    TORCH_CHECK(g.keep == 1 || g.kept.defined(), "keep_prob ", g.keep, " without dropout's mask");
    TORCH_CHECK(g.mode >= 0 && g.mode <= 4, "sparse_mode ", g.mode, " is not simulated (0 to 4 are)");
    TORCH_CHECK(g.shift_type == 0 || g.shift_type == 1, "pse_type ", g.shift_type,
                " is not simulated (0 and 1 are; the others make pse from slopes)");
    TORCH_CHECK(g.shift_type == 1 || g.shift.defined(), "pse_type ", g.shift_type, " without pse");
    TORCH_CHECK(g.layout_of_rows.empty() || g.layout_of_rows == "same_as_input", "softmax_layout ", g.layout_of_rows,
                " is none that CANN knows");
    TORCH_CHECK(!g.mask.defined() || g.mask.scalar_type() == at::kBool || g.mask.scalar_type() == at::kByte,
                "atten_mask must be bool or uint8, not ", g.mask.scalar_type());
    TORCH_CHECK(g.query_rope.defined() == g.key_rope.defined(), "query_rope and key_rope come together");
}

// ---- layouts ----

// As batch, heads, tokens, channels, whatever the layout says: a view. A packed tensor becomes one batch.
at::Tensor heads_first(const at::Tensor &tensor, const Given &g, int64_t heads) {
    if (!tensor.defined() || g.layout == "BNSD") {
        return tensor;
    }
    if (g.layout == "TND") {
        return tensor.transpose(0, 1).unsqueeze(0);
    }
    if (g.layout == "BSND") {
        return tensor.transpose(1, 2);
    }
    const at::Tensor apart = tensor.unflatten(2, {heads, -1});
    return g.layout == "BSH" ? apart.transpose(1, 2) : apart.permute({1, 2, 0, 3});
}

// Heads of key and value: by their width where the layout does not name them (grouped-query attention has fewer).
int64_t key_heads(const Given &g) {
    if (g.layout == "BNSD" || g.packed()) {
        return g.key.size(1);
    }
    return g.layout == "BSND" ? g.key.size(2) : g.key.size(2) / (g.query.size(2) / g.heads);
}

// A batch, or a sequence of TND: where it begins and how long it is; and where its scores begin among all.
struct Sequence {
    int64_t index, row, rows, key, keys, score;

    at::Tensor of_rows(const at::Tensor &tensor) const { return tensor.narrow(2, row, rows); }
    at::Tensor of_keys(const at::Tensor &tensor) const { return tensor.narrow(2, key, keys); }
};

std::vector<Sequence> sequences(const Given &g, int64_t rows, int64_t keys) {
    if (!g.packed()) {
        return {{0, 0, rows, 0, keys, 0}};
    }
    TORCH_CHECK(!g.query_ends.empty() && g.query_ends.size() == g.key_ends.size(), "actual_seq_qlen names ",
                g.query_ends.size(), " sequences and actual_seq_kvlen ", g.key_ends.size());
    std::vector<Sequence> found;
    int64_t row = 0, key = 0, score = 0;
    for (size_t i = 0; i < g.query_ends.size(); ++i) {
        const int64_t row_end = g.query_ends[i], key_end = g.key_ends[i];
        TORCH_CHECK(row_end >= row && row_end <= rows && key_end >= key && key_end <= keys,
                    "actual_seq_qlen and actual_seq_kvlen are ends of sequences, which grow up to ", rows, " and ",
                    keys, ": not ", row_end, " and ", key_end, " after ", row, " and ", key);
        found.push_back({static_cast<int64_t>(i), row, row_end - row, key, key_end - key, score});
        score += g.heads * (row_end - row) * (key_end - key);
        row = row_end;
        key = key_end;
    }
    return found;
}

// A sequence's part of the maxima or sums as batch, heads, tokens, 8 equal columns. Those of TND lie sequence by sequence
// with heads first, although their shape says tokens first; unless softmax_layout asks for the latter.
at::Tensor of_rows(const at::Tensor &statistics, const Sequence &s, const Given &g) {
    if (!g.packed()) {
        return statistics;
    }
    if (g.layout_of_rows == "same_as_input") {
        return s.of_rows(statistics.transpose(0, 1).unsqueeze(0));
    }
    return statistics.view(-1).narrow(0, s.row * g.heads * 8, s.rows * g.heads * 8).view({1, g.heads, s.rows, 8});
}

// ---- what is added to the scores ----

at::Tensor shift_of(const Given &g, const Sequence &s, int64_t batch, int64_t all_keys) {
    const at::Tensor &shift = g.shift;
    at::Tensor found;
    if (g.packed()) {
        const bool by_row = shift.numel() != g.heads * all_keys;
        TORCH_CHECK(shift.dim() == 1, "pse of TND with ", shift.dim(), " dimensions is not simulated (1 is)");
        const int64_t first = by_row ? s.score : g.heads * s.key, rows = by_row ? s.rows : 1;
        TORCH_CHECK(first + g.heads * rows * s.keys <= shift.numel(), "pse has ", shift.numel(),
                    " elements, too few for the scores of all sequences");
        found = shift.narrow(0, first, g.heads * rows * s.keys).view({1, g.heads, rows, s.keys});
    } else {
        const bool fits = shift.dim() == 4 && (shift.size(0) == batch || shift.size(0) == 1) &&
                          shift.size(1) == g.heads && (shift.size(2) == s.rows || shift.size(2) == 1) &&
                          shift.size(3) == s.keys;
        TORCH_CHECK(fits, "pse must have shape [", batch, " or 1, ", g.heads, ", ", s.rows, " or 1, ", s.keys,
                    "], not ", shift.sizes(), " (the last 1024 rows alone are not simulated)");
        found = shift.expand({-1, -1, s.rows, -1});
    }
    return g.shift_type == 1 ? found * g.scale : found;
}

// A full mask: of all batches, of the longest sequences of TND, or of all its tokens.
at::Tensor mask_of(const Given &g, const Sequence &s, const std::vector<Sequence> &all) {
    if (!g.packed()) {
        return g.mask;
    }
    int64_t rows = 0, keys = 0;
    for (const Sequence &each : all) {
        rows = std::max(rows, each.rows);
        keys = std::max(keys, each.keys);
    }
    const int64_t has_rows = g.mask.size(-2), has_keys = g.mask.size(-1);
    if (has_rows == rows && has_keys == keys) {
        const at::Tensor whole = g.mask.dim() == 4 && g.mask.size(0) != 1 ? g.mask.narrow(0, s.index, 1) : g.mask;
        return whole.narrow(-2, 0, s.rows).narrow(-1, 0, s.keys);
    }
    TORCH_CHECK(g.mask.dim() == 2 && has_rows == all.back().row + all.back().rows &&
                    has_keys == all.back().key + all.back().keys,
                "atten_mask of TND must have shape [", rows, ", ", keys, "], of the longest sequences, not ",
                g.mask.sizes());
    return g.mask.narrow(0, s.row, s.rows).narrow(1, s.key, s.keys);
}

void check_triangle(const Given &g) {
    static const at::Tensor triangle = at::ones({kTriangle, kTriangle}, at::kBool).triu(1);
    TORCH_CHECK(g.mask.dim() >= 2 && g.mask.size(-1) == kTriangle && g.mask.size(-2) == kTriangle, "atten_mask of ",
                "sparse_mode ", g.mode, " must have shape [2048, 2048], not ", g.mask.sizes());
    TORCH_CHECK(at::equal(g.mask.to(at::kBool), triangle.expand_as(g.mask)), "atten_mask of sparse_mode ", g.mode,
                " must be 1 above the diagonal and 0 elsewhere (torch.triu(torch.ones(2048, 2048), 1))");
}

// Which keys the rows see: of row i those from i - before to i + after, and not what the mask blocks.
void hide(Attention &a, const Given &g, const Sequence &s, const std::vector<Sequence> &all) {
    if (!g.mask.defined()) {
        return;  // then no mode has a meaning
    }
    int64_t before = s.rows, after = s.keys;
    const int64_t shift = s.keys - s.rows;  // modes 3 and 4 count from the lower right corner
    switch (g.mode) {
        case 0: before = g.before, after = g.after; break;
        case 2: after = 0; break;
        case 3: after = shift; break;
        case 4: before = g.before - shift, after = g.after + shift; break;
        default: break;
    }
    TORCH_CHECK(g.mode != 3 || !g.packed() || shift >= 0, "sparse_mode 3 of TND needs as many keys as rows: ", s.keys,
                " for ", s.rows, " in sequence ", s.index);
    TORCH_CHECK(before + after >= 0, "pre_tockens ", g.before, " and next_tockens ", g.after, " leave no key");
    at::Tensor blocked = g.mode < 2 ? mask_of(g, s, all).to(at::kBool) : at::Tensor();
    a.causal = after == 0 && before >= s.rows - 1;
    if (!a.causal && (before < s.rows - 1 || after < s.keys - 1)) {
        const auto limit = std::max(s.rows, s.keys);  // triu and tril want no larger numbers
        const at::Tensor seen = at::ones({s.rows, s.keys}, at::kBool)
                                    .triu(-std::clamp(before, -limit, limit))
                                    .tril(std::clamp(after, -limit, limit));
        blocked = blocked.defined() ? blocked.logical_or(seen.logical_not()) : seen.logical_not();
    }
    if (!blocked.defined()) {
        return;
    }
    const at::Tensor bias =
        at::zeros(blocked.sizes(), a.query.options()).masked_fill_(blocked, -std::numeric_limits<float>::infinity());
    a.bias = a.bias.defined() ? a.bias + bias : bias;
}

// ---- the two functions ----

struct Problem {
    Given given;
    int64_t group;                  // query heads per key head
    at::Tensor query, key, value;   // heads first
    std::vector<Sequence> all;

    Problem(const Value *v, int parts) : given(read(v, parts)) {
        check(given, parts);
        const int64_t fewer = key_heads(given);
        TORCH_CHECK(fewer > 0 && given.heads % fewer == 0, "head_num ", given.heads, " is no multiple of the ", fewer,
                    " heads of key");
        group = given.heads / fewer;
        query = with(heads_first(given.query, given, given.heads), heads_first(given.query_rope, given, given.heads));
        key = with(heads_first(given.key, given, fewer), heads_first(given.key_rope, given, fewer));
        value = heads_first(given.value, given, fewer);
        TORCH_CHECK(query.size(1) == given.heads, "head_num is ", given.heads, ", and query has ", query.size(1));
        TORCH_CHECK(query.size(-1) == key.size(-1) && value.size(-1) <= key.size(-1),
                    "query and key have equally many channels, value no more; not ", query.size(-1), ", ",
                    key.size(-1), " and ", value.size(-1));
        TORCH_CHECK(query.size(0) == key.size(0) && key.sizes().slice(0, 3) == value.sizes().slice(0, 3),
                    "the shapes of query, key and value do not fit: ", given.query.sizes(), ", ", given.key.sizes(),
                    " and ", given.value.sizes());
        if (given.mask.defined() && given.mode >= 2) {
            check_triangle(given);
        }
        all = sequences(given, query.size(2), key.size(2));
        const Sequence &last = all.back();
        const int64_t scores = last.score + query.size(0) * given.heads * last.rows * last.keys;
        TORCH_CHECK(!given.kept.defined() || given.kept.numel() * 8 >= scores, "dropout's mask has ",
                    given.kept.numel(), " bytes, too few for ", scores, " scores");
        if (given.kept.defined()) {
            given.kept = given.kept.contiguous();
        }
    }

    static at::Tensor with(const at::Tensor &tensor, const at::Tensor &rope) {
        return rope.defined() ? at::cat({tensor, rope}, -1) : tensor;
    }

    static bool is_empty(const Sequence &s) { return s.rows == 0 || s.keys == 0; }

    Attention attention(const Sequence &s) const {
        Attention a;
        a.query = s.of_rows(query);
        a.key = s.of_keys(key);
        a.value = s.of_keys(value);
        a.scale = given.scale;
        if (group != 1) {
            a.key = a.key.repeat_interleave(group, 1);
            a.value = a.value.repeat_interleave(group, 1);
        }
        if (given.shift.defined()) {
            a.bias = shift_of(given, s, query.size(0), key.size(2));
        }
        hide(a, given, s, all);
        if (a.bias.defined()) {
            a.bias = a.bias.to(query.scalar_type());
        }
        a.kept = given.kept;
        a.first_bit = s.score;
        a.keep = given.keep;
        return a;
    }
};

template <int parts>
void score(const Value *v) {
    const Problem problem(v, parts);
    const Given &g = problem.given;
    const at::Tensor result = heads_first(g.output, g, g.heads);
    for (const at::Tensor &tensor : {g.output, g.maximum, g.sum}) {
        tensor.zero_();  // for what belongs to no sequence, or has no key
    }
    for (const Sequence &s : problem.all) {
        if (Problem::is_empty(s) || result.numel() == 0) {
            continue;
        }
        const auto [output, rows] = attend(problem.attention(s));
        s.of_rows(result).copy_(output);
        of_rows(g.maximum, s, g).copy_(rows.maximum.unsqueeze(-1));
        of_rows(g.sum, s, g).copy_(rows.sum.unsqueeze(-1));
    }
}

template <int parts>
void score_grad(const Value *v) {
    const Problem problem(v, parts | kGrad);
    const Given &g = problem.given;
    TORCH_CHECK(g.maximum.defined() && g.sum.defined() && g.output.defined(),
                "the gradient needs softmax_max, softmax_sum and attention_in of the forward pass");
    if (g.grad_shift.defined()) {
        g.grad_shift.fill_(NAN);  // reserved: CANN writes nothing
    }
    const int64_t heads = g.heads, fewer = heads / problem.group;
    const at::Tensor output = heads_first(g.output, g, heads), grad = heads_first(g.grad, g, heads);
    const at::Tensor maximum = g.maximum.contiguous(), sum = g.sum.contiguous();
    const at::Tensor grad_query = at::zeros_like(problem.query), grad_key = at::zeros_like(problem.key),
                     grad_value = at::zeros_like(problem.value);
    const auto grouped = [&](const at::Tensor &tensor) {
        return problem.group == 1 ? tensor : tensor.unflatten(1, {-1, problem.group}).sum(2);
    };
    for (const Sequence &s : problem.all) {
        if (Problem::is_empty(s) || grad.numel() == 0) {
            continue;
        }
        const Rows rows{of_rows(maximum, s, g).select(-1, 0), of_rows(sum, s, g).select(-1, 0)};
        const Gradients found =
            attend_backward(problem.attention(s), rows, s.of_rows(output), s.of_rows(grad));
        s.of_rows(grad_query).copy_(found.query);
        s.of_keys(grad_key).copy_(grouped(found.key));
        s.of_keys(grad_value).copy_(grouped(found.value));
    }
    // The channels of query_rope and key_rope come after the others.
    const auto give = [&](const at::Tensor &to, const at::Tensor &from, int64_t count, int64_t first) {
        if (to.defined()) {
            const at::Tensor target = heads_first(to, g, count);
            target.copy_(from.narrow(-1, first, target.size(-1)));
        }
    };
    give(g.grad_query, grad_query, heads, 0);
    give(g.grad_query_rope, grad_query, heads, problem.query.size(-1) - (g.query_rope.defined() ? g.query_rope.size(-1) : 0));
    give(g.grad_key, grad_key, fewer, 0);
    give(g.grad_key_rope, grad_key, fewer, problem.key.size(-1) - (g.key_rope.defined() ? g.key_rope.size(-1) : 0));
    give(g.grad_value, grad_value, fewer, 0);
}

const ComputationRegistration registered{
    {"aclnnFlashAttentionScore", score<kScore>},
    {"aclnnFlashAttentionScoreV2", score<kStarts>},
    {"aclnnFlashAttentionVarLenScore", score<kLengths>},
    {"aclnnFlashAttentionVarLenScoreV2", score<kLengths | kStarts>},
    {"aclnnFlashAttentionVarLenScoreV3", score<kLengths | kStarts | kRope>},
    {"aclnnFlashAttentionVarLenScoreV4", score<kLengths | kLayoutOfRows>},
    {"aclnnFlashAttentionScoreGrad", score_grad<kScore>},
    {"aclnnFlashAttentionScoreGradV2", score_grad<kStarts>},
    {"aclnnFlashAttentionUnpaddingScoreGrad", score_grad<kLengths>},
    {"aclnnFlashAttentionUnpaddingScoreGradV2", score_grad<kLengths | kStarts>},
    {"aclnnFlashAttentionUnpaddingScoreGradV3", score_grad<kLengths | kStarts | kRope>},
    {"aclnnFlashAttentionUnpaddingScoreGradV4", score_grad<kLengths | kLayoutOfRows>},
};

}  // namespace

}  // namespace cann_sim
