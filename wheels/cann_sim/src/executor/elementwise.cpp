// Operators element by element: arithmetic, comparisons, activations. Formulas and defaults are ONNX's.
// An input that dies here is written in place, which spares the memory traffic of a new tensor.

#include "pch.h"

#include <cmath>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

// ---- one input ----

template <at::Tensor &(*in_place)(at::Tensor &)>
void unary(Call &call) {
    at::Tensor x = call.writable(0);
    call.output(in_place(x));
}

void leaky_relu(Call &call) {
    at::Tensor x = call.writable(0);
    call.output(at::leaky_relu_(x, call.number("alpha", 0.01)));
}

void elu(Call &call) {
    at::Tensor x = call.writable(0);
    call.output(at::elu_(x, call.number("alpha", 1)));
}

void prelu(Call &call) {
    const at::Tensor x = call.input(0);
    call.output(at::where(x < 0, x * call.input(1), x));
}

void hard_sigmoid(Call &call) {
    at::Tensor x = call.writable(0);
    call.output(x.mul_(call.number("alpha", 0.2)).add_(call.number("beta", 0.5)).clamp_(0, 1));
}

void hard_swish(Call &call) {
    const at::Tensor x = call.input(0);
    call.output(x * (x / 6 + 0.5).clamp_(0, 1));
}

void softplus(Call &call) {
    const at::Tensor x = call.input(0);
    call.output(x.clamp_min(0) + x.abs().neg_().exp_().log1p_());
}

void softsign(Call &call) {
    const at::Tensor x = call.input(0);
    call.output(x / (x.abs() + 1));
}

void mish(Call &call) { call.output(at::mish(call.input(0))); }

// Of opset 20; GE's operator of this name is the form with tanh, which the lowering says by `approximate`.
void gelu(Call &call) {
    const std::string form = call.text("approximate", "none");
    call.require(form == "none" || form == "tanh", "approximate must be none or tanh, not " + form);
    at::Tensor x = call.writable(0);
    call.output(at::gelu_(x, form));
}

// x sigmoid(1.702 x), as the ACL operator FastGelu.
void fast_gelu(Call &call) {
    const at::Tensor x = call.input(0);
    call.output((x * 1.702).sigmoid_().mul_(x));
}

void clip(Call &call) {
    at::Tensor x = call.writable(0);
    // Before opset 11 the limits are attributes. The upper one wins where they cross, as in ATen.
    if (call.has(1)) {
        x = x.clamp_min_(call.raw(1).item());
    } else if (call.find("min") != nullptr) {
        x = x.clamp_min_(call.number("min", 0));
    }
    if (call.has(2)) {
        x = x.clamp_max_(call.raw(2).item());
    } else if (call.find("max") != nullptr) {
        x = x.clamp_max_(call.number("max", 0));
    }
    call.output(x);
}

void identity(Call &call) { call.output(call.raw(0)); }

void cast(Call &call) { call.output(call.raw(0)); }  // output() converts

void dropout(Call &call) {
    call.output(call.raw(0));
    if (call.wanted(1)) {
        call.output(at::ones(call.raw(0).sizes(), at::kBool), 1);
    }
}

void is_nan(Call &call) { call.output(at::isnan(call.input(0))); }

void is_inf(Call &call) {
    const at::Tensor x = call.input(0);
    at::Tensor found = at::zeros(x.sizes(), at::kBool);
    if (call.integer("detect_positive", 1) != 0) {
        found = found.logical_or(x == INFINITY);
    }
    if (call.integer("detect_negative", 1) != 0) {
        found = found.logical_or(x == -INFINITY);
    }
    call.output(found);
}

// ---- two inputs ----

using Binary = at::Tensor (*)(const at::Tensor &, const at::Tensor &);

// One number as a scalar: ATen then has no second tensor to walk, and knows squares and roots among powers.
bool is_number(const at::Tensor &tensor, const at::Tensor &other) {
    return tensor.numel() == 1 && tensor.dim() <= other.dim();
}

bool holds_result(Call &call, size_t index) {
    return call.owned(index) && call.raw(index).sizes() == at::IntArrayRef(call.result().shape) &&
           call.raw(0).scalar_type() == call.raw(1).scalar_type();
}

template <typename InPlace, typename Reversed, typename Fresh>
void binary(Call &call, InPlace in_place, Reversed reversed, Fresh fresh) {
    call.input(0);
    call.input(1);
    if (holds_result(call, 0)) {
        at::Tensor x = call.input(0);
        in_place(x, call.input(1));
        call.output(x);
    } else if (holds_result(call, 1)) {
        at::Tensor y = call.input(1);
        reversed(y, call.input(0));
        call.output(y);
    } else {
        call.output(fresh(call.input(0), call.input(1)));
    }
}

void add(Call &call) {
    const auto into = [](at::Tensor &x, const at::Tensor &y) { is_number(y, x) ? x.add_(y.item()) : x.add_(y); };
    binary(call, into, into, [](const at::Tensor &x, const at::Tensor &y) { return at::add(x, y); });
}

