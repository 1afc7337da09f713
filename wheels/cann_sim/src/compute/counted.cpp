// Counting operators: while counters are on, the profiler runs or a fault is to strike at the Nth launch, the kernel of
// every operator that cann_sim computes, and of every one that torch_npu sends to the CPU, stands behind a wrapper that
// counts. Otherwise the dispatcher's table is as it was.

#include "pch.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/ScalarType.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <map>
#include <memory>
#include <thread>
#include <unordered_map>

#include "compute/compute.h"
#include "compute/kernels.h"
#include "runtime/counters.h"
#include "runtime/faults.h"
#include "runtime/launches.h"
#include "runtime/profiler.h"
#include "runtime/python_line.h"
#include "torch_npu/csrc/core/npu/NPUCachingAllocator.h"

namespace cann_sim {

namespace {

// Functions, not variables: dispatch.cpp's initialiser may use them before those of this file have run.
std::unordered_map<c10::OperatorName, c10::KernelFunction> &torch_npus_kernels() {
    static std::unordered_map<c10::OperatorName, c10::KernelFunction> kernels;
    return kernels;
}

const c10::KernelFunction *cpu_fallback = nullptr;  // torch_npu's: a copy to the host, the CPU's kernel, a copy back

thread_local int depth = 0;  // of counted operators; only the outermost is counted, not those that it calls

void append_tensor(std::string &text, const at::Tensor &tensor) {
    if (is_npu(tensor)) {
        append_signature(text, tensor.scalar_type(), tensor.sizes());
    }
}

void append_value(std::string &text, const c10::IValue &value) {
    if (value.isTensor()) {
        append_tensor(text, value.toTensor());
    } else if (value.isTensorList()) {
        for (const at::Tensor &tensor : value.toTensorVector()) {
            append_tensor(text, tensor);
        }
    } else if (value.isOptionalTensorList()) {
        for (const std::optional<at::Tensor> &tensor : value.toOptionalTensorVector()) {
            append_tensor(text, tensor.value_or(at::Tensor()));
        }
    }
}

void append_values(std::string &text, const torch::jit::Stack &stack, size_t first) {
    for (size_t i = first; i < stack.size(); ++i) {
        append_value(text, stack[i]);
    }
}

c10::Device current_npu() { return c10::impl::VirtualGuardImpl(c10::DeviceType::PrivateUse1).getDevice(); }

class CountedKernel final : public c10::OperatorKernel {
public:
    // `own`: torch_npu's own kernel, at level aclnn, where its functions are counted (aclnn/run.cpp).
    CountedKernel(const c10::OperatorHandle &op, const c10::KernelFunction &kernel, bool falls_back, bool own)
        : kernel_(kernel), falls_back_(falls_back), own_(own), held_(op) {
        const c10::OperatorName &name = op.operator_name();
        name_ = c10::toString(name);
        is_copy_ = name.name == "aten::copy_";
        is_index_ = name_ == "aten::index.Tensor";
        // The host waits for a result whose value or shape decides what it does next.
        needs_host_ = op.hasTag(at::Tag::dynamic_output_shape) || op.hasTag(at::Tag::data_dependent_output);
    }

    void operator()(const c10::OperatorHandle &op, c10::DispatchKeySet keys, torch::jit::Stack *stack) {
        const size_t first = stack->size() - op.schema().arguments().size();
        if (depth > 0) {
            kernel_.callBoxed(op, keys, stack);
        } else if (is_copy_ && (*stack)[first].toTensor().device() != (*stack)[first + 1].toTensor().device()) {
            const IssuedHere here;  // a copy that does not block runs on torch_npu's own thread
            kernel_.callBoxed(op, keys, stack);
            finish_queued_operators(current_npu());
        } else if (own_ || held_.spare(*stack, first)) {
            kernel_.callBoxed(op, keys, stack);
        } else if (falls_back_) {
            call(op, keys, stack);
            if (counting()) {
                count_fallback(name_);
            }
        } else {
            launch(op, keys, stack, first);
        }
    }

private:
    struct Depth {
        Depth() { ++depth; }
        ~Depth() { --depth; }
    };

    void call(const c10::OperatorHandle &op, c10::DispatchKeySet keys, torch::jit::Stack *stack) {
        const Depth nested;
        kernel_.callBoxed(op, keys, stack);
    }

    void launch(const c10::OperatorHandle &op, c10::DispatchKeySet keys, torch::jit::Stack *stack, size_t first) {
        // Only a mask makes the shape of index's result depend on data.
        const bool waits = needs_host_ && (!is_index_ || has_mask((*stack)[first + 1]));
        const bool counts = counting();
        if (profiling()) {
            finish_queued_operators(current_npu());  // the kernel waits for them too: that is not its own time
        }
        const uint64_t task = cann_sim_task_begin();
        std::string text;
        if (counts || task != 0) {
            append_values(text, *stack, first);
        }
        const auto begin = std::chrono::steady_clock::now();
        call(op, keys, stack);
        const size_t results = stack->size() - op.schema().returns().size();
        const c10::DeviceIndex device = current_npu().index();
        if (suffer_faults(name_, device, begin) && results < stack->size() && (*stack)[results].isTensor()) {
            const at::AutoDispatchBelowADInplaceOrView below_autograd;
            alias_on_cpu((*stack)[results].toTensor()).zero_();
        }
        if (!counts && task == 0) {
            return;
        }
        text += " -> ";
        append_values(text, *stack, results);
        cann_sim_task_end(task, "SIMULATED", name_.c_str(), text.c_str());
        if (!counts) {
            return;
        }
        count_launch(name_, text);
        if (waits) {
            count_wait(name_.c_str());
        }
        count_memory(device);
    }

