// Zero-copy passage between NPU tensors and CPU tensors: a simulated device's memory is host memory.

#include "pch.h"

#include "compute/compute.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>

#include "compute/task_queue.h"
#include "runtime/memory.h"
#include "torch_npu/csrc/core/NPUStorageImpl.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

namespace cann_sim {

namespace {

thread_local int device_allocation_depth = 0;
c10::Allocator *host_allocator = nullptr;

class CpuAllocator final : public c10::Allocator {
public:
    c10::DataPtr allocate(size_t size) override {
        if (device_allocation_depth == 0) {
            return host_allocator->allocate(size);
        }
        c10::DataPtr block = c10::GetAllocator(c10::DeviceType::PrivateUse1)->allocate(size);
        const c10::DeleterFnPtr deleter = block.get_deleter();
        void *data = block.get();
        return {data, block.release_context(), deleter, c10::Device(c10::DeviceType::CPU)};
    }

    void copy_data(void *to, const void *from, size_t size) const override { default_copy_data(to, from, size); }

    // oneDNN's scratch memory comes and goes as raw pointers.
    c10::DeleterFnPtr raw_deleter() const override { return &free_raw; }

private:
    static void free_raw(void *memory) {
        const bool on_device = cann_sim_is_device_address(memory);
        c10::Allocator *owner = on_device ? c10::GetAllocator(c10::DeviceType::PrivateUse1) : host_allocator;
        owner->raw_deleter()(memory);
    }
};

void release_storage(void *storage) { c10::raw::intrusive_ptr::decref(static_cast<c10::StorageImpl *>(storage)); }

c10::DataPtr hold_storage(c10::StorageImpl *storage, void *data, c10::Device device) {
    c10::raw::intrusive_ptr::incref(storage);
    return {data, storage, &release_storage, device};
}

void set_geometry(c10::TensorImpl *to, const c10::TensorImpl *from) {
    to->set_sizes_and_strides(from->sizes(), from->strides());
    to->set_storage_offset(from->storage_offset());
}

// What has yet to be done to the values: an inverse FFT, for one, returns the conjugate of what is in memory.
void set_lazy_bits(c10::TensorImpl *to, const c10::TensorImpl *from) {
    if (from->is_conj()) {
        to->_set_conj(true);
    }
    if (from->is_neg()) {
        to->_set_neg(true);
    }
}

// torch_npu keeps with each storage the shape that it was made with; its own allocations fill the same fields
// (StorageDescHelper::SetDesc). Formats by rank: 4-d NCHW, 5-d NCDHW, otherwise ND.
void describe(c10::StorageImpl *storage, const c10::TensorImpl *tensor) {
    auto &desc = static_cast<torch_npu::NPUStorageImpl *>(storage)->npu_desc_;
    const auto sizes = tensor->sizes();
    if (tensor->is_contiguous() && tensor->storage_offset() == 0) {
        desc.base_sizes_.assign(sizes.begin(), sizes.end());
        desc.base_strides_.assign(tensor->strides().begin(), tensor->strides().end());
    } else {  // the storage as a row; the tensor is a strided view of it
        desc.base_sizes_ = {static_cast<int64_t>(storage->nbytes() / tensor->dtype().itemsize())};
        desc.base_strides_ = {1};
    }
    desc.storage_sizes_ = desc.base_sizes_;
    const size_t rank = desc.base_sizes_.size();
    desc.origin_format_ = desc.npu_format_ = rank == 4 ? ACL_FORMAT_NCHW : rank == 5 ? ACL_FORMAT_NCDHW : ACL_FORMAT_ND;
    desc.data_type_ = tensor->dtype();
}

torch_npu::NPUStorageDesc &description(const at::Tensor &npu) {
    c10::StorageImpl *storage = npu.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
    return static_cast<torch_npu::NPUStorageImpl *>(storage)->npu_desc_;
}

c10::intrusive_ptr<c10::StorageImpl> make_npu_storage(size_t bytes, c10::DataPtr data) {
    static const auto create = c10::GetStorageImplCreate(c10::DeviceType::PrivateUse1);
    return create(c10::StorageImpl::use_byte_size_t(), c10::SymInt(static_cast<int64_t>(bytes)), std::move(data),
                  c10::GetAllocator(c10::DeviceType::PrivateUse1), true);
}

}  // namespace

DeviceAllocation::DeviceAllocation() { ++device_allocation_depth; }
DeviceAllocation::~DeviceAllocation() { --device_allocation_depth; }

void install_allocator() {
    host_allocator = c10::GetCPUAllocator();
    static CpuAllocator allocator;
    c10::SetCPUAllocator(&allocator, 1);
}

// Asking for the raw stream empties the queue first: never in a fork, where nobody works it off.
void finish_queued_operators(c10::Device device) {
    check_fork();
    c10_npu::getCurrentNPUStream(device.index()).stream();
    check_task_queue();
}

at::Tensor alias_on_cpu(const at::Tensor &npu) {
    const c10::TensorImpl *source = npu.unsafeGetTensorImpl();
    c10::StorageImpl *storage = source->unsafe_storage().unsafeGetStorageImpl();
    auto alias = c10::make_intrusive<c10::StorageImpl>(
        c10::StorageImpl::use_byte_size_t(), storage->nbytes(),
        hold_storage(storage, storage->mutable_data(), c10::Device(c10::DeviceType::CPU)), c10::GetCPUAllocator(),
        true);
    at::Tensor cpu = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(std::move(alias)), c10::DispatchKeySet(c10::DispatchKey::CPU), source->dtype());
    c10::TensorImpl *impl = cpu.unsafeGetTensorImpl();
    set_geometry(impl, source);
    set_lazy_bits(impl, source);
    if (source->is_wrapped_number()) {
        impl->set_wrapped_number(true);
    }
    return cpu;
}

