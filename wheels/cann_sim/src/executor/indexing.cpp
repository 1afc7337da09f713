// Gather and Scatter in all forms, OneHot. Negative indices count from the end; one outside is an error.

#include "pch.h"

#include <algorithm>
#include <cstring>

#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

// Indices as int64 from 0 on.
at::Tensor places(Call &call, const at::Tensor &indices, int64_t size) {
    const at::Tensor found = indices.to(at::kLong);
    if (found.numel() > 0) {
        const int64_t least = found.min().item<int64_t>(), most = found.max().item<int64_t>();
        call.require(least >= -size && most < size, "an index is outside of an axis of " + std::to_string(size));
        return least < 0 ? at::where(found < 0, found + size, found) : found;
    }
    return found;
}

void gather(Call &call) {
    const at::Tensor &x = call.raw(0);
    const int64_t axis = call.axis(call.integer("axis", 0), x.dim());
    const at::Tensor index = places(call, call.raw(1), x.size(axis));
    if (index.dim() == 0) {
        call.output(x.select(axis, index.item<int64_t>()));
        return;
    }
    call.output(x.index_select(axis, index.reshape(-1)).reshape(call.result().shape));
}

void gather_elements(Call &call) {
    const at::Tensor &x = call.raw(0);
    const int64_t axis = call.axis(call.integer("axis", 0), x.dim());
    call.output(x.gather(axis, places(call, call.raw(1), x.size(axis))));
}

// The last dimension of `indices` as one index into dimensions [first, first + length) of `shape`, flattened.
at::Tensor flat_places(Call &call, const at::Tensor &indices, at::IntArrayRef shape, int64_t first) {
    const int64_t length = indices.size(-1);
    call.require(first + length <= static_cast<int64_t>(shape.size()), "indices are longer than the data's rank");
    at::Tensor flat = at::zeros(indices.sizes().slice(0, static_cast<size_t>(indices.dim() - 1)), at::kLong);
    for (int64_t i = 0; i < length; ++i) {
        const int64_t size = shape[static_cast<size_t>(first + i)];
        flat = flat * size + places(call, indices.select(-1, i), size);
    }
    return flat;
}

int64_t product(at::IntArrayRef sizes) { return c10::multiply_integers(sizes); }

void gather_nd(Call &call) {
    const at::Tensor &x = call.raw(0), &indices = call.raw(1);
    const int64_t batch_dims = call.integer("batch_dims", 0);
    call.require(indices.dim() > 0 && batch_dims >= 0 && batch_dims < indices.dim() && batch_dims <= x.dim(),
                 "batch_dims does not fit the indices");
    const auto shape = x.sizes();
    const int64_t length = indices.size(-1), batches = product(shape.slice(0, static_cast<size_t>(batch_dims)));
    const at::Tensor flat = flat_places(call, indices, shape, batch_dims);
    const auto chosen = shape.slice(static_cast<size_t>(batch_dims), static_cast<size_t>(length));
    const int64_t rest = product(shape.slice(static_cast<size_t>(batch_dims + length)));
    const int64_t rows = product(chosen), each = batches == 0 ? 0 : flat.numel() / batches;
    const at::Tensor offsets = at::arange(batches, at::kLong).unsqueeze(1) * rows;
    const at::Tensor wanted = (flat.reshape({batches, each}) + offsets).reshape(-1);
    call.output(x.reshape({batches * rows, rest}).index_select(0, wanted).reshape(call.result().shape));
}

// How ScatterND and ScatterElements combine what is there with an update.
const char *aten_reduction(Call &call, const std::string &name) {
    using Name = std::pair<const char *, const char *>;
    for (const auto &[onnx, aten] :
         {Name{"add", "sum"}, Name{"mul", "prod"}, Name{"max", "amax"}, Name{"min", "amin"}}) {
        if (name == onnx) {
            return aten;
        }
    }
    call.require(false, "reduction " + name + " is not known");
    return nullptr;
}

void scatter_nd(Call &call) {
    const at::Tensor &indices = call.raw(1);
    call.require(indices.dim() > 0, "indices have no dimension");
    const std::string reduction = call.text("reduction", "none");
    const bool moves = reduction == "none";
    const at::Tensor x = (moves ? call.raw(0) : call.input(0)).clone(at::MemoryFormat::Contiguous);
    const at::Tensor updates = moves ? call.raw(2).to(x.scalar_type()) : call.input(2);
    const int64_t length = indices.size(-1);
    const at::Tensor flat = flat_places(call, indices, x.sizes(), 0).reshape(-1).contiguous();
    const int64_t rest = product(x.sizes().slice(static_cast<size_t>(length)));
    at::Tensor rows = x.view({product(x.sizes().slice(0, static_cast<size_t>(length))), rest});
    const at::Tensor changes = updates.reshape({flat.numel(), rest}).contiguous();
    if (!moves) {
        if (reduction == "add") {
            rows.index_add_(0, flat, changes);
        } else {
            rows.index_reduce_(0, flat, changes, aten_reduction(call, reduction), true);
        }
    } else {
        // In the order of the indices: of two updates of one place the later stays.
        const size_t bytes = static_cast<size_t>(rest) * x.element_size();
        auto *to = static_cast<char *>(rows.mutable_data_ptr());
        const auto *from = static_cast<const char *>(changes.const_data_ptr());
        const int64_t *row = flat.const_data_ptr<int64_t>();
        for (int64_t i = 0; i < flat.numel(); ++i) {
            std::memcpy(to + static_cast<size_t>(row[i]) * bytes, from + static_cast<size_t>(i) * bytes, bytes);
        }
    }
    call.output(x);
}

void scatter_elements(Call &call) {
    const std::string reduction = call.text("reduction", "none");
    const bool moves = reduction == "none";
    const at::Tensor x = moves ? call.raw(0) : call.input(0);
    const int64_t axis = call.axis(call.integer("axis", 0), x.dim());
    const at::Tensor index = places(call, call.raw(1), x.size(axis));
    const at::Tensor updates = moves ? call.raw(2).to(x.scalar_type()) : call.input(2);
    call.output(moves ? x.scatter(axis, index, updates)
                      : x.scatter_reduce(axis, index, updates, aten_reduction(call, reduction), true));
}

void one_hot(Call &call) {
    const at::Tensor indices = call.raw(0).to(at::kLong);
    const auto depth = static_cast<int64_t>(call.number(1));
    const int64_t axis = call.axis(call.integer("axis", -1), indices.dim() + 1);
    const at::Tensor wrapped = at::where(indices < 0, indices + depth, indices).unsqueeze(axis);
    std::vector<int64_t> along(static_cast<size_t>(indices.dim() + 1), 1);
    along[static_cast<size_t>(axis)] = depth;
    const at::Tensor hot = wrapped == at::arange(depth, at::kLong).view(along);
    const at::Tensor values = call.raw(2);
    call.output(at::where(hot, values.select(0, 1), values.select(0, 0)));
}

const Registration registered{
    {"Gather", gather},        {"GatherElements", gather_elements},   {"GatherND", gather_nd},
    {"ScatterND", scatter_nd}, {"ScatterElements", scatter_elements}, {"Scatter", scatter_elements},
    {"OneHot", one_hot},
};

}  // namespace

}  // namespace cann_sim::executor
