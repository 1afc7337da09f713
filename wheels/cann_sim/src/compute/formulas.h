// Gradients of losses that only torch_npu has as operators; at level aten over NPU tensors, at level aclnn over CPU tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace cann_sim {

at::Tensor l1_loss_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &target,
                            int64_t reduction);
at::Tensor kl_div_backward(const at::Tensor &gradient, const at::Tensor &, const at::Tensor &target, int64_t reduction,
                           bool log_target);
at::Tensor bce_with_logits_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &target,
                                    const std::optional<at::Tensor> &weight, const std::optional<at::Tensor> &positive,
                                    int64_t reduction);

}  // namespace cann_sim
