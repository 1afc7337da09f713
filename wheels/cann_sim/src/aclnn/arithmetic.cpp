// aclnn functions of arithmetic, reductions and losses that are no single aten operator.

#include "pch.h"

#include "aclnn/adapter.h"
#include "compute/formulas.h"

namespace cann_sim {

namespace {

// (number, tensor, alpha, out)
void add_to_number(const Value *v) {
    write(v[3], at::add(at::scalar_tensor(scalar(v[0]), tensor(v[1]).options()), tensor(v[1]), scalar(v[2])));
}

// ---- division: mode is 0 none, 1 to zero, 2 down ----

std::optional<c10::string_view> rounding(const Value &mode) {
    TORCH_CHECK(mode.i >= 0 && mode.i <= 2, "mode is ", mode.i, ", and must be 0, 1 or 2");
    return mode.i == 0 ? std::nullopt : std::optional<c10::string_view>(mode.i == 1 ? "trunc" : "floor");
}
at::Tensor divided(const Value *v) {
    return v[1].kind == Value::kScalar ? at::div(tensor(v[0]), scalar(v[1]), rounding(v[2]))
                                       : at::div(tensor(v[0]), tensor(v[1]), rounding(v[2]));
}
void divide(const Value *v) { write(v[3], divided(v)); }
void divide_in_place(const Value *v) { write(v[0], divided(v)); }

// (self, dims, keep?, smallest, largest)
void min_and_max(const Value *v) {
    const at::Tensor self = tensor(v[0]);
    write(v[3], at::amin(self, v[1].ints(), v[2].i != 0));
    write(v[4], at::amax(self, v[1].ints(), v[2].i != 0));
}

// (gradient, self, target, reduction, out)
void l1_loss_gradient(const Value *v) {
    write(v[4], l1_loss_backward(tensor(v[0]), tensor(v[1]), tensor(v[2]), v[3].i));
}
// (gradient, self, target, reduction, logarithm?, out)
void kl_div_gradient(const Value *v) {
    write(v[5], kl_div_backward(tensor(v[0]), tensor(v[1]), tensor(v[2]), v[3].i, v[4].i != 0));
}
// (self, target, weight, weight of positives, reduction, out)
void bce_with_logits_loss(const Value *v) {
    write(v[5], bce_with_logits(tensor(v[0]), tensor(v[1]), tensor(v[2]), tensor(v[3]), v[4].i));
}
// (gradient, self, target, weight, weight of positives, reduction, out)
void bce_with_logits_gradient(const Value *v) {
    write(v[6], bce_with_logits_backward(tensor(v[0]), tensor(v[1]), tensor(v[2]), tensor(v[3]), tensor(v[4]), v[5].i));
}

// (log probabilities, targets, input lengths, target lengths, blank, no infinities?, losses, alphas); a card rounds the last
// size of the alphas up, and what is beyond ours is not read again
void ctc_loss(const Value *v) {
    const auto [losses, alphas] =
        at::_ctc_loss(tensor(v[0]), tensor(v[1]), v[2].ints(), v[3].ints(), v[4].i, v[5].i != 0);
    write(v[6], losses);
    at::Tensor room = tensor(v[7]);
    TORCH_CHECK(room.dim() == 3 && room.size(2) >= alphas.size(2), "no room for alphas of shape ", alphas.sizes());
    room.zero_().narrow(2, 0, alphas.size(2)).copy_(alphas);
}

// (gradient, self, weight, gradient of self, gradient of the weight, which has one number or one per channel)
void prelu_gradient(const Value *v) {
    const at::Tensor self = tensor(v[1]), weight = tensor(v[2]);
    std::vector<int64_t> sizes(static_cast<size_t>(self.dim()), 1);
    if (weight.numel() > 1) {
        sizes[self.dim() > 1 ? 1 : 0] = weight.numel();
    }
    const auto [of_self, of_weight] = at::_prelu_kernel_backward(tensor(v[0]), self, weight.reshape(sizes));
    write(v[3], of_self);
    write(v[4], of_weight.sum_to_size(sizes).reshape(weight.sizes()));
}

// (gradient, self, buffer, out); a card's forward pass leaves the buffer empty
void log_sigmoid_gradient(const Value *v) {
    const at::Tensor self = tensor(v[1]);
    write(v[3], at::log_sigmoid_backward(tensor(v[0]), self, std::get<1>(at::log_sigmoid_forward(self))));
}

// (x, mask, scale, mask the upper triangle?, out): what is masked counts as -10000. Where a row has a number that is not as
// low, that is 0 beside it, as in the CPU's own.
void masked_softmax(const Value *v) {
    TORCH_CHECK(v[3].i == 0, "fixedTriuMask is true, and must be false");
    const at::Tensor x = tensor(v[0]), scaled = v[2].d == 1 ? x : x * v[2].d;
    TORCH_CHECK(x.size(3) > 0 && x.size(3) <= 4096, "x has ", x.size(3), " columns, and must have 1 to 4096");
    const at::Tensor mask = tensor(v[1]).expand(x.sizes()).contiguous();
    const at::Tensor low = scaled.masked_fill(mask, -INFINITY).amax(-1, true) < -9800;
    const at::Tensor filled = scaled.to(at::kFloat).masked_fill(mask, -10000.);
    write(v[4], at::where(low, filled.softmax(-1), at::_masked_softmax(scaled, mask, -1, 2).to(at::kFloat)));
}

// (self, mode, Q, R): mode is 0 reduced, 1 complete, 2 r. The CPU has no half precision.
void qr(const Value *v) {
    TORCH_CHECK(v[1].i >= 0 && v[1].i <= 2, "mode is ", v[1].i, ", and must be 0, 1 or 2");
    const at::Tensor self = tensor(v[0]);
    const auto [q, r] =
        at::linalg_qr(self.scalar_type() == at::kHalf ? self.to(at::kFloat) : self, v[1].i == 0   ? "reduced"
                                                                                    : v[1].i == 1 ? "complete"
                                                                                                  : "r");
    write(v[2], q);
    write(v[3], r);
}

// ---- lists of tensors ----

std::vector<at::Tensor> tensors(const Value &list) {
    std::vector<at::Tensor> result;
    for (const aclTensor *item : list.tensors()) {
        result.push_back(tensor(Value(item)));
    }
    return result;
}
void write_all(const Value &out, const std::vector<at::Tensor> &results) {
    for (size_t i = 0; i < results.size(); ++i) {
        write(Value(out.tensors().at(i)), results[i]);
    }
}
// (first, number as a tensor, out)
template <std::vector<at::Tensor> (*Operator)(at::TensorList, const at::Scalar &)>
void with_number(const Value *v) {
    write_all(v[2], Operator(tensors(v[0]), tensor(v[1]).item()));
}
// (first, second, alpha as a tensor, out)
template <std::vector<at::Tensor> (*Operator)(at::TensorList, at::TensorList, const at::Scalar &)>
void with_list(const Value *v) {
    write_all(v[3], Operator(tensors(v[0]), tensors(v[1]), tensor(v[2]).item()));
}
void copy_lists(const Value *v) { write_all(v[1], tensors(v[0])); }

const ComputationRegistration registered{
    {"aclnnAddV3", add_to_number},
    {"aclnnDivMod", divide},
    {"aclnnDivMods", divide},
    {"aclnnInplaceDivMod", divide_in_place},
    {"aclnnInplaceDivMods", divide_in_place},
    {"aclnnAminmax", min_and_max},
    {"aclnnL1LossBackward", l1_loss_gradient},
    {"aclnnKlDivBackward", kl_div_gradient},
    {"aclnnBinaryCrossEntropyWithLogits", bce_with_logits_loss},
    {"aclnnBinaryCrossEntropyWithLogitsBackward", bce_with_logits_gradient},
    {"aclnnPreluBackward", prelu_gradient},
    {"aclnnLogSigmoidBackward", log_sigmoid_gradient},
    {"aclnnCtcLoss", ctc_loss},
    {"aclnnScaledMaskedSoftmax", masked_softmax},
    {"aclnnLinalgQr", qr},
    {"aclnnForeachAddScalar", with_number<at::_foreach_add>},
    {"aclnnForeachSubScalar", with_number<at::_foreach_sub>},
    {"aclnnForeachPowScalar", with_number<at::_foreach_pow>},
    {"aclnnForeachMinimumScalar", with_number<at::_foreach_minimum>},
    {"aclnnForeachMaximumScalar", with_number<at::_foreach_maximum>},
    {"aclnnForeachAddList", with_list<at::_foreach_add>},
    {"aclnnForeachSubList", with_list<at::_foreach_sub>},
    {"aclnnForeachCopy", copy_lists},
};

}  // namespace

}  // namespace cann_sim
