// ACL operators of optimizers, and of AMP's overflow check.
// Prototypes: CANN's operator IR (nn_training_ops.h, npu_loss_scale_ops.h) and op-plugin's calls; formulas: Adam, AdamW.

#include "pch.h"

#include "acl/operators.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

double number(const OpCall &op, size_t index) { return op.input(index).to(at::kDouble).reshape({}).item<double>(); }

// The first three inputs (var, m, v) are also the outputs, in one memory or in two.
struct Moments {
    at::Tensor var, m, v;
};

Moments moments_of(OpCall &op, const at::Tensor &gradient, double beta1, double beta2) {
    return {floats(op.input(0)), floats(op.input(1)) * beta1 + gradient * (1 - beta1),
            floats(op.input(2)) * beta2 + gradient * gradient * (1 - beta2)};
}

void write(OpCall &op, const Moments &updated) {
    op.output(0).copy_(updated.var);
    op.output(1).copy_(updated.m);
    op.output(2).copy_(updated.v);
}

// ApplyAdamD(var, m, v, beta1_power, beta2_power, lr, beta1, beta2, epsilon, gradient): Adam as TensorFlow has it, with
// epsilon outside of the correction of v.
void apply_adam(OpCall &op) {
    op.require(!op.get_bool("use_nesterov", false), "use_nesterov is not simulated");
    Moments next = moments_of(op, floats(op.input(9)), number(op, 6), number(op, 7));
    const double rate = number(op, 5) * std::sqrt(1 - number(op, 4)) / (1 - number(op, 3));
    next.var = next.var - rate * next.m / (next.v.sqrt() + number(op, 8));
    write(op, next);
}

// ApplyAdamW(var, m, v, beta1_power, beta2_power, lr, weight_decay, beta1, beta2, epsilon, gradient, max_grad_norm or none):
// beta1_power and beta2_power are those of the step before, as torch's step - 1.
void apply_adam_w(OpCall &op) {
    op.require(!op.get_bool("amsgrad", false), "amsgrad is not simulated (nor supported by CANN)");
    const at::Tensor gradient = floats(op.input(10)) * (op.get_bool("maximize", false) ? -1 : 1);
    const double rate = number(op, 5), beta1 = number(op, 7), beta2 = number(op, 8);
    Moments next = moments_of(op, gradient, beta1, beta2);
    const double correction1 = 1 - number(op, 3) * beta1, correction2 = 1 - number(op, 4) * beta2;
    next.var = next.var * (1 - rate * number(op, 6)) -
               rate / correction1 * next.m / ((next.v / correction2).sqrt() + number(op, 9));
    write(op, next);
}

// ApplyAdamV2(var, m, v, lr, beta1, beta2, epsilon, gradient, max_grad_norm, global_grad_norm, weight_decay, step_size or
// nothing): Adam of BERT, without corrections of bias. How it clips the gradient is not documented.
void apply_adam_of_bert(OpCall &op) {
    op.require(op.get_string("adam_mode", "adam") == "adam", "adam_mode must be adam here");
    const double most = number(op, 8);
    op.require(most <= 0 || number(op, 9) <= most, "clipping by global_grad_norm is not simulated");
    Moments next = moments_of(op, floats(op.input(7)), number(op, 4), number(op, 5));
    const at::Tensor update = next.m / (next.v.sqrt() + number(op, 6)) + number(op, 10) * next.var;
    next.var = next.var - number(op, 3) * update;
    write(op, next);
}

// ---- the device's flag of overflows: NPUAllocFloatStatus() -> 8 zeros, NPUClearFloatStatus…, NPUGetFloatStatus… ----
// In INF/NaN mode, the default of A2 and A3, an overflow is an infinity and never raises the flag. The flag of the
// saturation mode is not simulated, and to answer 0 there would be a lie. Nor is the flag for debugging: whether an infinity
// raises it is not documented, so it can be cleared here and not read.

void no_status(OpCall &op) {
    for (size_t i = 0; i < op.num_outputs(); ++i) {
        op.output(i).zero_();
    }
}

void get_status(OpCall &op) {
    op.require(!overflow_saturates(),
               "the flag of an overflow in saturation mode is not simulated: look for infinities in the result");
    no_status(op);
}

const Registration registered{
    {"ApplyAdamD", apply_adam},           {"ApplyAdamV2", apply_adam_of_bert},     {"ApplyAdamW", apply_adam_w},
    {"NPUAllocFloatStatus", no_status},   {"NPUClearFloatDebugStatus", no_status}, {"NPUClearFloatStatus", no_status},
    {"NPUClearFloatStatusV2", no_status}, {"NPUGetFloatStatus", get_status},       {"NPUGetFloatStatusV2", get_status},
};

}  // namespace

}  // namespace cann_sim
