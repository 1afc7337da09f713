#include "pch.h"

#include "compute/task_queue.h"

#include <pthread.h>

#include <atomic>
#include <cstring>
#include <mutex>

#include "runtime/state.h"

namespace cann_sim {

namespace {

std::mutex mutex;
std::string failure;
std::atomic<bool> failed{false};

}  // namespace

void remember_queue_failure(const std::string &message) {
    char thread[16] = "";
    pthread_getname_np(pthread_self(), thread, sizeof thread);
    if (std::strcmp(thread, "acl_thread") == 0) {  // torch_npu's name for the thread that works the queue off
        const std::lock_guard<std::mutex> lock(mutex);
        failure = message;
        failed = true;
    }
}

// torch_npu's own words for it. It says so itself only where multiprocessing forks, and not of what its allocator has
// memory for.
const char *const kLostFork =
    "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, you must use the 'spawn' start "
    "method";

std::string queue_failure() {
    if (is_lost_fork()) {
        return kLostFork;
    }
    if (!failed.load(std::memory_order_relaxed)) {
        return {};
    }
    const std::lock_guard<std::mutex> lock(mutex);
    return "An operator failed in torch_npu's task queue (" + failure +
           "), which has ended: this process computes nothing more. Start it anew. With TASK_QUEUE_ENABLE=0 a failing "
           "operator raises its error where it is called, and the process can go on.";
}

void check_fork() { TORCH_CHECK(!is_lost_fork(), kLostFork); }

void check_task_queue() {
    const std::string text = queue_failure();
    TORCH_CHECK(text.empty(), text);
}

}  // namespace cann_sim
