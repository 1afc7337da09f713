// Launches are reported only while there is a watcher; the compute plug-in wraps its kernels for that time.
#pragma once

#include "runtime/abi.h"

namespace cann_sim {

enum class Watcher : unsigned { kCounters = 1, kFaults = 2, kProfiler = 4 };

// Adds or removes the watcher `who`.
void watch_launches(Watcher who, bool wanted);

// Waits for what torch_npu has queued on its own thread.
void finish_queued();

// Functions of the compute plug-in, which it sets when it is loaded.
struct PluginHooks {
    void (*wrap_operators)();    // every launch is reported
    void (*unwrap_operators)();  // none is
    void (*finish_queued)();
};

}  // namespace cann_sim

SIM_API void cann_sim_set_plugin_hooks(const cann_sim::PluginHooks *hooks);
