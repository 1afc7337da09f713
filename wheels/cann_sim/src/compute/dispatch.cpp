// Level aten of the simulated NPU: every operator that torch_npu registers for the NPU and that also has a CPU kernel
// runs that CPU kernel, over the NPU tensors' own memory.
//
// torch_npu's own kernels stay where they are the point of the exercise: allocation, views, copies between host and
// device, scalars read by the host; and those at level aclnn (levels.h). What this level bypasses is op-plugin's kernels
// (their dtype checks and their aclnn calls).

#include "pch.h"

#include "compute/compute.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>

#include <unordered_map>
#include <unordered_set>

#include "compute/kernels.h"
#include "compute/levels.h"
#include "compute/random.h"
#include "compute/task_queue.h"
#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"

namespace cann_sim {

namespace {

// The dispatcher does not hand out a kernel once another one takes its place, and some of torch_npu's are needed
// below an override. An explicit instantiation may name a private member ([temp.spec.general]/6).
struct EntryTag {};
c10::impl::OperatorEntry &entry_of(EntryTag, const c10::OperatorHandle &op);
template <typename Tag, auto Member>
struct Expose {
    friend c10::impl::OperatorEntry &entry_of(Tag, const c10::OperatorHandle &op) { return (op.*Member)->op; }
};
template struct Expose<EntryTag, &c10::OperatorHandle::operatorDef_>;

}  // namespace

c10::impl::OperatorEntry &entry_of(const c10::OperatorHandle &op) { return entry_of(EntryTag(), op); }

namespace {

// Operators that keep torch_npu's own kernels (as all views do, which are recognised by their schema).
const std::unordered_set<std::string> kKeep = {
    // allocation and storage
    "aten::empty.memory_format", "aten::empty_strided", "aten::empty_like", "aten::new_empty",
    "aten::new_empty_strided", "aten::resize_", "aten::resize_as_", "aten::set_", "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset", "aten::set_.source_Tensor", "aten::record_stream", "aten::is_pinned",
    "aten::_pin_memory", "aten::is_set_to",
    // between host and device
    "aten::_to_copy", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::_local_scalar_dense", "aten::item",
    // views whose schema does not say so, and bookkeeping
    "aten::contiguous", "aten::_has_compatible_shallow_copy_type", "aten::_unsafe_view",
    "aten::_has_same_storage_numel"};

// Operators that only a device backend implements, and the CPU operator of the same meaning.
struct Twin {
    const char *name;
    const char *overload;
};
const std::unordered_map<std::string, Twin> kTwins = {
    {"aten::convolution_overrideable", {"aten::convolution", ""}},
    {"aten::convolution_backward_overrideable", {"aten::convolution_backward", ""}},
};

// One aten operator on the NPU.
class CpuKernel final : public c10::OperatorKernel {
public:
    CpuKernel(const c10::OperatorHandle &npu_op, c10::OperatorHandle cpu_op, c10::KernelFunction torch_npu_kernel)
        : cpu_op_(cpu_op), torch_npu_kernel_(std::move(torch_npu_kernel)), held_(npu_op) {
        const std::string name = npu_op.schema().name();
        is_copy_ = name == "aten::copy_";
        inserts_bias_sizes_ = name == "aten::convolution_backward_overrideable";
        // Its batch sizes are read by the host, and have the options of `lengths`, which must be on the CPU.
        host_result_ = name == "aten::_pack_padded_sequence" ? 1 : -1;
        const auto &tags = npu_op.getTags();
        draws_random_ = std::find(tags.begin(), tags.end(), at::Tag::nondeterministic_seeded) != tags.end();
        // Which argument each return value is, by the schema's write annotations: add_(Tensor(a!) self) -> Tensor(a!).
        const auto &arguments = npu_op.schema().arguments();
        for (const auto &argument : arguments) {
            written_.push_back(argument.alias_info() != nullptr && argument.alias_info()->isWrite());
            rounding_mode_ =
                argument.name() == "rounding_mode" ? static_cast<int>(written_.size()) - 1 : rounding_mode_;
            generator_ = generator_ >= 0 || argument.type()->str() != "Generator?"
                             ? generator_
                             : static_cast<int>(written_.size()) - 1;
        }
        for (const auto &result : npu_op.schema().returns()) {
            int same_as = -1;
            if (result.alias_info() != nullptr && result.alias_info()->isWrite()) {
                for (size_t i = 0; i < arguments.size(); ++i) {
                    if (written_[i] && arguments[i].alias_info()->beforeSets() == result.alias_info()->beforeSets()) {
                        same_as = static_cast<int>(i);
                    }
                }
            }
            returns_.push_back(same_as);
        }
    }

