// NPUFlashAttention, which ATC registers on top of ONNX (GE's FlashAttentionScore), by its plain formula:
//     softmax(scale (q k^T + real_shift), masked) v

#include "pch.h"

#include <limits>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

// Any layout to [batch, heads, length, channels].
at::Tensor by_heads(Call &call, const at::Tensor &x, const std::string &layout, int64_t heads) {
    if (layout == "BNSD") {
        return x;
    }
    if (layout == "BSND") {
        return x.transpose(1, 2);
    }
    call.require((layout == "BSH" || layout == "SBH") && x.dim() == 3 && heads > 0 && x.size(2) % heads == 0,
                 "input_layout must be BSH, SBH, BNSD or BSND, with head_num heads");
    const at::Tensor split = x.view({x.size(0), x.size(1), heads, x.size(2) / heads});
    return layout == "BSH" ? split.permute({0, 2, 1, 3}) : split.permute({1, 2, 0, 3});
}

// query, key, value, real_shift, drop_mask, padding_mask, atten_mask (1: left out)
void flash_attention(Call &call) {
    const std::string layout = call.text("input_layout", "BSH");
    const int64_t heads = call.integer("head_num", 1);
    call.require(!call.has(4) && !call.has(5), "drop_mask and padding_mask are not simulated");
    call.require(call.number("keep_prob", 1) == 1 && call.integer("sparse_mode", 0) == 0,
                 "keep_prob and sparse_mode are not simulated");
    const at::Tensor query = by_heads(call, call.input(0).contiguous(), layout, heads);
    const at::Tensor key = by_heads(call, call.input(1).contiguous(), layout, heads);
    const at::Tensor value = by_heads(call, call.input(2).contiguous(), layout, heads);
    at::Tensor scores = at::matmul(query, key.transpose(-2, -1));
    if (call.has(3)) {
        scores.add_(call.input(3));
    }
    scores.mul_(call.number("scale_value", 1));
    if (call.has(6)) {
        scores.masked_fill_(call.raw(6).to(at::kBool), -std::numeric_limits<float>::infinity());
    }
    at::softmax_out(scores, scores, -1);
    const at::Tensor result = at::matmul(scores, value);
    const at::Tensor rows = layout == "BNSD"  ? result
                            : layout == "SBH" ? result.permute({2, 0, 1, 3})
                                              : result.transpose(1, 2);
    call.output(rows.reshape(call.result().shape));
}

const Registration registered{{"NPUFlashAttention", flash_attention}};

}  // namespace

}  // namespace cann_sim::executor
