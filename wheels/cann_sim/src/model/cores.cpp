// libascendcl.so: whose turn it is on a device.

#include "model/cores.h"

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>

#include "runtime/state.h"
#include "runtime/streams.h"

namespace cann_sim {

namespace {

class Cores {
public:
    void take() {
        std::unique_lock<std::mutex> lock(mutex_);
        const uint64_t ours = last_++;
        changed_.wait(lock, [&] { return next_ == ours; });
    }

    void release() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            ++next_;
        }
        changed_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    uint64_t last_ = 0, next_ = 0;
};

// Never destroyed: a process that ends may still have a stream that waits for them.
Cores &cores_of(int device) {
    static auto *const cores = new Cores[kMaxDevices];
    return cores[device];
}

}  // namespace

void take_cores(int device) { cores_of(device).take(); }
void release_cores(int device) { cores_of(device).release(); }

void finish_models_at_exit() {
    std::atexit([] {
        if (is_lost_fork()) {
            return;
        }
        for (int device = 0; device < logical_device_count(); ++device) {
            take_cores(device);  // for good: streams whose turn would be next wait until the process is gone
        }
    });
}

}  // namespace cann_sim

// For pyACL, when Python ends: a kernel may make statics of libtorch at its first run, and these end before a handler of
// exit() that was there before them. Streams must be empty by then.
SIM_API void cann_sim_drain_devices() try {
    if (cann_sim::is_lost_fork()) {
        return;
    }
    for (int device = 0; device < cann_sim::logical_device_count(); ++device) {
        cann_sim::drain_device(device, -1);
    }
}
SIM_CATCH_VOID
