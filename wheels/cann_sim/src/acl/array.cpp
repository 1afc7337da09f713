// ACL operators that move or convert data; torch_npu calls them for contiguous() and for conversions of dtypes.
// Prototypes: CANN's operator IR (array_ops.h, selection_ops.h, split_combination_ops.h, transformation_ops.h).

#include "pch.h"

#include "acl/operators.h"
#include "compute/formulas.h"

namespace cann_sim {

namespace {

void identity(OpCall &op) { op.output(0).copy_(op.input(0).view(op.output(0).sizes())); }

void cast(OpCall &op) { op.output(0).copy_(op.input(0).view(op.output(0).sizes())); }

void transpose(OpCall &op) { op.output(0).copy_(op.input(0).permute(op.ints(1))); }

void broadcast_to(OpCall &op) { op.output(0).copy_(op.input(0).expand(op.ints(1))); }

void slice(OpCall &op) {
    const auto offsets = op.ints(1), sizes = op.ints(2);
    at::Tensor part = op.input(0);
    for (size_t dim = 0; dim < offsets.size(); ++dim) {
        const int64_t length = sizes[dim] == -1 ? part.size(static_cast<int64_t>(dim)) - offsets[dim] : sizes[dim];
        part = part.narrow(static_cast<int64_t>(dim), offsets[dim], length);
    }
    op.output(0).copy_(part);
}

// A strided view of `base`, whose memory is one row.
at::Tensor strided(const OpCall &op, const at::Tensor &base, size_t first) {
    return base.reshape(-1).as_strided(op.ints(first), op.ints(first + 1), op.ints(first + 2).at(0));
}

void as_strided(OpCall &op) { op.output(0).copy_(strided(op, op.input(0), 1)); }

// ViewCopy(dst, dst_size, dst_stride, dst_storage_offset, src, src_size, src_stride, src_storage_offset) -> dst
void view_copy(OpCall &op) { strided(op, op.output(0), 1).copy_(strided(op, op.input(4), 5)); }

// torch_npu inverts the boolean mask of scaled_dot_product_attention with it.
void logical_not(OpCall &op) { at::logical_not_out(op.output(0), op.input(0)); }

// torch_npu makes the causal mask of scaled_dot_product_attention with it.
void triu(OpCall &op) { op.output(0).copy_(at::triu(op.input(0), op.get_int("diagonal", 0))); }

// Fill(dims, value)
void fill(OpCall &op) { op.output(0).fill_(op.input(1).reshape({}).to(op.output(0).scalar_type())); }

// PadV3(x, paddings, constant_values), Pad(x, paddings): paddings are pairs (before, after), the first dimension's first.
void pad(OpCall &op) {
    std::vector<int64_t> pairs = op.ints(1), last_first;
    for (size_t i = pairs.size(); i >= 2; i -= 2) {
        last_first.insert(last_first.end(), {pairs[i - 2], pairs[i - 1]});
    }
    const at::Scalar value = op.num_inputs() > 2 ? op.input(2).reshape({}).item() : at::Scalar(0);
    op.output(0).copy_(at::constant_pad_nd(op.input(0), last_first, value));
}

// GatherV2(x, indices, axis); the first batch_dims dimensions of x and indices belong together.
at::Tensor gathered(const at::Tensor &x, const at::Tensor &indices, int64_t axis, int64_t batch_dims) {
    if (batch_dims == 0) {
        return x.index_select(axis, indices.reshape(-1));
    }
    std::vector<at::Tensor> parts;
    for (int64_t i = 0; i < x.size(0); ++i) {
        parts.push_back(gathered(x[i], indices[i], axis - 1, batch_dims - 1));
    }
    return at::stack(parts);
}

void gather(OpCall &op) {
    const int64_t axis = op.ints(2).at(0), batch_dims = op.get_int("batch_dims", 0);
    op.require(axis >= batch_dims && batch_dims >= 0, "axis must not be before batch_dims");
    op.output(0).copy_(gathered(op.input(0), op.input(1).to(at::kLong), axis, batch_dims).view(op.output(0).sizes()));
}

// ReduceSum(x, axes), attribute keep_dims
void reduce_sum(OpCall &op) {
    op.output(0).copy_(op.input(0).sum(op.ints(1), op.get_bool("keep_dims", false)).view(op.output(0).sizes()));
}

// OneHot(x, depth, on_value, off_value), attribute axis; torch_npu uses it for one_hot. An index out of range gets no 1.
// OneHotD has depth as an attribute.
void write_one_hot(OpCall &op, int64_t depth, size_t on_value) {
    op.require(op.get_int("axis", -1) == -1, "axis must be -1 here");
    const at::Tensor index = op.input(0).to(at::kLong).unsqueeze(-1);
    const at::Tensor hit = index == at::arange(depth, at::kLong);
    op.output(0).copy_(at::where(hit, op.input(on_value).reshape({}), op.input(on_value + 1).reshape({})));
}

void one_hot(OpCall &op) { write_one_hot(op, op.ints(1).at(0), 2); }

void one_hot_d(OpCall &op) { write_one_hot(op, op.get_int("depth", 0), 1); }

// ArgMaxWithValue(x) -> (index, value) along `dimension`, ArgMinWithValue. Of equal values the first one, as on the CPU.
template <bool largest>
void arg_with_value(OpCall &op) {
    const int64_t dim = op.get_int("dimension", 0);
    const bool keep = op.get_bool("keep_dims", false);
    const auto [value, index] = largest ? op.input(0).max(dim, keep) : op.input(0).min(dim, keep);
    op.output(0).copy_(index.view(op.output(0).sizes()));
    op.output(1).copy_(value.view(op.output(1).sizes()));
}

// ArgMaxGrad(var, indices, updates): var with updates where indices points along `dimension`, which those two lack.
void arg_max_grad(OpCall &op) {
    const int64_t dim = op.get_int("dimension", 0);
    op.output(0).copy_(op.input(0).scatter(dim, op.input(1).to(at::kLong).unsqueeze(dim),
                                           op.input(2).to(op.input(0).scalar_type()).unsqueeze(dim)));
}

// StridedSlice(x, begin, end, strides), one of each per dimension; bit i of begin_mask and end_mask: from the start, to the
// end of dimension i. torch_npu's own shape inference has no place for the other masks, nor for negative strides.
void strided_slice(OpCall &op) {
    const auto begin = op.ints(1), end = op.ints(2), strides = op.ints(3);
    op.require(begin.size() == static_cast<size_t>(op.input(0).dim()), "begin needs a number per dimension");
    for (const char *mask : {"ellipsis_mask", "new_axis_mask", "shrink_axis_mask"}) {
        op.require(op.get_int(mask, 0) == 0, std::string(mask) + " is not simulated");
    }
    const int64_t open_begin = op.get_int("begin_mask", 0), open_end = op.get_int("end_mask", 0);
    at::Tensor part = op.input(0);
    for (size_t i = 0; i < begin.size(); ++i) {
        op.require(strides[i] > 0, "strides must be positive here");
        const auto dim = static_cast<int64_t>(i);
        part = part.slice(dim, ((open_begin >> i) & 1) != 0 ? 0 : begin[i],
                          ((open_end >> i) & 1) != 0 ? part.size(dim) : end[i], strides[i]);
    }
    op.output(0).copy_(part);
}

// ConfusionTransposeD(x): a transposition by `perm` and a reshape to `shape`, in the order that transpose_first says.
void confusion_transpose(OpCall &op) {
    const auto perm = op.get_ints("perm"), shape = op.get_ints("shape");
    const at::Tensor &x = op.input(0);
    op.output(0).copy_(op.get_bool("transpose_first", false) ? x.permute(perm).reshape(shape)
                                                             : x.reshape(shape).permute(perm));
}

// Scatter(var, indices [B], updates [B, …]), reduce "update": per batch b, var[b] takes updates[b] at indices[b] along axis.
void scatter(OpCall &op) {
    op.require(op.get_string("reduce", "") == "update", "reduce must be update");
    at::Tensor &var = op.output(0);
    if (var.data_ptr() != op.input(0).data_ptr()) {
        var.copy_(op.input(0));
    }
    scatter_by_batch(var, op.input(1), op.input(2), op.get_int("axis", 0));
}

// SortV2(x): the values alone, sorted along axis.
void sort_values(OpCall &op) {
    op.output(0).copy_(std::get<0>(op.input(0).sort(op.get_int("axis", -1), op.get_bool("descending", false))));
}

// MaskedFillRange(x, start [K, N], end [K, N], value [K]): in row n of x (its first dimension; of a vector the only one), from
// start to end along the last axis, value k; a later k overwrites. How CANN fills along another axis its sources do not agree.
void masked_fill_range(OpCall &op) {
    const at::Tensor &x = op.input(0), &value = op.input(3);
    op.require(x.dim() >= 1 && x.dim() <= 3, "x must have one to three dimensions");
    op.require(x.numel() > 0, "x must have elements");
    const int64_t axis = op.get_int("axis", -1), length = x.size(-1), rows = x.dim() == 1 ? 1 : x.size(0);
    op.require(axis == -1 || axis == x.dim() - 1, "axis must be the last one here");
    op.require(op.input(1).dim() == 2 && op.input(1).sizes() == op.input(2).sizes() &&
                   op.input(1).size(0) == value.numel() && op.input(1).size(1) <= rows,
               "start and end must have shape [K, N], value [K], and x N rows");
    op.output(0).copy_(x);
    const at::Tensor filled = op.output(0).view({rows, -1, length});
    const auto starts = op.ints(1), ends = op.ints(2);
    const int64_t columns = op.input(1).size(1);
    for (size_t i = 0; i < starts.size(); ++i) {
        const int64_t start = std::max<int64_t>(starts[i], 0), end = std::min(ends[i], length);
        if (start < end) {
            const auto at = static_cast<int64_t>(i);
            filled[at % columns].narrow(1, start, end - start).fill_(value.reshape(-1)[at / columns]);
        }
    }
}

// StrideAdd(x1, x2), for tensors in NC1HWC0: of each c1_len blocks of 16 channels from its offset on, which counts blocks, too;
// the last block is padded with zeros.
void stride_add(OpCall &op) {
    constexpr int64_t block = 16;
    const int64_t count = op.get_int("c1_len", 0);
    const auto part = [&](size_t index, const char *attribute) {
        const at::Tensor x = op.input(index).to(at::kFloat);
        op.require(x.dim() >= 2, "x1 and x2 must have channels");
        const int64_t offset = op.get_int(attribute, 0), blocks = (x.size(1) + block - 1) / block;
        op.require(offset >= 0 && count > 0 && offset + count <= blocks,
                   std::string("c1_len must not be more than the blocks of 16 channels behind ") + attribute);
        std::vector<int64_t> sizes = x.sizes().vec();
        sizes[1] = blocks * block;
        at::Tensor padded = at::zeros(sizes);
        padded.narrow(1, 0, x.size(1)).copy_(x);
        return padded.narrow(1, offset * block, count * block);
    };
    const at::Tensor first = part(0, "x1_c1_offset"), second = part(1, "x2_c1_offset");
    op.require(first.sizes() == second.sizes(), "x1 and x2 must have one shape, but for the channels");
    op.output(0).copy_((first + second).view(op.output(0).sizes()));
}

// InplaceIndexAdd(var, indices, updates), attribute axis
void index_add(OpCall &op) {
    if (op.output(0).data_ptr() != op.input(0).data_ptr()) {
        op.output(0).copy_(op.input(0));
    }
    op.output(0).index_add_(op.get_int("axis", 0), op.input(1).to(at::kLong), op.input(2));
}

const Registration registered{
    {"Identity", identity},
    {"TensorMove", identity},
    {"Cast", cast},
    {"Transpose", transpose},
    {"BroadcastTo", broadcast_to},
    {"Slice", slice},
    {"AsStrided", as_strided},
    {"ViewCopy", view_copy},
    {"Fill", fill},
    {"Pad", pad},
    {"PadV3", pad},
    {"ArgMaxGrad", arg_max_grad},
    {"ArgMaxWithValue", arg_with_value<true>},
    {"ArgMinWithValue", arg_with_value<false>},
    {"ConfusionTransposeD", confusion_transpose},
    {"Scatter", scatter},
    {"SortV2", sort_values},
    {"StridedSlice", strided_slice},
    {"LogicalNot", logical_not},
    {"MaskedFillRange", masked_fill_range},
    {"StrideAdd", stride_add},
    {"Triu", triu},
    {"GatherV2", gather},
    {"ReduceSum", reduce_sum},
    {"OneHot", one_hot},
    {"OneHotD", one_hot_d},
    {"InplaceIndexAdd", index_add},
};

}  // namespace

}  // namespace cann_sim
