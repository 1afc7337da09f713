// Sockets of the simulated HCCL: who owns their descriptors, and how bytes go through them before a deadline.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace cann_sim::hccl {

using Deadline = std::chrono::steady_clock::time_point;

// Number of forks between the process that loaded the library and this one. Sockets belong to one generation:
// a forked DataLoader worker must not hold its parent's connections open, or a dead rank would look alive.
int fork_generation();

// Owns one descriptor; closed in a forked child as soon as fork returns.
class Socket {
public:
    Socket() = default;
    explicit Socket(int fd);
    Socket(Socket &&other) noexcept;
    Socket &operator=(Socket &&other) noexcept;
    ~Socket() { close(); }
    int fd() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    void close();

private:
    int fd_ = -1;
    int generation_ = 0;
};

// An errno in words.
std::string reason(int error);

// The last call on a non-blocking socket would have had to wait.
bool would_block();

int milliseconds_until(Deadline deadline);

// Waits until `fd` is ready for the events of poll(); false at the deadline.
bool wait_for(int fd, short events, Deadline deadline);

bool write_all(int fd, const void *data, size_t size, Deadline deadline);

enum class Read { kDone, kTimeout, kClosed };

Read read_all(int fd, void *data, size_t size, Deadline deadline);

}  // namespace cann_sim::hccl
