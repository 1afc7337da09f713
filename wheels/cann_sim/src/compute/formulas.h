// Formulas that more than one of CANN's interfaces, or of the levels, computes by. Losses that a card computes in another way,
// and gradients that only torch_npu has as operators, are at level aten over NPU tensors, at level aclnn over CPU tensors; the
// others are over CPU tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

namespace cann_sim {

// In at least float32; undefined stays so.
at::Tensor wide(const at::Tensor &tensor);

at::Tensor l1_loss_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &target,
                            int64_t reduction);
at::Tensor kl_div_backward(const at::Tensor &gradient, const at::Tensor &, const at::Tensor &target, int64_t reduction,
                           bool log_target);
// Of CPU tensors: the CPU's own, but half precision in float32 and rounded once, as by CANN's kernel
// (sigmoid_cross_entropy_with_logits_v2).
at::Tensor bce_with_logits(const at::Tensor &input, const at::Tensor &target, const at::Tensor &weight,
                           const at::Tensor &positive, int64_t reduction);
at::Tensor bce_with_logits_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &target,
                                    const std::optional<at::Tensor> &weight, const std::optional<at::Tensor> &positive,
                                    int64_t reduction);
// Of `input` only the shape and the data type count.
at::Tensor repeat_interleave_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &repeats,
                                      std::optional<int64_t> dim);

// Rotary position embedding: cos x + sin rotated(x). What is turned: the halves of the last dimension, (-second, first), or
// its neighbours, (-x1, x0, -x3, x2, …).
at::Tensor rotated(const at::Tensor &x, bool neighbours);
at::Tensor rotary_mul(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin, bool neighbours);
// The gradient of x, and those of cos and sin, of the sizes that these had.
at::Tensor rotary_mul_backward(const at::Tensor &gradient, const at::Tensor &cos, const at::Tensor &sin,
                               bool neighbours);
std::pair<at::Tensor, at::Tensor> rotary_factors_backward(const at::Tensor &gradient, const at::Tensor &x,
                                                          at::IntArrayRef cos, at::IntArrayRef sin, bool neighbours);

// Masks of dropout, and signs, as bits: a bit per element, the lowest of a byte first. `bytes` (uint8, contiguous) has room for
// flags.numel() bits; those behind them become 0.
void pack_bits(const at::Tensor &flags, at::Tensor &bytes);
// `count` bits from the `first` on, as 0 and 1 (uint8).
at::Tensor unpack_bits(const at::Tensor &bytes, int64_t first, int64_t count);
// How many bytes a mask of dropout has: its bits are padded to 128.
int64_t bytes_of_mask(int64_t count);
// x with dropout by a mask of bits; what stays is divided by `keep`.
at::Tensor dropped_out(const at::Tensor &x, const at::Tensor &mask, double keep);

// Scales of quantised products: float32 or bfloat16, or an integer that holds a float32 in its lower half
// (npu_trans_quant_param).
at::Tensor scales(const at::Tensor &scale);

// Per batch b, self[b] takes updates[b] at indices[b] along axis. The check throws, by shapes alone, if there is not one
// index per batch, or axis is the batch's.
void check_scatter_by_batch(const at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates, int64_t axis);
void scatter_by_batch(const at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates, int64_t axis);

}  // namespace cann_sim