    static bool has_mask(const c10::IValue &indices) {
        for (const std::optional<at::Tensor> &index : indices.toOptionalTensorVector()) {
            if (index.has_value() && index->defined() &&
                (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte)) {
                return true;
            }
        }
        return false;
    }

    c10::KernelFunction kernel_;
    bool falls_back_;
    bool own_;
    HeldCalls held_;
    std::string name_;
    bool is_copy_;
    bool is_index_;
    bool needs_host_;
};

// What an operator's NPU kernel is now; nullptr where it has none.
const c10::KernelFunction *kernel_of(const c10::OperatorHandle &op) {
    return op.hasComputedKernelForDispatchKey(c10::DispatchKey::PrivateUse1) ? &entry_of(op).lookup(kNpu) : nullptr;
}

template <typename Visit>
void for_each_operator(Visit visit) {
    c10::Dispatcher &dispatcher = c10::Dispatcher::singleton();
    for (const c10::OperatorName &name : dispatcher.getAllOpNames()) {
        const auto op = dispatcher.findSchema(name);
        if (op.has_value() && name.getNamespace().has_value() && kernel_of(*op) != nullptr) {
            visit(*op, *kernel_of(*op));
        }
    }
}

// Wrappers by namespace; destroying one takes its registrations back.
std::map<std::string, std::unique_ptr<torch::Library>> &wrappers() {
    static std::map<std::string, std::unique_ptr<torch::Library>> libraries;
    return libraries;
}

void wrap_operators() {
    const NoWarnings quiet;
    for_each_operator([](const c10::OperatorHandle &op, const c10::KernelFunction &kernel) {
        const auto was = torch_npus_kernels().find(op.operator_name());
        const bool known = was != torch_npus_kernels().end();
        const c10::KernelFunction &on_a_card = known ? was->second : kernel;
        const bool falls_back = cpu_fallback != nullptr && on_a_card._equalsBoxedAndUnboxed(*cpu_fallback);
        const bool simulated = known && !was->second._equalsBoxedAndUnboxed(kernel);
        // Copies between host and device are counted here at every level: only here the line of Python is known.
        const bool own = !falls_back && !simulated;
        if (own && op.operator_name().name != "aten::copy_") {
            return;
        }
        const std::string space(*op.operator_name().getNamespace());
        auto &library = wrappers()[space];
        if (library == nullptr) {
            library = std::make_unique<torch::Library>(torch::Library::IMPL, space, c10::DispatchKey::PrivateUse1,
                                                       __FILE__, __LINE__);
        }
        const std::string full = c10::toString(op.operator_name());
        auto counted = std::make_unique<CountedKernel>(op, kernel, falls_back, own);
        library->impl(full.substr(space.size() + 2).c_str(),
                      torch::CppFunction::makeFromBoxedFunctor(std::move(counted)));
    });
}

void unwrap_operators() { wrappers().clear(); }

}  // namespace

bool counts_as_a_whole() { return depth > 0; }

bool suffer_faults(const std::string &op, int device, std::chrono::steady_clock::time_point begin) {
    const LaunchFault fault = fault_at_launch(op, device);
    if (fault.slow_down > 1) {
        std::this_thread::sleep_for((std::chrono::steady_clock::now() - begin) * (fault.slow_down - 1));
    }
    return fault.corrupt;
}

void count_memory(c10::DeviceIndex device) {
    const auto stats = c10_npu::NPUCachingAllocator::getDeviceStats(device);
    constexpr auto kAll = static_cast<size_t>(c10_npu::NPUCachingAllocator::StatType::AGGREGATE);
    const auto &allocated = stats.allocated_bytes[kAll];
    count_tensor_bytes({device, allocated.current, allocated.peak});
}

void append_signature(std::string &text, at::ScalarType type, at::IntArrayRef sizes) {
    text += (text.empty() || text.back() == ' ' ? "" : ", ") + c10::getDtypeNames(type).first + "[";
    for (size_t i = 0; i < sizes.size(); ++i) {
        text += (i == 0 ? "" : ",") + std::to_string(sizes[i]);
    }
    text += "]";
}

void remember_torch_npus_kernels() {
    for_each_operator([](const c10::OperatorHandle &op, const c10::KernelFunction &kernel) {
        const auto has = [&op](c10::DispatchKey key) { return op.hasKernelForDispatchKey(key); };
        if (has(c10::DispatchKey::PrivateUse1)) {
            if (is_compiled(kernel)) {
                torch_npus_kernels().emplace(op.operator_name(), kernel);
            }
            return;
        }
        // Without a kernel for this device and without one for all devices, what remains is the fallback. It is not
        // remembered: whoever gives the operator a kernel later, from Python too, has taken it off the CPU.
        const bool has_own = has(c10::DispatchKey::CompositeImplicitAutograd) ||
                             has(c10::DispatchKey::CompositeExplicitAutograd) ||
                             has(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
        if (cpu_fallback == nullptr && !has_own && has(c10::DispatchKey::CPU)) {
            static const c10::KernelFunction fallback = kernel;
            cpu_fallback = &fallback;
        }
    });
}

void register_plugin_hooks() {
    static const PluginHooks hooks = {&wrap_operators, &unwrap_operators,
                                      [] { finish_queued_operators(current_npu()); }};
    cann_sim_set_plugin_hooks(&hooks);
}

}  // namespace cann_sim
