// ACL operators of recurrent layers, T steps of B rows: DynamicRNN (LSTM), DynamicRNNV2 (a cell's), DynamicGRUV2.
// Prototypes: CANN's operator IR (rnn.h) and op-plugin's calls; equations: torch.nn.LSTM, torch.nn.GRU. Computed in float32.

#include "pch.h"

#include "acl/operators.h"

namespace cann_sim {

namespace {

bool present(const OpCall &op, size_t index) { return op.input(index).defined() && op.input(index).numel() > 0; }

at::Tensor matrix(const at::Tensor &state) { return floats(state).reshape({-1, state.size(-1)}); }

// Output `index` by steps.
struct Steps {
    OpCall &op;
    size_t first;

    void write(int64_t step, std::initializer_list<at::Tensor> values) const {
        size_t index = first;
        for (const at::Tensor &value : values) {
            at::Tensor &all = op.output(index++);
            all.view({-1, all.size(-2), all.size(-1)})[step].copy_(value);
        }
    }
};

int64_t step_at(const OpCall &op, int64_t position, int64_t steps) {
    const bool reversed = op.get_string("direction", "UNIDIRECTIONAL") == "REDIRECTIONAL";
    return reversed ? steps - 1 - position : position;
}

void require_lstm(OpCall &op, size_t length) {
    op.require(op.get_string("gate_order", "ifjo").find_first_not_of("ifjco") == std::string::npos &&
                   op.get_string("gate_order", "ifjo").substr(0, 2) == "if",
               "gate_order must be ifjo here");
    op.require(!op.get_bool("use_peephole", false), "use_peephole is not simulated");
    op.require(!present(op, length), "seq_length (a packed sequence) is not simulated");
}

// Gates in the order i, f, j (the candidate), o, each [B, H]; (x [T, B, I], weight [I + H, 4H], bias [4H], none, h, c)
// -> y, h, c, i, j, f, o, tanh(c), each [T, B, H].
void lstm(OpCall &op, const at::Tensor &weight, size_t bias, size_t hidden) {
    require_lstm(op, hidden - 1);
    const at::Tensor x = floats(op.input(0));
    at::Tensor h = matrix(op.input(hidden)), c = matrix(op.input(hidden + 1));
    for (int64_t position = 0; position < x.size(0); ++position) {
        const int64_t step = step_at(op, position, x.size(0));
        at::Tensor gates = at::cat({x[step], h}, 1).mm(weight);
        gates = present(op, bias) ? gates + floats(op.input(bias)) : gates;
        const auto parts = gates.chunk(4, 1);
        const at::Tensor i = parts[0].sigmoid(), f = parts[1].sigmoid(), j = parts[2].tanh(), o = parts[3].sigmoid();
        c = f * c + i * j;
        const at::Tensor tanh_c = c.tanh();
        h = o * tanh_c;
        Steps{op, 0}.write(step, {h, h, c, i, j, f, o, tanh_c});
    }
}

void dynamic_rnn(OpCall &op) { lstm(op, floats(op.input(1)), 2, 4); }

// DynamicRNNV2(x, weight of x, weight of h, bias or none, none, h, c)
void dynamic_rnn_v2(OpCall &op) { lstm(op, at::cat({floats(op.input(1)), floats(op.input(2))}), 3, 5); }

// Where a gradient's inputs begin: …, y, init_h, init_c, h, c, dy, dh, dc, i, j, f, o, tanh(c)
struct LstmGradient {
    at::Tensor weight, bias, x, h, c;
};

LstmGradient lstm_gradient(OpCall &op, const at::Tensor &weight, size_t y, size_t length) {
    const int64_t hidden = weight.size(1) / 4, rows = weight.size(0) - hidden;
    const auto steps = [&](size_t index) {
        return floats(op.input(index)).reshape({-1, op.input(y + 1).numel() / hidden, hidden});
    };
    op.require(op.input(length).numel() <= 1, "seq_length (a packed sequence) is not simulated");
    const at::Tensor init_h = matrix(op.input(y + 1)), init_c = matrix(op.input(y + 2));
    const at::Tensor h = steps(y + 3), c = steps(y + 4), dy = steps(y + 5), i = steps(y + 8), j = steps(y + 9),
                     f = steps(y + 10), o = steps(y + 11), tanh_c = steps(y + 12);
    const at::Tensor x = floats(op.input(0)).reshape({h.size(0), h.size(1), -1});
    LstmGradient g{at::zeros_like(weight), at::zeros({4 * hidden}), at::zeros_like(x), matrix(op.input(y + 6)),
                   matrix(op.input(y + 7))};
    for (int64_t position = x.size(0) - 1; position >= 0; --position) {
        const int64_t t = step_at(op, position, x.size(0));
        const bool first = position == 0;
        const int64_t before = first ? 0 : step_at(op, position - 1, x.size(0));
        const at::Tensor h_before = first ? init_h : h[before], c_before = first ? init_c : c[before];
        const at::Tensor dh = dy[t] + g.h, dc = g.c + dh * o[t] * (1 - tanh_c[t] * tanh_c[t]);
        const at::Tensor gates = at::cat({dc * j[t] * i[t] * (1 - i[t]), dc * c_before * f[t] * (1 - f[t]),
                                          dc * i[t] * (1 - j[t] * j[t]), dh * tanh_c[t] * o[t] * (1 - o[t])},
                                         1);
        g.weight += at::cat({x[t], h_before}, 1).t().mm(gates);
        g.bias += gates.sum(0);
        const at::Tensor back = gates.mm(weight.t());
        g.x[t].copy_(back.narrow(1, 0, rows));
        g.h = back.narrow(1, rows, hidden);
        g.c = dc * f[t];
    }
    return g;
}

// DynamicRNNGrad(x, weight, bias, y, …, seq_length, mask, …) -> weight, bias, x, h, c
void dynamic_rnn_grad(OpCall &op) {
    const LstmGradient g = lstm_gradient(op, floats(op.input(1)), 3, 16);
    op.output(0).copy_(g.weight);
    op.output(1).copy_(g.bias);
    op.output(2).copy_(g.x);
    op.output(3).copy_(g.h.view(op.output(3).sizes()));
    op.output(4).copy_(g.c.view(op.output(4).sizes()));
}

// DynamicRNNV2Grad(x, weight of x, weight of h, y, …, seq_length, …) -> weight of x, weight of h, bias, x, h, c
void dynamic_rnn_v2_grad(OpCall &op) {
    const at::Tensor of_x = floats(op.input(1)), of_h = floats(op.input(2));
    const LstmGradient g = lstm_gradient(op, at::cat({of_x, of_h}), 3, 16);
    op.output(0).copy_(g.weight.narrow(0, 0, of_x.size(0)));
    op.output(1).copy_(g.weight.narrow(0, of_x.size(0), of_h.size(0)));
    op.output(2).copy_(g.bias);
    op.output(3).copy_(g.x.view(op.output(3).sizes()));
    op.output(4).copy_(g.h.view(op.output(4).sizes()));
    op.output(5).copy_(g.c.view(op.output(5).sizes()));
}

// ---- GRU: gates in the order r, z, n, and the reset gate after the product with h (torch's form) ----

// DynamicGRUV2(x [T, B, I], weight of x [I, 3H], weight of h [H, 3H], bias of x, bias of h, none, h)
//   -> y, h, update z, reset r, new n, hidden_new (n's share of h), each [T, B, H]
void dynamic_gru(OpCall &op) {
    op.require(op.get_string("gate_order", "zrh") == "rzh" && op.get_bool("reset_after", true),
               "gate_order must be rzh and reset_after true here");
    op.require(!present(op, 5), "seq_length (a packed sequence) is not simulated");
    const at::Tensor x = floats(op.input(0)), of_x = floats(op.input(1)), of_h = floats(op.input(2));
    at::Tensor h = matrix(op.input(6));
    for (int64_t position = 0; position < x.size(0); ++position) {
        const int64_t step = step_at(op, position, x.size(0));
        const auto from_x = at::addmm(floats(op.input(3)), x[step], of_x).chunk(3, 1);
        const auto from_h = at::addmm(floats(op.input(4)), h, of_h).chunk(3, 1);
        const at::Tensor r = (from_x[0] + from_h[0]).sigmoid(), z = (from_x[1] + from_h[1]).sigmoid();
        const at::Tensor n = (from_x[2] + r * from_h[2]).tanh();
        h = (1 - z) * n + z * h;
        Steps{op, 0}.write(step, {h, h, z, r, n, from_h[2]});
    }
}

// DynamicGRUV2Grad(x, weight of x, weight of h, y, init_h, h, dy, dh, z, r, n, hidden_new, …)
//   -> weight of x, weight of h, bias of x, bias of h, x, h
void dynamic_gru_grad(OpCall &op) {
    const at::Tensor x = floats(op.input(0)), of_x = floats(op.input(1)), of_h = floats(op.input(2));
    const at::Tensor init_h = matrix(op.input(4)), h = floats(op.input(5)), dy = floats(op.input(6));
    const at::Tensor update = floats(op.input(8)), reset = floats(op.input(9)), candidate = floats(op.input(10)),
                     share = floats(op.input(11));
    at::Tensor dh = matrix(op.input(7)), d_of_x = at::zeros_like(of_x), d_of_h = at::zeros_like(of_h);
    at::Tensor d_bias_x = at::zeros({of_x.size(1)}), d_bias_h = at::zeros({of_h.size(1)}), dx = at::zeros_like(x);
    for (int64_t t = x.size(0) - 1; t >= 0; --t) {
        const at::Tensor before = t == 0 ? init_h : h[t - 1], z = update[t], r = reset[t], n = candidate[t];
        dh = dh + dy[t];
        const at::Tensor dn = dh * (1 - z) * (1 - n * n), dz = dh * (before - n) * z * (1 - z);
        const at::Tensor dr = dn * share[t] * r * (1 - r);
        const at::Tensor to_x = at::cat({dr, dz, dn}, 1), to_h = at::cat({dr, dz, dn * r}, 1);
        d_of_x += x[t].t().mm(to_x);
        d_of_h += before.t().mm(to_h);
        d_bias_x += to_x.sum(0);
        d_bias_h += to_h.sum(0);
        dx[t].copy_(to_x.mm(of_x.t()));
        dh = dh * z + to_h.mm(of_h.t());
    }
    size_t index = 0;
    for (const at::Tensor &gradient : {d_of_x, d_of_h, d_bias_x, d_bias_h, dx, dh}) {
        at::Tensor &result = op.output(index++);
        result.copy_(gradient.view(result.sizes()));
    }
}

const Registration registered{
    {"DynamicGRUV2", dynamic_gru},    {"DynamicGRUV2Grad", dynamic_gru_grad},
    {"DynamicRNN", dynamic_rnn},      {"DynamicRNNGrad", dynamic_rnn_grad},
    {"DynamicRNNV2", dynamic_rnn_v2}, {"DynamicRNNV2Grad", dynamic_rnn_v2_grad},
};

}  // namespace

}  // namespace cann_sim
