// Signatures: op-plugin's op_plugin_functions.yaml.

#include "pch.h"

#include "compute/formulas.h"

namespace cann_sim {

namespace {

at::Tensor reduced(const at::Tensor &gradient, const at::Tensor &input, int64_t reduction) {
    return reduction == at::Reduction::Mean ? gradient / static_cast<double>(input.numel()) : gradient;
}

}  // namespace

at::Tensor wide(const at::Tensor &tensor) {
    return tensor.defined() ? tensor.to(at::promoteTypes(tensor.scalar_type(), at::kFloat)) : tensor;
}

at::Tensor l1_loss_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &target,
                            int64_t reduction) {
    return (input - target).sign() * reduced(gradient, input, reduction);
}

at::Tensor kl_div_backward(const at::Tensor &gradient, const at::Tensor &, const at::Tensor &target, int64_t reduction,
                           bool log_target) {
    return -(log_target ? target.exp() : target) * reduced(gradient, target, reduction);
}

// d/dx of -w (pos y log s(x) + (1 - y) log(1 - s(x))), in the order of torch's own formula for the CPU
// (torch/csrc/autograd/FunctionsManual.cpp), so that the two agree to the last bit.
at::Tensor bce_with_logits(const at::Tensor &input, const at::Tensor &target, const at::Tensor &weight,
                           const at::Tensor &positive, int64_t reduction) {
    const at::Tensor loss =
        at::binary_cross_entropy_with_logits(wide(input), wide(target), wide(weight), wide(positive), reduction);
    const at::ScalarType type = at::promoteTypes(input.scalar_type(), target.scalar_type());
    return loss.to(c10::isFloatingType(type) ? type : loss.scalar_type());
}

at::Tensor bce_with_logits_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &target,
                                    const std::optional<at::Tensor> &weight, const std::optional<at::Tensor> &positive,
                                    int64_t reduction) {
    at::Tensor result;
    if (positive.has_value() && positive->defined()) {
        const at::Tensor t = *positive * target;
        result = t.add(1).sub_(target).mul_(input.sigmoid()).sub_(t);
    } else {
        result = input.sigmoid().sub_(target);
    }
    result.mul_(gradient);
    if (weight.has_value() && weight->defined()) {
        result.mul_(*weight);
    }
    return reduction == at::Reduction::Mean ? result.div_(input.numel()) : result;
}

at::Tensor rotated(const at::Tensor &x, bool neighbours) {
    if (neighbours) {
        const at::Tensor pairs = x.unflatten(-1, {-1, 2});
        return at::stack({-pairs.select(-1, 1), pairs.select(-1, 0)}, -1).flatten(-2);
    }
    const auto halves = x.chunk(2, -1);
    return at::cat({-halves[1], halves[0]}, -1);
}

at::Tensor rotary_mul(const at::Tensor &x, const at::Tensor &cos, const at::Tensor &sin, bool neighbours) {
    return cos * x + sin * rotated(x, neighbours);
}

// The transpose of the turn is the turn back.
at::Tensor rotary_mul_backward(const at::Tensor &gradient, const at::Tensor &cos, const at::Tensor &sin,
                               bool neighbours) {
    return cos * gradient - rotated(sin * gradient, neighbours);
}

std::pair<at::Tensor, at::Tensor> rotary_factors_backward(const at::Tensor &gradient, const at::Tensor &x,
                                                          at::IntArrayRef cos, at::IntArrayRef sin, bool neighbours) {
    return {(x * gradient).sum_to_size(cos), (rotated(x, neighbours) * gradient).sum_to_size(sin)};
}

void check_scatter_by_batch(const at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates,
                            int64_t axis) {
    TORCH_CHECK(indices.dim() == 1 && indices.numel() == updates.size(0), "indices must have one number per batch");
    TORCH_CHECK(c10::maybe_wrap_dim(axis, self.dim()) > 0, "axis must not be the batch's");
}

void scatter_by_batch(const at::Tensor &self, const at::Tensor &indices, const at::Tensor &updates, int64_t axis) {
    check_scatter_by_batch(self, indices, updates, axis);
    const int64_t dim = c10::maybe_wrap_dim(axis, self.dim());
    const at::Tensor starts = indices.to(at::kLong);
    for (int64_t b = 0; b < updates.size(0); ++b) {
        self.select(0, b).narrow(dim - 1, starts[b].item<int64_t>(), updates.size(dim)).copy_(updates.select(0, b));
    }
}

void pack_bits(const at::Tensor &flags, at::Tensor &bytes) {
    const int64_t count = flags.numel();
    TORCH_CHECK(bytes.is_contiguous() && static_cast<int64_t>(bytes.nbytes()) * 8 >= count, "no room for ", count,
                " bits");
    const at::Tensor ones = flags.to(at::kBool).contiguous();
    const bool *flag = ones.const_data_ptr<bool>();
    auto *byte = static_cast<uint8_t *>(bytes.data_ptr());
    std::fill(byte, byte + bytes.nbytes(), 0);
    for (int64_t i = 0; i < count; ++i) {
        byte[i / 8] = static_cast<uint8_t>(byte[i / 8] | (flag[i] ? 1 : 0) << i % 8);
    }
}

at::Tensor unpack_bits(const at::Tensor &bytes, int64_t first, int64_t count) {
    TORCH_CHECK(static_cast<int64_t>(bytes.nbytes()) * 8 >= first + count, "a mask of ", bytes.nbytes(), " bytes for ",
                count, " elements");
    const at::Tensor packed = bytes.contiguous(), flags = at::empty({count}, at::kByte);
    const auto *byte = static_cast<const uint8_t *>(packed.const_data_ptr());
    auto *flag = flags.data_ptr<uint8_t>();
    for (int64_t i = 0; i < count; ++i) {
        flag[i] = byte[(first + i) / 8] >> (first + i) % 8 & 1;
    }
    return flags;
}

int64_t bytes_of_mask(int64_t count) { return (count + 127) / 128 * 16; }

at::Tensor dropped_out(const at::Tensor &x, const at::Tensor &mask, double keep) {
    return x.mul(unpack_bits(mask, 0, x.numel()).view(x.sizes())).mul(keep > 0 ? 1 / keep : 0);
}

at::Tensor scales(const at::Tensor &scale) {
    if (scale.is_floating_point()) {
        return scale.to(at::kFloat);
    }
    return scale.to(at::kLong).contiguous().view(at::kFloat).slice(-1, 0, std::nullopt, 2);
}

at::Tensor repeat_interleave_backward(const at::Tensor &gradient, const at::Tensor &input, const at::Tensor &repeats,
                                      std::optional<int64_t> dim) {
    const at::Tensor shape_of = dim.has_value() ? input : input.reshape(-1);
    const int64_t at_dim = c10::maybe_wrap_dim(dim.value_or(0), shape_of.dim());
    const at::Tensor times = repeats.numel() == 1 ? repeats.expand({shape_of.size(at_dim)}) : repeats;
    return at::zeros_like(shape_of).index_add_(at_dim, at::repeat_interleave(times), gradient).view(input.sizes());
}

}  // namespace cann_sim