void sub(Call &call) {
    binary(
        call, [](at::Tensor &x, const at::Tensor &y) { x.sub_(y); },
        [](at::Tensor &y, const at::Tensor &x) { at::sub_out(y, x, y); },
        [](const at::Tensor &x, const at::Tensor &y) { return at::sub(x, y); });
}

void mul(Call &call) {
    const auto into = [](at::Tensor &x, const at::Tensor &y) { is_number(y, x) ? x.mul_(y.item()) : x.mul_(y); };
    binary(call, into, into, [](const at::Tensor &x, const at::Tensor &y) { return at::mul(x, y); });
}

void div(Call &call) {
    if (!at::isFloatingType(call.raw(0).scalar_type())) {  // integers are cut towards zero
        call.output(at::div(call.raw(0), call.raw(1), "trunc"));
        return;
    }
    binary(
        call, [](at::Tensor &x, const at::Tensor &y) { x.div_(y); },
        [](at::Tensor &y, const at::Tensor &x) { at::div_out(y, x, y); },
        [](const at::Tensor &x, const at::Tensor &y) { return at::div(x, y); });
}

void pow(Call &call) {
    const at::Tensor exponent = call.input(1).to(call.input(0).scalar_type());
    if (is_number(exponent, call.raw(0))) {
        at::Tensor x = call.writable(0);
        call.output(x.pow_(exponent.item()));
    } else {
        call.output(at::pow(call.input(0), exponent));
    }
}

void mod(Call &call) {
    const at::Tensor x = call.input(0), y = call.input(1);
    call.output(call.integer("fmod", 0) != 0 ? at::fmod(x, y) : at::remainder(x, y));
}

template <Binary function>
void plain(Call &call) {
    call.output(function(call.input(0), call.input(1)));
}

// Min, Max, Sum: any number of inputs.
template <Binary function>
void variadic(Call &call) {
    at::Tensor result = call.input(0);
    for (size_t i = 1; i < call.num_inputs(); ++i) {
        result = function(result, call.input(i));
    }
    call.output(result);
}

at::Tensor plus(const at::Tensor &x, const at::Tensor &y) { return at::add(x, y); }

void mean(Call &call) {
    at::Tensor result = call.input(0);
    for (size_t i = 1; i < call.num_inputs(); ++i) {
        result = at::add(result, call.input(i));
    }
    call.output(result / static_cast<double>(call.num_inputs()));
}

void where(Call &call) { call.output(at::where(call.raw(0), call.raw(1), call.raw(2))); }

const Registration registered{
    {"Abs", unary<at::abs_>},
    {"Ceil", unary<at::ceil_>},
    {"Cos", unary<at::cos_>},
    {"Erf", unary<at::erf_>},
    {"Exp", unary<at::exp_>},
    {"Floor", unary<at::floor_>},
    {"Log", unary<at::log_>},
    {"Neg", unary<at::neg_>},
    {"Reciprocal", unary<at::reciprocal_>},
    {"Relu", unary<at::relu_>},
    {"Round", unary<at::round_>},
    {"Selu", unary<at::selu_>},
    {"Sigmoid", unary<at::sigmoid_>},
    {"Sign", [](Call &call) { call.output(at::sign(call.input(0))); }},
    {"Sin", unary<at::sin_>},
    {"Sqrt", unary<at::sqrt_>},
    {"Tanh", unary<at::tanh_>},
    {"Not", [](Call &call) { call.output(at::logical_not(call.raw(0))); }},
    {"LeakyRelu", leaky_relu},
    {"Elu", elu},
    {"PRelu", prelu},
    {"HardSigmoid", hard_sigmoid},
    {"HardSwish", hard_swish},
    {"Softplus", softplus},
    {"Softsign", softsign},
    {"Mish", mish},
    {"Gelu", gelu},
    {"NPUFastGelu", fast_gelu},
    {"Clip", clip},
    {"Identity", identity},
    {"Cast", cast},
    {"Dropout", dropout},
    {"IsNaN", is_nan},
    {"IsInf", is_inf},
    {"Add", add},
    {"Sub", sub},
    {"Mul", mul},
    {"Div", div},
    {"Pow", pow},
    {"Mod", mod},
    {"Min", variadic<at::minimum>},
    {"Max", variadic<at::maximum>},
    {"Sum", variadic<plus>},
    {"Mean", mean},
    {"And", plain<at::logical_and>},
    {"Or", plain<at::logical_or>},
    {"Xor", plain<at::logical_xor>},
    {"Equal", plain<at::eq>},
    {"Greater", plain<at::gt>},
    {"GreaterOrEqual", plain<at::ge>},
    {"Less", plain<at::lt>},
    {"LessOrEqual", plain<at::le>},
    {"Where", where},
};

}  // namespace

}  // namespace cann_sim::executor
