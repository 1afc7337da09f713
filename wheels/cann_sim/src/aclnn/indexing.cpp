// aclnn functions that select and place: indices that are left out, and results whose size the data decides.

#include "pch.h"

#include "aclnn/adapter.h"
#include "compute/formulas.h"

namespace cann_sim {

namespace {

// torch_npu passes an empty tensor of self's data type where an index is left out.
c10::List<std::optional<at::Tensor>> read_indices(const Value &list, const at::Tensor &self) {
    c10::List<std::optional<at::Tensor>> indices;
    for (const aclTensor *item : list.tensors()) {
        const at::Tensor index = tensor(Value(item));
        const bool left_out =
            !index.defined() || (index.numel() == 0 && index.dim() == 1 && index.scalar_type() == self.scalar_type());
        indices.push_back(left_out ? std::optional<at::Tensor>() : index);
    }
    return indices;
}

bool has_index(const c10::List<std::optional<at::Tensor>> &indices) {
    for (const std::optional<at::Tensor> &index : indices) {
        if (index.has_value()) {
            return true;
        }
    }
    return false;
}

// (self, indices, out)
void index(const Value *v) {
    const at::Tensor self = tensor(v[0]);
    if (tensor(v[2]).numel() > 0) {
        const auto indices = read_indices(v[1], self);
        write(v[2], has_index(indices) ? at::index(self, indices) : self);
    }
}

// (self, indices, values, accumulate, unsafe)
void index_put(const Value *v) {
    at::Tensor self = tensor(v[0]);
    const auto indices = read_indices(v[1], self);
    if (has_index(indices)) {  // else the index is truly empty, and of self's own data type
        at::_index_put_impl_(self, indices, tensor(v[2]), v[3].i != 0, v[4].i != 0);
    }
}

std::vector<at::Tensor> selected(const at::Tensor &self, const Value &index) {
    return {self, at::tensor(index.ints(), at::kLong)};
}
// (self, dim, index as a list of numbers, value, out)
void index_fill(const Value *v) {
    const auto parts = selected(tensor(v[0]), v[2]);
    write(v[4], at::index_fill(parts[0], v[1].i, parts[1], scalar(v[3])));
}
void index_fill_in_place(const Value *v) {
    const auto parts = selected(tensor(v[0]), v[2]);
    at::Tensor self = parts[0];
    self.index_fill_(v[1].i, parts[1], scalar(v[3]));
}

// ---- torch_npu waits for these and asks for the shape of the result ----

void nonzero(const Value *v) { write_shrunk(v[1], at::nonzero(tensor(v[0]))); }
void nonzero_by_dimension(const Value *v) { write_shrunk(v[1], at::nonzero(tensor(v[0])).t()); }
void masked_select(const Value *v) { write_shrunk(v[2], at::masked_select(tensor(v[0]), tensor(v[1]))); }

// The operators make no inverse where none is asked for; callers pass room for it.
void write_unless_empty(const Value &out, const at::Tensor &result) {
    if (result.numel() > 0) {
        write(out, result);
    }
}

// (self, sorted, inverse?, values, inverse)
void unique(const Value *v) {
    const auto [values, inverse] = at::_unique(tensor(v[0]), v[1].i != 0, v[2].i != 0);
    write_shrunk(v[3], values);
    write_unless_empty(v[4], inverse);
}
// (self, sorted, inverse?, counts?, values, inverse, counts)
void unique_with_counts(const Value *v) {
    const auto [values, inverse, counts] = at::_unique2(tensor(v[0]), v[1].i != 0, v[2].i != 0, v[3].i != 0);
    write_shrunk(v[4], values);
    write_unless_empty(v[5], inverse);
    if (v[3].i != 0) {
        write_shrunk(v[6], counts);
    }
}
// (self, inverse?, counts?, dim, values, inverse, counts); dim 1000 is torch_npu's value for none
void unique_consecutive(const Value *v) {
    const std::optional<int64_t> dim = v[3].i == 1000 ? std::optional<int64_t>() : v[3].i;
    const auto [values, inverse, counts] = at::unique_consecutive(tensor(v[0]), v[1].i != 0, v[2].i != 0, dim);
    write_shrunk(v[4], values);
    write_unless_empty(v[5], inverse);
    if (v[2].i != 0) {
        write_shrunk(v[6], counts);
    }
}

// (self, sorted, inverse?, dim, values, inverse, counts): the CPU always sorts
void unique_dim(const Value *v) {
    const auto [values, inverse, counts] = at::unique_dim(tensor(v[0]), v[3].i, v[1].i != 0, v[2].i != 0, true);
    write_shrunk(v[4], values);
    write_unless_empty(v[5], inverse);
    write_shrunk(v[6], counts);
}

// ---- scatter: reduce is 0 none, 1 add, 2 multiply ----

const char *reduction(int64_t code) {
    TORCH_CHECK(code == 1 || code == 2, "reduce is ", code, ", and must be 0, 1 or 2");
    return code == 1 ? "add" : "multiply";
}
void scatter_into(at::Tensor out, const Value *v, int64_t reduce) {  // v: dim, index, source
    const at::Tensor index = tensor(v[1]).to(at::kLong);
    if (v[2].kind == Value::kScalar) {
        reduce == 0 ? out.scatter_(v[0].i, index, scalar(v[2]))
                    : out.scatter_(v[0].i, index, scalar(v[2]), reduction(reduce));
    } else {
        reduce == 0 ? out.scatter_(v[0].i, index, tensor(v[2]))
                    : out.scatter_(v[0].i, index, tensor(v[2]), reduction(reduce));
    }
}
// (self, dim, index, source or value, reduce, out)
void scatter(const Value *v) {
    const at::Tensor result = tensor(v[0]).clone();
    scatter_into(result, v + 1, v[4].i);
    write(v[5], result);
}
void scatter_in_place(const Value *v) { scatter_into(tensor(v[0]), v + 1, v[4].i); }

// (self, classes, on, off, axis, out): an index that is out of range gives nothing but `off`
void one_hot(const Value *v) {
    const at::Tensor hit = at::arange(v[1].i, at::kLong).eq(tensor(v[0]).to(at::kLong).unsqueeze(-1));
    write(v[5], at::where(hit, tensor(v[2]), tensor(v[3])).movedim(-1, v[4].i));
}

// (gradient, repeats, dim, out)
void repeat_interleave_gradient(const Value *v) {
    write(v[3], repeat_interleave_backward(tensor(v[0]), tensor(v[3]), tensor(v[1]), v[2].i));
}

void equal(const Value *v) { tensor(v[2]).fill_(at::equal(tensor(v[0]), tensor(v[1]))); }

const ComputationRegistration registered{
    {"aclnnIndex", index},
    {"aclnnIndexPutImpl", index_put},
    {"aclnnIndexFillTensor", index_fill},
    {"aclnnInplaceIndexFillTensor", index_fill_in_place},
    {"aclnnNonzero", nonzero},
    {"aclnnNonzeroV2", nonzero_by_dimension},
    {"aclnnMaskedSelect", masked_select},
    {"aclnnUnique", unique},
    {"aclnnUnique2", unique_with_counts},
    {"aclnnUniqueConsecutive", unique_consecutive},
    {"aclnnUniqueDim", unique_dim},
    {"aclnnRepeatInterleaveGrad", repeat_interleave_gradient},
    {"aclnnScatter", scatter},
    {"aclnnScatterValue", scatter},
    {"aclnnInplaceScatter", scatter_in_place},
    {"aclnnInplaceScatterValue", scatter_in_place},
    {"aclnnOneHot", one_hot},
    {"aclnnEqual", equal},
};

}  // namespace

}  // namespace cann_sim