    void operator()(const c10::OperatorHandle &op, c10::DispatchKeySet, torch::jit::Stack *stack) {
        const size_t count = written_.size();
        const size_t base = stack->size() - count;
        std::optional<c10::Device> device = find_device(*stack, base);
        if (is_copy_ && !(is_npu((*stack)[base].toTensor()) && is_npu((*stack)[base + 1].toTensor()))) {
            check_task_queue();
            torch_npu_kernel_.callBoxed(op, kNpu, stack);
            return;
        }
        if (held_.spare(*stack, base)) {
            torch_npu_kernel_.callBoxed(op, kNpu, stack);
            return;
        }
        if (rounding_mode_ >= 0) {
            check_rounding_mode((*stack)[base + static_cast<size_t>(rounding_mode_)]);
        }
        const c10::OptionalDeviceGuard device_guard(device);
        if (!device.has_value()) {
            device = c10::impl::VirtualGuardImpl(c10::DeviceType::PrivateUse1).getDevice();
        }
        finish_queued_operators(*device);

        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);

        c10::SmallVector<c10::IValue, 4> written;  // the NPU values of written arguments, in argument order
        c10::SmallVector<c10::IValue, 4> aliases;  // and their CPU aliases
        for (size_t i = 0; i < count; ++i) {
            c10::IValue &value = (*stack)[base + i];
            if (written_[i]) {
                written.push_back(value);
            }
            to_cpu(value);
            if (written_[i]) {
                aliases.push_back(value);
            }
        }
        if (inserts_bias_sizes_) {
            // convolution_backward(grad, input, weight, bias_sizes?, …): channels of the gradient
            const bool transposed = (*stack)[base + 6].toBool();
            const at::Tensor &weight = (*stack)[base + 2].toTensor();
            const int64_t channels = transposed ? weight.size(1) * (*stack)[base + 8].toInt() : weight.size(0);
            stack->insert(stack->begin() + static_cast<std::ptrdiff_t>(base) + 3,
                          c10::IValue(std::vector<int64_t>{channels}));
        }
        if (draws_random_) {
            call_random(stack, base, *device);
        } else {
            call(stack);
        }
        size_t next = 0;
        for (size_t i = 0; i < count; ++i) {
            if (written_[i]) {
                adopt(written[next], aliases[next]);
                ++next;
            }
        }
        const size_t first = stack->size() - returns_.size();
        for (size_t i = 0; i < returns_.size(); ++i) {
            c10::IValue &value = (*stack)[first + i];
            if (returns_[i] >= 0) {
                value = written[written_index(returns_[i])];
            } else if (static_cast<int>(i) == host_result_) {
                value = value.toTensor().clone();  // out of the device's allocator
            } else {
                to_npu(value, *device);
            }
        }
    }

private:
    // op-plugin's own check of div, whose error has a code of torch_npu that programs look for.
    static void check_rounding_mode(const c10::IValue &mode) {
        TORCH_CHECK(mode.isNone() || mode.toStringView() == "floor" || mode.toStringView() == "trunc",
                    "div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '",
                    mode.toStringView(), "'\nERR01001 OPS invalid parameter");
    }

    void call(torch::jit::Stack *stack) {
        const DeviceAllocation on_device;
        cann_sim::entry_of(cpu_op_).lookup(kCpu).callBoxed(cpu_op_, kCpu, stack);
    }

