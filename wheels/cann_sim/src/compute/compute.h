// The compute plug-in: what aten operators (dispatch.cpp) and operators by ACL name (../acl) share.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

#include <chrono>

namespace cann_sim {

// While one lives, memory that CPU kernels allocate on this thread comes from torch_npu's caching allocator of the
// current device: results need no copy to become NPU tensors, and torch.npu.memory_allocated() counts them.
class DeviceAllocation {
public:
    DeviceAllocation();
    ~DeviceAllocation();
    DeviceAllocation(const DeviceAllocation &) = delete;
    DeviceAllocation &operator=(const DeviceAllocation &) = delete;
};

// Makes DeviceAllocation work; call once, before the first one.
void install_allocator();

// A CPU tensor over the same memory as `npu` (no copy); keeps that memory alive.
at::Tensor alias_on_cpu(const at::Tensor &npu);

// Waits for the operators by ACL name that torch_npu has queued on its own thread: for a kernel that reads or writes
// memory at once. dispatch.cpp does it for every aten operator; what is registered apart from it calls this first.
void finish_queued_operators(c10::Device device);

// An NPU tensor over the memory of `cpu` (no copy). A result that aliases an NPU tensor's memory becomes a view of it.
at::Tensor wrap_on_npu(const at::Tensor &cpu, c10::Device device);

// The format of an NPU tensor's storage, a number of aclFormat.
int64_t npu_format(const at::Tensor &npu);
void set_npu_format(const at::Tensor &npu, int64_t format);

// After a kernel wrote to `cpu`, the alias of `npu`: takes over a size that the kernel changed (out= and resize_).
void adopt_resize(const at::Tensor &npu, const at::Tensor &cpu);

void register_aten();           // dispatch.cpp
void register_npu_ops();        // npu_ops.cpp

// counted.cpp: the kernels as they are now are torch_npu's own; call it before any of ours takes a place.
void remember_torch_npus_kernels();
void register_plugin_hooks();

// Whether this thread is inside a counted operator: what that one calls is part of it.
bool counts_as_a_whole();

// `op` was launched on `device` and has run since `begin`: waits as long as a slow device would run on, and returns whether
// a fault corrupts its results.
bool suffer_faults(const std::string &op, int device, std::chrono::steady_clock::time_point begin);

// Counts what the caching allocator holds on a device.
void count_memory(c10::DeviceIndex device);

// Appends one tensor to a counted signature: float32[2,3], int64[4] -> float32[4,3].
void append_signature(std::string &text, at::ScalarType type, at::IntArrayRef sizes);

}  // namespace cann_sim
