#include "hccl/registry.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "hccl/communicator.h"

namespace cann_sim::hccl {
namespace {

struct Registry {
    std::mutex mutex;
    std::map<HcclComm, std::shared_ptr<Communicator>> communicators;
    Socket wake;  // an eventfd; empty until the thread runs
};

// Never destroyed: the thread and torch_npu's finalisers may outlive static destructors.
Registry &registry() {
    static Registry *instance = [] {
        // A child may destroy the communicators it inherited (they do nothing there), so its mutex must be
        // free.
        pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                       [] {
                           registry().wake = Socket();
                           registry().mutex.unlock();
                       });
        return new Registry;
    }();
    return *instance;
}

void serve_sends(int wake) {
    while (true) {
        std::vector<std::shared_ptr<Communicator>> all;
        {
            const std::lock_guard<std::mutex> lock(registry().mutex);
            for (const auto &[handle, communicator] : registry().communicators) all.push_back(communicator);
        }
        std::vector<pollfd> pollers{{wake, POLLIN, 0}};
        bool busy = false;
        for (const auto &communicator : all) {
            busy |= !communicator->try_flush();
            for (int fd : communicator->congested()) pollers.push_back({fd, POLLOUT, 0});
        }
        // A communicator in a call sends for itself; look again when that may have ended.
        const bool idle = pollers.size() == 1 && !busy;
        all.clear();
        poll(pollers.data(), pollers.size(), idle ? -1 : busy ? 2 : 100);
        uint64_t count;
        const ssize_t ignored = read(wake, &count, sizeof count);
        static_cast<void>(ignored);
    }
}

}  // namespace

HcclComm add(std::shared_ptr<Communicator> communicator) {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    HcclComm handle = communicator.get();
    registry().communicators[handle] = std::move(communicator);
    return handle;
}

std::shared_ptr<Communicator> find(HcclComm handle) {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto found = registry().communicators.find(handle);
    if (found == registry().communicators.end()) {
        throw Error(handle == nullptr ? HCCL_E_PTR : HCCL_E_PARA, kBadArgument,
                    "the handle is no communicator of this process");
    }
    return found->second;
}

std::shared_ptr<Communicator> remove(HcclComm handle) {
    std::shared_ptr<Communicator> communicator = find(handle);
    const std::lock_guard<std::mutex> lock(registry().mutex);
    registry().communicators.erase(handle);
    return communicator;
}

void wake_flusher() {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    if (!registry().wake) {
        registry().wake = Socket(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        if (!registry().wake) throw Error(HCCL_E_SYSCALL, kResource, "eventfd failed");
        std::thread([fd = registry().wake.fd()] {
            pthread_setname_np(pthread_self(), "hccl_send");
            serve_sends(fd);
        }).detach();
    }
    const uint64_t one = 1;
    const ssize_t ignored = write(registry().wake.fd(), &one, sizeof one);
    static_cast<void>(ignored);
}

}  // namespace cann_sim::hccl
