// The compute plug-in: what dispatch.cpp and counted.cpp need of the dispatcher's kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

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

inline bool is_npu(const at::Tensor &tensor) { return tensor.defined() && tensor.is_privateuseone(); }

}  // namespace cann_sim
