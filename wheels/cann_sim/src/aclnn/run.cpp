// Runs a planned aclnn function: counted, profiled and struck by faults as the operators at level aten are (compute/counted.cpp),
// under the function's own name, as a card would launch it.

#include "pch.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <dlfcn.h>
#include <pthread.h>

#include <chrono>
#include <cstring>

#include "aclnn/adapter.h"
#include "compute/compute.h"
#include "compute/task_queue.h"
#include "compute/types.h"
#include "runtime/aclnn.h"
#include "runtime/counters.h"
#include "runtime/faults.h"
#include "runtime/profiler.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

void append_value(std::string &text, const Value &value) {
    if (value.is_null()) {
        return;
    }
    if (value.kind == Value::kTensor) {
        append_signature(text, scalar_type(value.tensor()->dtype), value.tensor()->sizes);
    } else if (value.kind == Value::kTensors) {
        for (const aclTensor *tensor : value.tensors()) {
            append_value(text, Value(tensor));
        }
    }
}

// float32[2,3], int64[4] -> float32[4,3]: what the function reads, and what it writes.
std::string signature(const aclOpExecutor &executor) {
    std::string text;
    for (const bool written : {false, true}) {
        text += written ? " -> " : "";
        for (size_t i = 0; i < executor.values.size(); ++i) {
            if (executor.function->arguments[i].written == written) {
                append_value(text, executor.values[i]);
            }
        }
    }
    return text;
}

void corrupt_results(const aclOpExecutor &executor) {
    for (size_t i = 0; i < executor.values.size(); ++i) {
        const Value &value = executor.values[i];
        if (executor.function->arguments[i].written && value.kind == Value::kTensor && !value.is_null()) {
            tensor(value).zero_();
        }
    }
}

// torch_npu's queue thread (acl_thread) would get a pool of OpenMP threads of its own, beside that of the thread that
// queues: more threads than cores, which wait for each other. It computes alone.
void keep_queue_thread_alone() {
    static thread_local const bool done = [] {
        char name[16] = "";
        pthread_getname_np(pthread_self(), name, sizeof name);
        if (std::strcmp(name, "acl_thread") == 0) {
            // By name: libtorch's OpenMP library has a file name of its own, and torch's function for this is global.
            using SetThreads = void (*)(int);
            if (const auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) {
                set(1);
            }
        }
        return true;
    }();
    static_cast<void>(done);
}

void launch(const aclOpExecutor &executor) {
    const Function &function = *executor.function;
    if (executor.part) {
        compute(function, executor.values.data());
        return;
    }
    const uint64_t task = cann_sim_task_begin();
    const bool counts = counting();
    const bool watched = faults_watch_launches();
    const std::string text = counts || task != 0 ? signature(executor) : "";
    const auto begin = std::chrono::steady_clock::now();
    compute(function, executor.values.data());
    if ((counts || task != 0 || watched) && suffer_faults(function.name, current_device(), begin)) {
        corrupt_results(executor);
    }
    cann_sim_task_end(task, "SIMULATED", function.name, text.c_str());
    if (counts) {
        count_launch(function.name, text);
    }
}

// What a call of a function throws, as a card's message; nothing if it does not.
template <typename F>
std::optional<std::string> failure_of(const Function &function, const F &call) {
    std::string message;
    try {
        call();
        return std::nullopt;
    } catch (const c10::Error &error) {
        message = error.what_without_backtrace();
    } catch (const std::exception &error) {
        message = error.what();
    } catch (...) {
        message = "an unknown exception";
    }
    return std::string("EZ9999: ") + function.name + ": " + message;
}

int run(const aclOpExecutor &executor) {
    const auto failure = failure_of(*executor.function, [&] {
        keep_queue_thread_alone();
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
        launch(executor);
    });
    if (!failure.has_value()) {
        return 0;
    }
    remember_queue_failure(*failure);
    return fail(kInnerError, *failure);
}

int check_first(const Function &function, const Value *values) {
    const auto failure = failure_of(function, [&] { check_by_hand(function, values); });
    return failure.has_value() ? fail(kInnerError, *failure) : 0;
}

// The device's memory is counted by the thread that plans: the results are allocated, and what follows is not yet.
bool planned() {
    const bool part = counts_as_a_whole();
    if (counting() && !part) {
        issue_launch();
        count_memory(static_cast<c10::DeviceIndex>(current_device()));
    }
    return part;
}

const bool connected = [] {
    static const AclnnHooks hooks = {&check_first, &planned, &run, &queue_failure};
    cann_sim_set_aclnn(&hooks);
    return true;
}();

}  // namespace

}  // namespace cann_sim
