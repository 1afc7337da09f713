// The compute plug-in: what dispatch.cpp and counted.cpp need of the dispatcher's kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "compute/levels.h"

namespace cann_sim {

// The entry from which an operator's kernels can be looked up, also one that is about to be replaced (dispatch.cpp).
c10::impl::OperatorEntry &entry_of(const c10::OperatorHandle &op);

// Whether a kernel is C++, as torch_npu's are. One in Python is somebody else's, who wants it to run here as on a card.
inline bool is_compiled(const c10::KernelFunction &kernel) {
    return kernel.isValidUnboxed() || kernel.isValidSymUnboxed();
}

inline const c10::DispatchKeySet kCpu(c10::DispatchKey::CPU);
inline const c10::DispatchKeySet kNpu(c10::DispatchKey::PrivateUse1);

// While one lives, torch's warnings are dropped: the dispatcher warns that kernels are replaced, which is what this
// plug-in is for.
class NoWarnings {
public:
    NoWarnings() : guard_(&silent_) {}

private:
    struct Silent : c10::WarningHandler {
        void process(const c10::Warning &) override {}
    };

    Silent silent_;
    const c10::WarningUtils::WarningHandlerGuard guard_;
};

// The calls of an operator that are held back at level aten where the others are at level aclnn (levels.h).
class HeldCalls {
public:
    explicit HeldCalls(const c10::OperatorHandle &op) {
        const std::string argument = held_argument(c10::toString(op.operator_name()));
        index_ = argument.empty() ? -1 : op.schema().argumentIndexWithName(argument).value();
    }

    // Whether the operator is at level aclnn, but for such calls, and this is none. `first`: its first argument.
    bool spare(const torch::jit::Stack &stack, size_t first) const {
        return index_ >= 0 && !is_given(stack[first + static_cast<size_t>(index_)]);
    }

private:
    // A whole number counts as none: what torch_npu makes of it is what torch makes of it.
    static bool is_given(const c10::IValue &value) {
        return value.isDouble() ? std::floor(value.toDouble()) != value.toDouble() : !value.isNone() && !value.isInt();
    }

    int index_ = -1;
};

inline bool is_npu(const at::Tensor &tensor) { return tensor.defined() && tensor.is_privateuseone(); }

}  // namespace cann_sim
