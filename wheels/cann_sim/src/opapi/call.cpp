// libopapi.so: the two phases that all aclnn functions share.

#include "opapi/call.h"

#include <memory>

#include "runtime/aclnn.h"
#include "runtime/interpreter_lock.h"
#include "runtime/one_tree.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

const AclnnHooks *hooks_for(const Function &function) {
    const AclnnHooks *hooks = cann_sim_get_aclnn();
    if (hooks == nullptr) {
        fail(kInnerError,
             std::string(function.name) + ": the compute plug-in is not loaded (it needs torch_npu in this process)");
    }
    return hooks;
}

void keep_texts(aclOpExecutor &executor) {
    for (Value &value : executor.values) {
        if (value.kind == Value::kText && !value.is_null()) {
            value.pointer = executor.texts.emplace_back(value.text()).c_str();
        }
    }
}

}  // namespace

int plan(const Function &function, const Value *values, uint64_t *workspace, aclOpExecutor **executor) noexcept {
    try {
        note_interpreter_lock();
        const AclnnHooks *hooks = hooks_for(function);
        if (hooks == nullptr) {
            return kInnerError;
        }
        const std::string failure = hooks->queue_failure();
        if (!failure.empty()) {
            return fail(kInnerError, std::string("EZ9999: ") + function.name + ": " + failure);
        }
        int status = check(function, values);
        if (status == 0 && function.op == nullptr) {
            status = hooks->check(function, values);
        }
        if (status != 0) {
            return status;
        }
        if (workspace == nullptr || executor == nullptr) {
            return fail(kNullPointer, std::string("EZ1001: ") + function.name + ": workspaceSize or executor is null");
        }
        auto made = std::make_unique<aclOpExecutor>();
        made->function = &function;
        made->values.assign(values, values + function.count);
        keep_texts(*made);
        made->part = hooks->planned();
        *executor = made.release();
        *workspace = 0;
        return 0;
    } catch (const std::exception &error) {
        return fail(kInnerError, std::string("EZ9999: ") + function.name + ": " + error.what());
    }
}

int execute(aclOpExecutor *executor) noexcept {
    if (executor == nullptr) {
        return fail(kNullPointer, "EZ1001: an aclnn function was run without an executor");
    }
    const std::unique_ptr<aclOpExecutor> owned(executor);
    const AclnnHooks *hooks = hooks_for(*owned->function);
    const int status = hooks == nullptr ? kInnerError : hooks->run(*owned);
    if (status != 0) {
        retake_interpreter_lock();
    }
    return status;
}

}  // namespace cann_sim
