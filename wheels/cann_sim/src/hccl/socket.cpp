#include "hccl/socket.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <utility>

namespace cann_sim::hccl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct Descriptors {
    std::mutex mutex;
    std::set<int> open;
    int generation = 0;
};

// Never destroyed: threads of this library may outlive static destructors.
Descriptors &descriptors() {
    static Descriptors *instance = [] {
        pthread_atfork([] { descriptors().mutex.lock(); }, [] { descriptors().mutex.unlock(); },
                       [] {
                           for (int fd : descriptors().open) ::close(fd);
                           descriptors().open.clear();
                           ++descriptors().generation;
                           descriptors().mutex.unlock();
                       });
        return new Descriptors;
    }();
    return *instance;
}

}  // namespace

int fork_generation() { return descriptors().generation; }

Socket::Socket(int fd) : fd_(fd), generation_(fork_generation()) {
    if (fd_ < 0) return;
    const std::lock_guard<std::mutex> lock(descriptors().mutex);
    descriptors().open.insert(fd_);
}

Socket::Socket(Socket &&other) noexcept : fd_(other.fd_), generation_(other.generation_) { other.fd_ = -1; }

Socket &Socket::operator=(Socket &&other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(generation_, other.generation_);
    return *this;
}

void Socket::close() {
    if (fd_ < 0) return;
    const std::lock_guard<std::mutex> lock(descriptors().mutex);
    // In a forked child the number may already stand for another file.
    if (generation_ == descriptors().generation && descriptors().open.erase(fd_) == 1) ::close(fd_);
    fd_ = -1;
}

std::string reason(int error) { return std::strerror(error); }

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

int milliseconds_until(Deadline deadline) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left + 1, 0, 1 << 30));
}

bool wait_for(int fd, short events, Deadline deadline) {
    while (true) {
        pollfd poller{fd, events, 0};
        const int ready = poll(&poller, 1, milliseconds_until(deadline));
        if (ready > 0) return true;
        if (ready == 0 || errno != EINTR) return false;
    }
}

bool write_all(int fd, const void *data, size_t size, Deadline deadline) {
    auto *bytes = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0) {
            bytes += sent;
            size -= static_cast<size_t>(sent);
        } else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            return false;
        } else if (!wait_for(fd, POLLOUT, deadline)) {
            return false;
        }
    }
    return true;
}

Read read_all(int fd, void *data, size_t size, Deadline deadline) {
    auto *bytes = static_cast<char *>(data);
    while (size > 0) {
        const ssize_t got = recv(fd, bytes, size, MSG_DONTWAIT);
        if (got > 0) {
            bytes += got;
            size -= static_cast<size_t>(got);
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
            return Read::kClosed;
        } else if (!wait_for(fd, POLLIN, deadline)) {
            return Read::kTimeout;
        }
    }
    return Read::kDone;
}

}  // namespace cann_sim::hccl
