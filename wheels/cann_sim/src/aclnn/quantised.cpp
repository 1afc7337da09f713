// Products of int8 matrices, whose sums of int32 become numbers by scales.

#include "pch.h"

#include "aclnn/adapter.h"
#include "compute/formulas.h"

namespace cann_sim {

namespace {

// What torch_npu leaves out is a null pointer, or a tensor without elements.
at::Tensor given(const Value &value) {
    const at::Tensor found = tensor(value);
    return found.defined() && found.numel() != 0 ? found : at::Tensor();
}

struct Factors {
    at::Tensor by_column, by_row, offset, bias;
};

void check_int8(const Value *v) {
    for (const Value *factor : {v, v + 1}) {
        const at::ScalarType type = tensor(*factor).scalar_type();
        TORCH_CHECK(type == at::kChar, "only int8 matrices are simulated, not ", type);
    }
}

// ((x1 x2 + a bias of integers) by columns, by rows + another bias), rounded for int8; int32 is the sum alone.
void multiply(const at::Tensor &x1, const at::Tensor &x2, const Factors &f, const Value &out) {
    at::Tensor sum = at::matmul(x1.to(at::kInt), x2.to(at::kInt));
    const bool integers = f.bias.defined() && f.bias.scalar_type() == at::kInt;
    if (integers) {
        sum = sum + f.bias;
    }
    const at::ScalarType type = tensor(out).scalar_type();
    if (type == at::kInt) {
        write(out, sum);
        return;
    }
    at::Tensor result = sum.to(at::kFloat) * scales(f.by_column);
    if (f.by_row.defined()) {
        result = result * f.by_row.unsqueeze(-1);
    }
    if (f.bias.defined() && !integers) {
        result = result + f.bias.to(at::kFloat);
    }
    if (type == at::kChar) {
        result = (f.offset.defined() ? result + f.offset : result).round().clamp(-128, 127);
    }
    write(out, result);
}

at::Tensor matrix(const Value &value, const Value &transposed) {
    const at::Tensor x = tensor(value);
    return transposed.i != 0 ? x.transpose(-1, -2) : x;
}

// (x1, x2, scale, offset, pertokenScale, bias, transposeX1, transposeX2, out)
void quant_matmul(const Value *v) {
    multiply(matrix(v[0], v[6]), matrix(v[1], v[7]), {given(v[2]), given(v[4]), given(v[3]), given(v[5])}, v[8]);
}

// (x1, x2, x1Scale, x2Scale, yScale, x1Offset, x2Offset, yOffset, bias, transposeX1, transposeX2, groupSize, out)
void check_by_scales(const Value *v) {
    check_int8(v);
    TORCH_CHECK(!given(v[4]).defined() && v[11].i == 0, "groups and yScale are not simulated");
}
void quant_matmul_by_scales(const Value *v) {
    multiply(matrix(v[0], v[9]), matrix(v[1], v[10]), {given(v[3]), given(v[2]), given(v[7]), given(v[8])}, v[12]);
}

// (scale, offset[, round mode], out): a float32 in the lower half of an integer. What a card keeps above it, and that it
// leaves out the last bits, no other function here asks for.
void scale_bits(const at::Tensor &scale, const Value &out) {
    write(out, scale.contiguous().view(at::kInt).to(at::kLong).bitwise_and(0xFFFFFFFF));
}
void trans_quant_param(const Value *v) { scale_bits(tensor(v[0]), v[2]); }
void trans_quant_param_rounded(const Value *v) { scale_bits(tensor(v[0]), v[3]); }

const ComputationRegistration registered{
    {"aclnnQuantMatmulV4", quant_matmul, check_int8},
    {"aclnnQuantMatmulV5", quant_matmul_by_scales, check_by_scales},
    {"aclnnQuantMatmulWeightNz", quant_matmul_by_scales, check_by_scales},
    {"aclnnTransQuantParamV2", trans_quant_param},
    {"aclnnTransQuantParamV3", trans_quant_param_rounded},
};

}  // namespace

}  // namespace cann_sim
