// libascendcl.so: keeps the number of watchers of launches, and has the kernels wrapped while there is one.

#include "runtime/launches.h"

#include <mutex>

#include "runtime/state.h"

namespace cann_sim {

namespace {

std::mutex mutex;
unsigned watchers = 0;
bool wrapped = false;
const PluginHooks *hooks = nullptr;

// The caller holds the mutex.
void apply() {
    const bool wanted = watchers != 0;
    if (hooks != nullptr && wanted != wrapped) {
        (wanted ? hooks->wrap_operators : hooks->unwrap_operators)();
        wrapped = wanted;
    }
}

}  // namespace

void watch_launches(Watcher who, bool wanted) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto bit = static_cast<unsigned>(who);
    watchers = wanted ? watchers | bit : watchers & ~bit;
    apply();
}

void finish_queued() {
    if (hooks != nullptr && current_device() >= 0) {
        hooks->finish_queued();
    }
}

}  // namespace cann_sim

SIM_API void cann_sim_set_plugin_hooks(const cann_sim::PluginHooks *hooks) try {
    const std::lock_guard<std::mutex> lock(cann_sim::mutex);
    cann_sim::hooks = hooks;
    cann_sim::apply();  // CANN_SIM_COUNTERS and CANN_SIM_FAULT were read before the plug-in was there
}
SIM_CATCH_VOID
