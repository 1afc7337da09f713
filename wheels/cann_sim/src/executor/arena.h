// The memory of runs: large blocks are kept from one run of a model to the next. Fresh memory costs a page fault per 4 KiB,
// of ViT-B at 1024 px a seventh of the time.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace cann_sim::executor {

// Blocks of memory, used by one run at a time.
class Arena {
public:
    Arena() = default;
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;
    ~Arena() { release(); }

    // At least `size` bytes at a multiple of 2 MiB, and the true size in `size`. Throws std::bad_alloc.
    void *take(size_t &size);
    void give_back(void *block, size_t size);

private:
    void release();

    std::mutex mutex_;
    std::multimap<size_t, void *> free_;
};

// The arenas of a model: one per run at the same time. Those of another gear have blocks of other sizes, so each gear has
// its own, and a change of the gear frees the last one's.
class Arenas {
public:
    std::shared_ptr<Arena> borrow(uint32_t gear);
    void give_back(std::shared_ptr<Arena> arena, uint32_t gear);

private:
    std::mutex mutex_;
    uint32_t gear_ = 0;
    std::vector<std::shared_ptr<Arena>> idle_;
};

// While one lives, large tensors that ATen makes in this thread are in the arena. The first puts an allocator before ATen's;
// in all other threads, and at all other times, that one does what ATen's does.
class InArena {
public:
    explicit InArena(std::shared_ptr<Arena> arena);
    ~InArena();
    InArena(const InArena &) = delete;
    InArena &operator=(const InArena &) = delete;
};

}  // namespace cann_sim::executor