at::Tensor wrap_on_npu(const at::Tensor &cpu, c10::Device device) {
    const c10::TensorImpl *source = cpu.unsafeGetTensorImpl();
    c10::StorageImpl *storage = source->unsafe_storage().unsafeGetStorageImpl();
    const size_t bytes = storage->nbytes();
    c10::DataPtr &data = storage->_mutable_data_ptr_no_checks();
    c10::intrusive_ptr<c10::StorageImpl> npu_storage;
    const bool view = data.get_deleter() == &release_storage;
    if (view) {
        npu_storage =
            c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(static_cast<c10::StorageImpl *>(data.get_context()));
    } else if (source->unsafe_storage().use_count() == 1) {
        void *memory = data.get();
        const c10::DeleterFnPtr deleter = data.get_deleter();
        npu_storage = make_npu_storage(bytes, c10::DataPtr(memory, data.release_context(), deleter, device));
    } else {  // a result that shares memory with another result
        npu_storage = make_npu_storage(bytes, hold_storage(storage, data.get(), device));
    }
    // The tensor itself: a copy of one that torch_npu made, as its class cannot be constructed from outside.
    static const at::Tensor prototype = at::empty({0}, at::TensorOptions().device(device));
    c10::intrusive_ptr<c10::TensorImpl> impl =
        prototype.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), true);
    if (!view) {
        describe(npu_storage.get(), source);
    }
    impl->set_storage_and_dtype(c10::Storage(std::move(npu_storage)), source->dtype());
    set_geometry(impl.get(), source);
    set_lazy_bits(impl.get(), source);
    if (source->is_wrapped_number()) {
        impl->set_wrapped_number(true);
    }
    return at::Tensor(std::move(impl));
}

int64_t npu_format(const at::Tensor &npu) { return description(npu).npu_format_; }

void set_npu_format(const at::Tensor &npu, int64_t format) {
    auto &desc = description(npu);
    desc.npu_format_ = desc.origin_format_ = static_cast<aclFormat>(format);
}

void adopt_resize(const at::Tensor &npu, const at::Tensor &cpu) {
    c10::TensorImpl *to = npu.unsafeGetTensorImpl();
    const c10::TensorImpl *from = cpu.unsafeGetTensorImpl();
    if (to->sizes() == from->sizes() && to->strides() == from->strides()) {
        return;
    }
    c10::StorageImpl *target = to->unsafe_storage().unsafeGetStorageImpl();
    c10::StorageImpl *source = from->unsafe_storage().unsafeGetStorageImpl();
    c10::DataPtr &data = source->_mutable_data_ptr_no_checks();
    if (data.get_deleter() != &release_storage) {  // the kernel moved it to a larger block
        void *memory = data.get();
        const c10::DeleterFnPtr deleter = data.get_deleter();
        target->set_data_ptr_noswap(c10::DataPtr(memory, data.release_context(), deleter, npu.device()));
        target->set_nbytes(source->nbytes());
    }
    set_geometry(to, from);
    describe(target, to);
}

}  // namespace cann_sim
