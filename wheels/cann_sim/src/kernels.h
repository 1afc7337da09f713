// The compute plug-in: what dispatch.cpp and counted.cpp need of the dispatcher's kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace cann_sim {

// The dispatcher does not hand out a kernel once another one takes its place, and some of torch_npu's are needed
// below an override. An explicit instantiation may name a private member ([temp.spec.general]/6).
struct EntryTag {};
c10::impl::OperatorEntry &entry_of(EntryTag, const c10::OperatorHandle &op);
template <typename Tag, auto Member>
struct Expose {
    friend c10::impl::OperatorEntry &entry_of(Tag, const c10::OperatorHandle &op) { return (op.*Member)->op; }
};
template struct Expose<EntryTag, &c10::OperatorHandle::operatorDef_>;

inline c10::impl::OperatorEntry &entry_of(const c10::OperatorHandle &op) { return entry_of(EntryTag(), op); }

inline const c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);
inline const c10::DispatchKeySet kNpu(c10::DispatchKey::PrivateUse1);

inline bool is_npu(const at::Tensor &tensor) { return tensor.defined() && tensor.is_privateuseone(); }

}  // namespace cann_sim
