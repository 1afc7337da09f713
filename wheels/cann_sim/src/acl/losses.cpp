// ACL operators of losses.
// Prototypes, formulas and limits: CANN's operator specifications and the READMEs of ops-cv and ops-nn; where those
// leave something open, the comment says what is assumed. Half precision is computed in float32 and rounded once.

#include "pch.h"

#include <limits>

#include "acl/operators.h"

namespace cann_sim {

namespace {

// `target` is one-hot (of SigmoidFocalLossGrad: its complement) and int32, `weight` per element; no reduction here.

struct Focal {
    at::Tensor pred, target, weight;
    float gamma, alpha;
};

Focal focal(OpCall &op, size_t weight) {
    require_filled(op);
    const at::Tensor &pred = op.input(0), &target = op.input(1);
    op.require(op.get_string("reduction", "mean") == "none", "reduction must be none here");
    op.require(target.scalar_type() == at::kInt,
               std::string("target must be int32, not ") + toString(target.scalar_type()));
    op.require(pred.dim() == 2 && target.sizes() == pred.sizes(), "pred and target must be matrices of one shape");
    op.require(op.input(weight).sizes() == pred.sizes(), "weight must have the shape of pred");
    return {floats(pred), floats(target), floats(op.input(weight)), static_cast<float>(op.get_float("gamma", 2)),
            static_cast<float>(op.get_float("alpha", 0.25))};
}

void sigmoid_focal_loss(OpCall &op) {
    const Focal f = focal(op, 2);
    const at::Tensor p = f.pred.sigmoid(), tiny = at::full({}, std::numeric_limits<float>::min());
    const at::Tensor positive = -f.alpha * (1 - p).pow(f.gamma) * at::maximum(p, tiny).log();
    const at::Tensor negative = -(1 - f.alpha) * p.pow(f.gamma) * at::maximum(1 - p, tiny).log();
    op.output(0).copy_((f.target * positive + (1 - f.target) * negative) * f.weight);
}

// SigmoidFocalLossGrad(pred, complement of target, dout, weight)
void sigmoid_focal_loss_grad(OpCall &op) {
    const Focal f = focal(op, 3);
    const at::Tensor p = f.pred.sigmoid(), q = 1 - p, tiny = at::full({}, std::numeric_limits<float>::min());
    const at::Tensor positive =
        f.alpha * (f.gamma * p * q.pow(f.gamma) * at::maximum(p, tiny).log() - q.pow(f.gamma + 1));
    const at::Tensor negative =
        (1 - f.alpha) * (p.pow(f.gamma + 1) - f.gamma * p.pow(f.gamma) * q * at::maximum(q, tiny).log());
    op.output(0).copy_((positive * (1 - f.target) + negative * f.target) * floats(op.input(2)) * f.weight);
}

// SoftmaxFocalLoss(pred after softmax, target, weight) -> the shape of pred, every element of a row that row's loss.
void softmax_focal_loss(OpCall &op) {
    const Focal f = focal(op, 2);
    const at::Tensor entropy = (-f.pred.log() * f.target * f.weight).sum(-1, true);
    const at::Tensor factor = (f.alpha * (1 - f.pred).pow(f.gamma) * f.target).sum(-1, true);
    op.output(0).copy_((entropy * factor).expand_as(f.pred));
}

// SoftmaxFocalLossGrad(pred after softmax, target, dout, weight): with respect to what went into the softmax.
void softmax_focal_loss_grad(OpCall &op) {
    const Focal f = focal(op, 3);
    const at::Tensor p = (f.pred * f.target).sum(-1, true), weight = (f.weight * f.target).sum(-1, true);
    const at::Tensor slope = f.alpha * (f.gamma * (1 - p).pow(f.gamma - 1) * p * p.log() - (1 - p).pow(f.gamma));
    op.output(0).copy_(slope * weight * (f.target - f.pred) * floats(op.input(2)));
}

// SoftmaxCrossEntropyWithLogits(logits [N, C], labels [N, C]) -> (loss [N], gradient of its sum [N, C])
void softmax_cross_entropy(OpCall &op) {
    const at::Tensor logits = floats(op.input(0)), labels = floats(op.input(1));
    const at::Tensor logs = at::log_softmax(logits, -1);
    op.output(0).copy_(-(labels * logs).sum(-1).view(op.output(0).sizes()));
    op.output(1).copy_(logs.exp() - labels);
}

const Registration registered{
    {"SigmoidFocalLoss", sigmoid_focal_loss},
    {"SigmoidFocalLossGrad", sigmoid_focal_loss_grad},
    {"SoftmaxFocalLoss", softmax_focal_loss},
    {"SoftmaxFocalLossGrad", softmax_focal_loss_grad},
    {"SoftmaxCrossEntropyWithLogits", softmax_cross_entropy},
};

}  // namespace

}  // namespace cann_sim
