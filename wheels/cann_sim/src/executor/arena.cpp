#include "pch.h"

#include "executor/arena.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_map>
#include <utility>

namespace cann_sim::executor {

namespace {

constexpr size_t kLarge = size_t{1} << 20;  // smaller ones are malloc's, which reuses them itself
constexpr size_t kHugePage = size_t{2} << 20;

thread_local std::shared_ptr<Arena> current;

// Whose the blocks in use are. oneDNN asks ATen's allocator for plain memory and gives it back without a word about where
// it is from, so an address must tell: only those at multiples of kHugePage can be an arena's.
struct Owner {
    std::shared_ptr<Arena> arena;
    size_t size;
};
// Never destroyed: tensors of others may be freed while the process ends.
std::mutex &owners_mutex = *new std::mutex;
std::unordered_map<void *, Owner> &owners = *new std::unordered_map<void *, Owner>;

c10::Allocator *usual = nullptr;  // ATen's own

void free_block(void *data) {
    if (reinterpret_cast<uintptr_t>(data) % kHugePage == 0 && data != nullptr) {
        std::unique_lock<std::mutex> lock(owners_mutex);
        const auto found = owners.find(data);
        if (found != owners.end()) {
            const Owner owner = std::move(found->second);
            owners.erase(found);
            lock.unlock();
            owner.arena->give_back(data, owner.size);
            return;
        }
    }
    usual->raw_deleter()(data);
}

// ATen's allocator of CPU tensors, with the arena of the thread before it.
class Allocator final : public c10::Allocator {
public:
    at::DataPtr allocate(size_t size) override {
        if (current == nullptr || size < kLarge) {
            return usual->allocate(size);
        }
        void *data = current->take(size);
        const std::lock_guard<std::mutex> lock(owners_mutex);
        owners[data] = {current, size};
        return {data, data, &free_block, at::Device(at::kCPU)};
    }

    at::DeleterFnPtr raw_deleter() const override { return &free_block; }

    void copy_data(void *to, const void *from, size_t count) const override { std::memcpy(to, from, count); }
};

}  // namespace

void *Arena::take(size_t &size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.lower_bound(size);
    if (found != free_.end() && found->first - size <= size / 4) {
        size = found->first;
        void *block = found->second;
        free_.erase(found);
        return block;
    }
    size = (size + kHugePage - 1) / kHugePage * kHugePage;
    void *block = std::aligned_alloc(kHugePage, size);
    if (block == nullptr) {
        release();
        block = std::aligned_alloc(kHugePage, size);
    }
    if (block == nullptr) {
        throw std::bad_alloc();
    }
    madvise(block, size, MADV_HUGEPAGE);  // a hint: without huge pages all stays as it is
    return block;
}

void Arena::give_back(void *block, size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.emplace(size, block);
}

void Arena::release() {
    for (const auto &[size, block] : free_) {
        std::free(block);
    }
    free_.clear();
}

std::shared_ptr<Arena> Arenas::borrow(uint32_t gear) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (gear != gear_) {
        idle_.clear();
        gear_ = gear;
    }
    if (idle_.empty()) {
        return std::make_shared<Arena>();
    }
    auto arena = std::move(idle_.back());
    idle_.pop_back();
    return arena;
}

void Arenas::give_back(std::shared_ptr<Arena> arena, uint32_t gear) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (gear == gear_) {
        idle_.push_back(std::move(arena));
    }
}

InArena::InArena(std::shared_ptr<Arena> arena) {
    static const bool placed = [] {
        // It stays until the process ends: tensors of others may have been made through it.
        usual = c10::GetCPUAllocator();
        c10::SetCPUAllocator(new Allocator);
        return true;
    }();
    static_cast<void>(placed);
    current = std::move(arena);
}

InArena::~InArena() { current.reset(); }

}  // namespace cann_sim::executor