    void call_random(torch::jit::Stack *stack, size_t base, c10::Device device) {
        at::Generator npu = at_npu::detail::getDefaultNPUGenerator(device.index());
        if (generator_ >= 0) {
            const c10::IValue &given = (*stack)[base + generator_];
            if (given.isGenerator() && given.toGenerator().device().is_privateuseone()) {
                npu = given.toGenerator();
            }
        }
        const Draw draw = Draw::next(npu);
        const at::Generator drawn = generator_of(draw.seed, draw.offset);
        if (generator_ >= 0) {
            (*stack)[base + generator_] = drawn;
            call(stack);
            return;
        }
        // No generator argument (native_dropout, rand_like): lend the default one and put its state back.
        at::Generator host = at::detail::getDefaultCPUGenerator();
        const at::Generator saved = host.clone();
        host.set_current_seed(drawn.current_seed());
        try {
            call(stack);
        } catch (...) {
            host.set_state(saved.get_state());
            throw;
        }
        host.set_state(saved.get_state());
    }

    size_t written_index(int argument) const {
        size_t index = 0;
        for (int i = 0; i < argument; ++i) {
            index += written_[i];
        }
        return index;
    }

    static std::optional<c10::Device> find_device(const torch::jit::Stack &stack, size_t base) {
        std::optional<c10::Device> named;
        for (size_t i = base; i < stack.size(); ++i) {
            const c10::IValue &value = stack[i];
            if (value.isTensor()) {
                if (is_npu(value.toTensor())) {
                    return value.toTensor().device();
                }
            } else if (value.isTensorList()) {
                for (const at::Tensor &tensor : value.toTensorList()) {
                    if (is_npu(tensor)) {
                        return tensor.device();
                    }
                }
            } else if (value.isDevice() && value.toDevice().is_privateuseone() && value.toDevice().has_index()) {
                named = value.toDevice();
            }
        }
        return named;
    }

    static void to_cpu(c10::IValue &value) {
        if (value.isTensor()) {
            if (is_npu(value.toTensor())) {
                value = alias_on_cpu(value.toTensor());
            }
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor &tensor : value.toTensorList()) {
                list.push_back(is_npu(tensor) ? alias_on_cpu(tensor) : tensor);
            }
            value = std::move(list);
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<at::Tensor>> list;
            for (const std::optional<at::Tensor> &tensor : value.toOptionalTensorVector()) {
                list.push_back(tensor.has_value() && is_npu(*tensor) ? std::optional<at::Tensor>(alias_on_cpu(*tensor))
                                                                     : tensor);
            }
            value = std::move(list);
        } else if (value.isDevice() && value.toDevice().is_privateuseone()) {
            value = c10::Device(c10::DeviceType::CPU);
        }
    }

    static void to_npu(c10::IValue &value, c10::Device device) {
        if (value.isTensor()) {
            if (value.toTensor().defined()) {
                // Out of the stack first: a sole owner gives its memory away instead of sharing it.
                const at::Tensor cpu = std::move(value).toTensor();
                value = wrap_on_npu(cpu, device);
            }
        } else if (value.isTensorList()) {
            c10::List<at::Tensor> list;
            for (const at::Tensor &tensor : value.toTensorVector()) {
                list.push_back(tensor.defined() ? wrap_on_npu(tensor, device) : tensor);
            }
            value = std::move(list);
        }
    }

    static void adopt(const c10::IValue &npu, const c10::IValue &cpu) {
        if (npu.isTensor()) {
            if (is_npu(npu.toTensor())) {
                adopt_resize(npu.toTensor(), cpu.toTensor());
            }
        } else if (npu.isTensorList()) {
            const auto to = npu.toTensorVector(), from = cpu.toTensorVector();
            for (size_t i = 0; i < to.size(); ++i) {
                if (is_npu(to[i])) {
                    adopt_resize(to[i], from[i]);
                }
            }
        }
    }

