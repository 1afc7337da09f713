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
void check_words(const Given &g, int parts) {
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
    TORCH_CHECK(g.query_rope.defined() == g.key_rope.defined() && (!g.query_rope.defined() || g.packed()),
                "query_rope and key_rope come together, and with TND only");
    TORCH_CHECK((parts & kGrad) == 0 || (g.maximum.defined() && g.sum.defined() && g.output.defined()),
                "the gradient needs softmax_max, softmax_sum and attention_in of the forward pass");
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

    bool is_empty() const { return rows == 0 || keys == 0; }
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
at::Tensor statistics(const at::Tensor &whole, const Sequence &s, const Given &g) {
    if (!g.packed()) {
        return whole;
    }
    if (g.layout_of_rows == "same_as_input") {
        return s.of_rows(whole.transpose(0, 1).unsqueeze(0));
    }
    return whole.view(-1).narrow(0, s.row * g.heads * 8, s.rows * g.heads * 8).view({1, g.heads, s.rows, 8});
}

// ---- what is added to the scores ----

at::Tensor shift_of(const Given &g, const Sequence &s, int64_t batch, int64_t all_keys) {
    const at::Tensor &shift = g.shift;
    if (g.packed()) {
        const bool by_row = shift.numel() != g.heads * all_keys;
        TORCH_CHECK(shift.dim() == 1, "pse of TND with ", shift.dim(), " dimensions is not simulated (1 is)");
        const int64_t first = by_row ? s.score : g.heads * s.key, rows = by_row ? s.rows : 1;
        TORCH_CHECK(first + g.heads * rows * s.keys <= shift.numel(), "pse has ", shift.numel(),
                    " elements, too few for the scores of all sequences");
        return shift.narrow(0, first, g.heads * rows * s.keys).view({1, g.heads, rows, s.keys});
    }
    const bool fits = shift.dim() == 4 && (shift.size(0) == batch || shift.size(0) == 1) && shift.size(1) == g.heads &&
                      (shift.size(2) == s.rows || shift.size(2) == 1) && shift.size(3) == s.keys;
    TORCH_CHECK(fits, "pse must have shape [", batch, " or 1, ", g.heads, ", ", s.rows, " or 1, ", s.keys, "], not ",
                shift.sizes(), " (the last 1024 rows alone are not simulated)");
    return shift;
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

// The modes 2, 3 and 4 know the mask; a card reads it all the same.
void check_triangle(const at::Tensor &mask) {
    static const at::Tensor triangle = at::ones({kTriangle, kTriangle}, at::kBool).triu(1);
    TORCH_CHECK(at::equal(mask.to(at::kBool), triangle.expand_as(mask)),
                "atten_mask of sparse_mode 2, 3 and 4 must be 1 above the diagonal and 0 elsewhere, as "
                "torch.triu(torch.ones(2048, 2048), 1)");
}

// Row i sees the keys from i - before to i + after.
struct Band {
    int64_t before, after;
};

Band band_of(const Given &g, const Sequence &s) {
    const int64_t shift = s.keys - s.rows;  // the modes 3 and 4 count from the lower right corner
    Band band{s.rows, s.keys};
    switch (g.mode) {
        case 0: band = {g.before, g.after}; break;
        case 2: band.after = 0; break;
        case 3: band.after = shift; break;
        case 4: band = {g.before - shift, g.after + shift}; break;
        default: break;
    }
    TORCH_CHECK(g.mode != 3 || !g.packed() || shift >= 0, "sparse_mode 3 of TND needs as many keys as rows, not ",
                s.keys, " for ", s.rows, " (sequence ", s.index, ")");
    TORCH_CHECK(band.before + band.after >= 0, "pre_tockens ", g.before, " and next_tockens ", g.after,
                " leave no key");
    return band;
}

// Takes what a row does not see, by the mode and the mask, out of the scores.
void hide(Attention &a, const Given &g, const Sequence &s, const std::vector<Sequence> &all) {
    const auto [before, after] = band_of(g, s);
    at::Tensor blocked = g.mode < 2 ? mask_of(g, s, all).to(at::kBool) : at::Tensor();
    a.causal = after == 0 && before >= s.rows - 1;
    if (!a.causal && (before < s.rows - 1 || after < s.keys - 1)) {
        const int64_t limit = s.rows + s.keys;  // beyond it is nothing
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

// ---- a call ----

// A call's tensors with heads first; until `attention` nothing reads what is in them.
struct Problem {
    Given given;
    int64_t group;  // query heads per key head
    at::Tensor query, query_rope, key, key_rope, value;
    std::vector<Sequence> all;

    Problem(const Value *v, int parts) : given(read(v, parts)) {
        check_words(given, parts);
        const int64_t fewer = key_heads(given);
        TORCH_CHECK(fewer > 0 && given.heads % fewer == 0, "head_num ", given.heads, " is no multiple of the ", fewer,
                    " heads of key");
        group = given.heads / fewer;
        query = heads_first(given.query, given, given.heads);
        query_rope = heads_first(given.query_rope, given, given.heads);
        key = heads_first(given.key, given, fewer);
        key_rope = heads_first(given.key_rope, given, fewer);
        value = heads_first(given.value, given, fewer);
        check_shapes();
        all = sequences(given, query.size(2), key.size(2));
    }

    // What each sequence demands of the masks: for the first phase of a call.
    void check_masks() const {
        const bool whole = given.mask.defined() && given.mode >= 2;
        TORCH_CHECK(
            !whole || (given.mask.dim() >= 2 && given.mask.size(-1) == kTriangle && given.mask.size(-2) == kTriangle),
            "atten_mask of sparse_mode ", given.mode, " must have shape [2048, 2048], not ", given.mask.sizes());
        for (const Sequence &s : all) {
            if (given.shift.defined()) {
                shift_of(given, s, query.size(0), key.size(2));
            }
            if (given.mask.defined() && !s.is_empty()) {
                band_of(given, s);
                if (given.mode < 2) {
                    mask_of(given, s, all);
                }
            }
        }
        const Sequence &last = all.back();
        const int64_t scores = last.score + query.size(0) * given.heads * last.rows * last.keys;
        TORCH_CHECK(!given.kept.defined() || given.kept.numel() * 8 >= scores, "dropout's mask has ",
                    given.kept.numel(), " bytes, too few for ", scores, " scores");
    }

    Attention attention(const Sequence &s) const {
        const auto repeated = [this](const at::Tensor &tensor) {
            return group == 1 ? tensor : tensor.repeat_interleave(group, 1);
        };
        Attention a;
        a.query = s.of_rows(query);
        a.key = s.of_keys(key);
        if (query_rope.defined()) {
            a.query = at::cat({a.query, s.of_rows(query_rope)}, -1);
            a.key = at::cat({a.key, s.of_keys(key_rope)}, -1);
        }
        a.key = repeated(a.key);
        a.value = repeated(s.of_keys(value));
        a.scale = given.scale;
        if (given.shift.defined()) {
            const at::Tensor shift = shift_of(given, s, query.size(0), key.size(2)).expand({-1, -1, s.rows, -1});
            a.bias = given.shift_type == 1 ? shift * given.scale : shift;
        }
        if (given.mask.defined()) {  // without one no mode has a meaning
            hide(a, given, s, all);
        }
        if (a.bias.defined()) {
            a.bias = a.bias.to(query.scalar_type());
        }
        if (given.kept.defined()) {
            a.kept = given.kept.contiguous();
            a.first_bit = s.score;
            a.keep = given.keep;
        }
        return a;
    }

    void check_triangle() const {
        if (given.mask.defined() && given.mode >= 2) {
            cann_sim::check_triangle(given.mask);
        }
    }

private:
    void check_shapes() const {
        TORCH_CHECK(query.size(1) == given.heads, "head_num is ", given.heads, ", and query has ", query.size(1));
        TORCH_CHECK(query.size(-1) == key.size(-1) && value.size(-1) <= key.size(-1),
                    "query and key have equally many channels, value no more; not ", query.size(-1), ", ", key.size(-1),
                    " and ", value.size(-1));
        TORCH_CHECK(query.size(0) == key.size(0) && key.sizes().slice(0, 3) == value.sizes().slice(0, 3),
                    "the shapes of query, key and value do not fit: ", given.query.sizes(), ", ", given.key.sizes(),
                    " and ", given.value.sizes());
    }
};

template <int parts>
void check(const Value *v) {
    Problem(v, parts).check_masks();
}

template <int parts>
void score(const Value *v) {
    const Problem problem(v, parts);
    problem.check_triangle();
    const Given &g = problem.given;
    for (const at::Tensor &tensor : {g.output, g.maximum, g.sum}) {
        tensor.zero_();  // for what belongs to no sequence, or has no key
    }
    const at::Tensor result = heads_first(g.output, g, g.heads);
    for (const Sequence &s : problem.all) {
        if (s.is_empty() || result.numel() == 0) {
            continue;
        }
        const auto [output, rows] = attend(problem.attention(s));
        s.of_rows(result).copy_(output);
        statistics(g.maximum, s, g).copy_(rows.maximum.unsqueeze(-1));
        statistics(g.sum, s, g).copy_(rows.sum.unsqueeze(-1));
    }
}

template <int parts>
void score_grad(const Value *v) {
    const Problem problem(v, parts);
    problem.check_triangle();
    const Given &g = problem.given;
    const int64_t heads = g.heads, fewer = heads / problem.group, channels = problem.query.size(-1);
    const at::Tensor output = heads_first(g.output, g, heads), grad = heads_first(g.grad, g, heads);
    const at::Tensor maximum = g.maximum.contiguous(), sum = g.sum.contiguous();
    const at::Tensor grad_query = heads_first(g.grad_query, g, heads), grad_key = heads_first(g.grad_key, g, fewer),
                     grad_value = heads_first(g.grad_value, g, fewer),
                     grad_query_rope = heads_first(g.grad_query_rope, g, heads),
                     grad_key_rope = heads_first(g.grad_key_rope, g, fewer);
    for (const at::Tensor &tensor : {grad_query, grad_query_rope, grad_key, grad_key_rope, grad_value}) {
        if (tensor.defined()) {
            tensor.zero_();
        }
    }
    if (g.grad_shift.defined()) {
        g.grad_shift.fill_(NAN);  // reserved: a card writes nothing there
    }
    const auto grouped = [&](const at::Tensor &tensor) {
        return problem.group == 1 ? tensor : tensor.unflatten(1, {-1, problem.group}).sum(2);
    };
    for (const Sequence &s : problem.all) {
        if (s.is_empty() || grad.numel() == 0) {
            continue;
        }
        const Rows rows{statistics(maximum, s, g).select(-1, 0), statistics(sum, s, g).select(-1, 0)};
        const Gradients found = attend_backward(problem.attention(s), rows, s.of_rows(output), s.of_rows(grad));
        const at::Tensor found_key = grouped(found.key);
        s.of_rows(grad_query).copy_(found.query.narrow(-1, 0, channels));
        s.of_keys(grad_key).copy_(found_key.narrow(-1, 0, channels));
        s.of_keys(grad_value).copy_(grouped(found.value));
        if (grad_query_rope.defined()) {
            const int64_t more = grad_query_rope.size(-1);
            s.of_rows(grad_query_rope).copy_(found.query.narrow(-1, channels, more));
            s.of_keys(grad_key_rope).copy_(found_key.narrow(-1, channels, more));
        }
    }
}

const ComputationRegistration registered{
    {"aclnnFlashAttentionScore", score<kScore>, check<kScore>},
    {"aclnnFlashAttentionScoreV2", score<kStarts>, check<kStarts>},
    {"aclnnFlashAttentionVarLenScore", score<kLengths>, check<kLengths>},
    {"aclnnFlashAttentionVarLenScoreV2", score<kLengths | kStarts>, check<kLengths | kStarts>},
    {"aclnnFlashAttentionVarLenScoreV3", score<kLengths | kStarts | kRope>, check<kLengths | kStarts | kRope>},
    {"aclnnFlashAttentionVarLenScoreV4", score<kLengths | kLayoutOfRows>, check<kLengths | kLayoutOfRows>},
    {"aclnnFlashAttentionScoreGrad", score_grad<kGrad>, check<kGrad>},
    {"aclnnFlashAttentionScoreGradV2", score_grad<kGrad | kStarts>, check<kGrad | kStarts>},
    {"aclnnFlashAttentionUnpaddingScoreGrad", score_grad<kGrad | kLengths>, check<kGrad | kLengths>},
    {"aclnnFlashAttentionUnpaddingScoreGradV2", score_grad<kGrad | kLengths | kStarts>,
     check<kGrad | kLengths | kStarts>},
    {"aclnnFlashAttentionUnpaddingScoreGradV3", score_grad<kGrad | kLengths | kStarts | kRope>,
     check<kGrad | kLengths | kStarts | kRope>},
    {"aclnnFlashAttentionUnpaddingScoreGradV4", score_grad<kGrad | kLengths | kLayoutOfRows>,
     check<kGrad | kLengths | kLayoutOfRows>},
};

}  // namespace

}  // namespace cann_sim