    c10::OperatorHandle cpu_op_;
    c10::KernelFunction torch_npu_kernel_;
    HeldCalls held_;
    bool is_copy_ = false;
    bool inserts_bias_sizes_ = false;
    bool draws_random_ = false;
    int host_result_ = -1;       // the return value that stays on the CPU
    int generator_ = -1;         // position of the Generator? argument
    int rounding_mode_ = -1;     // position of that argument, which div has
    std::vector<char> written_;  // per argument
    std::vector<int> returns_;   // per return value: the argument that it is, or -1 for a new tensor
};

bool is_view(const c10::FunctionSchema &schema) {
    for (const auto &result : schema.returns()) {
        if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) {
            return true;
        }
    }
    return false;
}

}  // namespace

void register_aten() {
    static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
    c10::Dispatcher &dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
        const auto op = dispatcher.findSchema(name);
        if (name.getNamespace() != "aten" || !op.has_value() ||
            !op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1) ||
            !is_compiled(cann_sim::entry_of(*op).lookup(kNpu))) {
            continue;
        }
        const std::string full = c10::toString(name);
        if (kKeep.count(full) != 0 || is_view(op->schema()) || at_level_aclnn(full)) {
            continue;
        }
        c10::OperatorHandle cpu_op = *op;
        const auto twin = kTwins.find(full);
        if (twin != kTwins.end()) {
            cpu_op = dispatcher.findSchemaOrThrow(twin->second.name, twin->second.overload);
        } else if (!op->hasComputedKernelForDispatchKey(c10::DispatchKey::CPU)) {
            continue;
        }
        library.impl(full.substr(6).c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<CpuKernel>(
                                                 *op, cpu_op, cann_sim::entry_of(*op).lookup(kNpu))));
    }
}

namespace {

// torch_npu gives some composite operators (lstm, fill_diagonal_, …) a kernel of its own above autograd, which asks
// CANN for one fused operator. Here torch's own composition runs in its place: operators that are simulated, with
// their gradients.
class Composite final : public c10::OperatorKernel {
public:
    void operator()(const c10::OperatorHandle &op, c10::DispatchKeySet keys, torch::jit::Stack *stack) {
        cann_sim::entry_of(op).lookup(c10::DispatchKeySet(c10::DispatchKey::AutogradCPU)).callBoxed(op, keys, stack);
    }
};

// But here what torch_npu's kernel calls is simulated, and means something else: one_hot takes an index that is out of
// range (mmcv's focal loss gives it one for the background), attention is one fused operator with its memory.
const std::unordered_set<std::string> kFused = {"aten::one_hot", "aten::scaled_dot_product_attention",
                                                "aten::lstm.data"};

// torch_npu's LSTM wants a packed sequence's result with the padding that its kernel computes along; torch's
// composition has none, and its result would be silently of another shape.
void refuse_packed_lstm(const c10::OperatorHandle &, torch::jit::Stack *) {
    TORCH_CHECK(false,
                "cann_sim does not simulate an LSTM of a packed sequence (on a card torch_npu's DynamicRNN computes "
                "its padding along): give the LSTM the padded tensor, or use a GRU");
}

void register_composites() {
    static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradPrivateUse1, __FILE__,
                                  __LINE__);
    c10::Dispatcher &dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
        const auto op = dispatcher.findSchema(name);
        const std::string full = c10::toString(name);
        if (name.getNamespace() == "aten" && kFused.count(full) == 0 && !at_level_aclnn(full) && op.has_value() &&
            op->hasKernelForDispatchKey(c10::DispatchKey::AutogradPrivateUse1) &&
            op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) && !is_view(op->schema())) {
            library.impl(full.substr(6).c_str(),
                         torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Composite>()));
        }
    }
    library.impl("lstm.data", torch::CppFunction::makeFromBoxedFunction<&refuse_packed_lstm>());
}

// When the plug-in is loaded, that is in aclInit. Last in this file: the tables above are initialised by then.
const bool loaded = [] {
    install_allocator();
    remember_torch_npus_kernels();
    const NoWarnings quiet;
    register_aten();
    register_composites();
    register_npu_ops();
    register_plugin_hooks();
    return true;
}();

}  // namespace

}  // namespace cann_sim
