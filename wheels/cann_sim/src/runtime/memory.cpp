// libascendcl.so: device and pinned host memory. A device's memory is host memory, accounted per device against
// CANN_SIM_HBM_GB over all processes of the user, as the processes of one host share a card.

#include "runtime/memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "runtime/counters.h"
#include "runtime/faults.h"
#include "runtime/operators.h"
#include "runtime/profiler.h"
#include "runtime/state.h"
#include "runtime/streams.h"

using cann_sim::fail;

namespace {

constexpr size_t kHugePage = size_t{2} << 20;  // aclrtMalloc hands out 2 MiB pages (ACL_MEM_MALLOC_HUGE_FIRST)

size_t round_up(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

// ---- who uses how much of which device ----
// One small file per process and device, <state>/<physical id>.<pid>, holding the bytes in use, so that npu-smi
// and the memory limit see all processes. A file whose process is gone does not count and is removed.

std::string state_folder() {
    const char *chosen = std::getenv("CANN_SIM_STATE");
    if (chosen != nullptr && *chosen != '\0') {
        return chosen;
    }
    return "/dev/shm/cann_sim." + std::to_string(getuid());
}

class Usage {
public:
    // Bytes that this process holds on `physical`; lives as long as the process.
    std::atomic<uint64_t> &mine(int physical) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (pid_ != getpid()) {  // a forked child starts with nothing on the device
            std::fill(std::begin(used_), std::end(used_), nullptr);
            pid_ = getpid();
        }
        std::atomic<uint64_t> *&slot = used_[physical];
        if (slot == nullptr) {
            slot = open_slot(physical);
        }
        return *slot;
    }

    static uint64_t of_others(int physical) {
        const std::string folder = state_folder();
        DIR *dir = opendir(folder.c_str());
        if (dir == nullptr) {
            return 0;
        }
        uint64_t sum = 0;
        while (const dirent *entry = readdir(dir)) {
            int device = 0, pid = 0;
            char rest = 0;
            if (std::sscanf(entry->d_name, "%d.%d%c", &device, &pid, &rest) != 2 || device != physical ||
                pid == getpid()) {
                continue;
            }
            const std::string path = folder + "/" + entry->d_name;
            if (kill(pid, 0) != 0 && errno == ESRCH) {
                unlink(path.c_str());
                continue;
            }
            uint64_t used = 0;
            const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
            if (fd >= 0) {
                if (read(fd, &used, sizeof(used)) == sizeof(used)) {
                    sum += used;
                }
                close(fd);
            }
        }
        closedir(dir);
        return sum;
    }

    ~Usage() {
        if (pid_ != getpid()) {
            return;
        }
        for (int device = 0; device < cann_sim::kMaxDevices; ++device) {
            if (used_[device] != nullptr) {
                unlink(slot_path(device).c_str());
            }
        }
    }

private:
    static std::string slot_path(int physical) {
        return state_folder() + "/" + std::to_string(physical) + "." + std::to_string(getpid());
    }

    static std::atomic<uint64_t> *open_slot(int physical) {
        static std::atomic<uint64_t> unshared[cann_sim::kMaxDevices];  // where no state folder can be written
        mkdir(state_folder().c_str(), 0700);
        const int fd = open(slot_path(physical).c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (fd < 0) {
            return &unshared[physical];
        }
        void *page = MAP_FAILED;
        if (ftruncate(fd, sizeof(uint64_t)) == 0) {
            page = mmap(nullptr, sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        }
        close(fd);
        return page == MAP_FAILED ? &unshared[physical] : static_cast<std::atomic<uint64_t> *>(page);
    }

    std::mutex mutex_;
    pid_t pid_ = getpid();
    std::atomic<uint64_t> *used_[cann_sim::kMaxDevices] = {};
};

Usage &usage() {
    static Usage u;
    return u;
}

// Takes `size` bytes of the device's account; false where the device has not that much left.
bool charge(int logical, size_t size) {
    const int physical = cann_sim::config().visible[logical];
    std::atomic<uint64_t> &mine = usage().mine(physical);
    const uint64_t after = mine.fetch_add(size) + size;
    if (after + Usage::of_others(physical) <= cann_sim::config().hbm_bytes) {
        return true;
    }
    mine.fetch_sub(size);
    return false;
}

void refund(int logical, size_t size) { usage().mine(cann_sim::config().visible[logical]).fetch_sub(size); }

// ACL_ERROR_RT_DEVICE_OOM of CANN 8.5's rt_error_codes.h; the headers of torch_npu end before it, and it knows 207001 only.
constexpr aclError kDeviceOutOfMemory = 207018;

aclError out_of_memory(int device, size_t size) {
    return fail(cann_sim_get_execute() == nullptr ? kDeviceOutOfMemory : ACL_ERROR_RT_MEMORY_ALLOCATION,
                "EL0004: Failed to allocate memory.\n        Possible Cause: Available memory is insufficient.\n"
                "        Device " +
                    std::to_string(device) + ", " + std::to_string(size) + " bytes (simulated device, cann_sim)");
}

struct Block {
    size_t size;
    int device;
};

std::mutex blocks_mutex;
std::map<void *, Block> blocks;  // what aclrtMalloc and aclrtMapMem handed out

// Both under blocks_mutex.
void hold(void *address, const Block &block) {
    blocks[address] = block;
    if (cann_sim::counting()) {
        cann_sim::count_block(block.device, static_cast<int64_t>(block.size));
    }
}

void drop(std::map<void *, Block>::iterator block) {
    if (cann_sim::counting()) {
        cann_sim::count_block(block->second.device, -static_cast<int64_t>(block->second.size));
    }
    blocks.erase(block);
}

aclError no_device() { return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: no device was set on this thread"); }

}  // namespace

void cann_sim::count_held_blocks() {
    const std::lock_guard<std::mutex> lock(blocks_mutex);
    for (const auto &[address, block] : blocks) {
        count_block(block.device, static_cast<int64_t>(block.size));
    }
}

SIM_API aclError aclrtMalloc(void **address, size_t size, aclrtMemMallocPolicy) try {
    const int device = cann_sim::current_device();
    if (device < 0) {
        return no_device();
    }
    if (address == nullptr || size == 0) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclrtMalloc of 0 bytes");
    }
    const size_t rounded = round_up(size, kHugePage);
    if (cann_sim::fault_at_allocation(device) != ACL_SUCCESS || !charge(device, rounded)) {
        return out_of_memory(device, size);
    }
    void *p = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        refund(device, rounded);
        return out_of_memory(device, size);
    }
    madvise(p, rounded, MADV_HUGEPAGE);
    std::lock_guard<std::mutex> lock(blocks_mutex);
    hold(p, {rounded, device});
    *address = p;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtMallocAlign32(void **address, size_t size, aclrtMemMallocPolicy policy) {
    return aclrtMalloc(address, size, policy);
}

SIM_API aclError aclrtMallocCached(void **address, size_t size, aclrtMemMallocPolicy policy) {
    return aclrtMalloc(address, size, policy);
}
SIM_API aclError aclrtMemFlush(void *, size_t) { return ACL_SUCCESS; }
SIM_API aclError aclrtMemInvalidate(void *, size_t) { return ACL_SUCCESS; }

SIM_API aclError aclrtFree(void *address) try {
    Block block;
    {
        std::lock_guard<std::mutex> lock(blocks_mutex);
        const auto found = blocks.find(address);
        if (found == blocks.end()) {
            return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclrtFree of an address that aclrtMalloc did not return");
        }
        block = found->second;
        drop(found);
    }
    munmap(address, block.size);
    refund(block.device, block.size);
    return ACL_SUCCESS;
}
SIM_CATCH

namespace {

std::mutex pinned_mutex;
std::map<void *, size_t> pinned;  // what aclrtMallocHost handed out

size_t size_of(const Block &block) { return block.size; }
size_t size_of(size_t size) { return size; }

// Whether `address` lies in one of the areas; the caller holds their mutex.
template <typename Areas>
bool contains(const Areas &areas, const void *address) {
    auto after = areas.upper_bound(const_cast<void *>(address));
    if (after == areas.begin()) {
        return false;
    }
    --after;
    return static_cast<const char *>(address) < static_cast<const char *>(after->first) + size_of(after->second);
}

bool is_pinned(const void *address) {
    const std::lock_guard<std::mutex> lock(pinned_mutex);
    return contains(pinned, address);
}

}  // namespace

SIM_API aclError aclrtMallocHost(void **address, size_t size) try {
    const size_t rounded = round_up(size == 0 ? 1 : size, 64);
    *address = std::aligned_alloc(64, rounded);
    if (*address == nullptr) {
        return fail(ACL_ERROR_BAD_ALLOC, "aclrtMallocHost: out of host memory");
    }
    const std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned[*address] = rounded;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtFreeHost(void *address) try {
    {
        const std::lock_guard<std::mutex> lock(pinned_mutex);
        if (pinned.erase(address) == 0) {
            return fail(ACL_ERROR_INVALID_PARAM,
                        "EH0001: aclrtFreeHost of an address that aclrtMallocHost did not return");
        }
    }
    std::free(address);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API bool cann_sim_is_device_address(const void *address) try {
    std::lock_guard<std::mutex> lock(blocks_mutex);
    return contains(blocks, address);
}
SIM_CATCH

// ---- virtual memory (torch_npu's expandable_segments) ----
// A reserved range is mapped without access rights; mapping physical memory opens a part of it. A physical handle
// is only an account entry: its pages exist while it is mapped, at the one place where it is mapped.

namespace {

struct Physical {
    size_t size;
    int device;
    bool charged;
};

std::mutex ranges_mutex;
std::map<void *, size_t> reserved;

}  // namespace

SIM_API aclError aclrtReserveMemAddress(void **address, size_t size, size_t, void *, uint64_t) try {
    // Aligned to the 2 MiB page, as the caller maps pages of that size into it.
    const size_t span = size + kHugePage;
    char *p = static_cast<char *>(mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (p == MAP_FAILED) {
        return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "aclrtReserveMemAddress: no address range of that size is free");
    }
    char *aligned = reinterpret_cast<char *>(round_up(reinterpret_cast<size_t>(p), kHugePage));
    if (aligned != p) {
        munmap(p, static_cast<size_t>(aligned - p));
    }
    munmap(aligned + size, static_cast<size_t>(p + span - (aligned + size)));
    std::lock_guard<std::mutex> lock(ranges_mutex);
    reserved[aligned] = size;
    *address = aligned;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtReleaseMemAddress(void *address) try {
    std::lock_guard<std::mutex> lock(ranges_mutex);
    const auto found = reserved.find(address);
    if (found == reserved.end()) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclrtReleaseMemAddress of an address that was not reserved");
    }
    munmap(address, found->second);
    reserved.erase(found);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtMallocPhysical(aclrtDrvMemHandle *handle, size_t size, const aclrtPhysicalMemProp *property,
                                     uint64_t) try {
    const int device = property != nullptr ? static_cast<int>(property->location.id) : cann_sim::current_device();
    if (device < 0 || device >= cann_sim::logical_device_count()) {
        return no_device();
    }
    if (cann_sim::fault_at_allocation(device) != ACL_SUCCESS || !charge(device, size)) {
        return out_of_memory(device, size);
    }
    *handle = new Physical{size, device, true};
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtFreePhysical(aclrtDrvMemHandle handle) try {
    Physical *physical = static_cast<Physical *>(handle);
    refund(physical->device, physical->size);
    delete physical;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtMapMem(void *address, size_t size, size_t, aclrtDrvMemHandle handle, uint64_t) try {
    if (mprotect(address, size, PROT_READ | PROT_WRITE) != 0) {
        return fail(ACL_ERROR_INVALID_PARAM, std::string("aclrtMapMem: ") + std::strerror(errno));
    }
    madvise(address, size, MADV_HUGEPAGE);
    std::lock_guard<std::mutex> lock(blocks_mutex);
    hold(address, {size, static_cast<Physical *>(handle)->device});
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtUnmapMem(void *address) try {
    std::lock_guard<std::mutex> lock(blocks_mutex);
    const auto found = blocks.find(address);
    if (found == blocks.end()) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclrtUnmapMem of an address that is not mapped");
    }
    madvise(address, found->second.size, MADV_DONTNEED);
    mprotect(address, found->second.size, PROT_NONE);
    drop(found);
    return ACL_SUCCESS;
}
SIM_CATCH

// ---- copies ----

namespace {

// What a copy is refused for at once.
aclError check_copy(const void *to, size_t room, const void *from, size_t size) {
    if (size != 0 && (to == nullptr || from == nullptr)) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: copy from or to a null pointer");
    }
    if (size > room) {
        return fail(ACL_ERROR_RT_PARAM_INVALID,
                    "EE1001: copy of " + std::to_string(size) + " bytes into a buffer of " + std::to_string(room));
    }
    return ACL_SUCCESS;
}

aclError copy(void *to, const void *from, size_t size, aclrtMemcpyKind kind) {
    if (cann_sim::is_lost_fork() && kind != ACL_MEMCPY_HOST_TO_HOST) {
        return cann_sim::lost_by_fork();
    }
    if (kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_HOST) {
        const aclError fault = cann_sim::fault_at_wait(cann_sim::current_device(), -1);
        if (fault != ACL_SUCCESS) {
            return fault;
        }
        cann_sim::delay_link(cann_sim::current_device(), size);
    }
    const uint64_t task = cann_sim_task_begin();
    if (size != 0) {
        std::memmove(to, from, size);
    }
    if (task != 0) {
        cann_sim_task_end(task, "MEMCPY_ASYNC", "MEMCPY_ASYNC", (std::to_string(size) + " bytes").c_str());
    }
    return ACL_SUCCESS;
}

}  // namespace

SIM_API aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t size, aclrtMemcpyKind kind) try {
    if (cann_sim::counting()) {
        cann_sim::count_copy(kind, size, true);
    }
    const aclError refused = check_copy(to, room, from, size);
    return refused == ACL_SUCCESS ? copy(to, from, size, kind) : refused;
}
SIM_CATCH

SIM_API aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t size, aclrtMemcpyKind kind,
                                  aclrtStream handle) try {
    if (cann_sim::counting()) {
        cann_sim::count_copy(kind, size, false);
    }
    const aclError refused = check_copy(to, room, from, size);
    if (refused != ACL_SUCCESS) {
        return refused;
    }
    if (cann_sim::runs_at_once(handle)) {
        return copy(to, from, size, kind);
    }
    if (kind == ACL_MEMCPY_HOST_TO_HOST) {
        return fail(ACL_ERROR_RT_FEATURE_NOT_SUPPORT,
                    "EE1001: aclrtMemcpyAsync from host to host is not supported: use aclrtMemcpy");
    }
    cann_sim::Stream *stream = nullptr;
    const aclError found = cann_sim::find_stream(handle, "aclrtMemcpyAsync", &stream);
    if (found != ACL_SUCCESS) {
        return found;
    }
    // Pageable memory cannot be read or written by the device on its own: the call returns when it was copied.
    const void *host = kind == ACL_MEMCPY_HOST_TO_DEVICE ? from : kind == ACL_MEMCPY_DEVICE_TO_HOST ? to : nullptr;
    const bool pageable = host != nullptr && !is_pinned(host);
    const uint64_t task = cann_sim::enqueue(*stream, [=] { return copy(to, from, size, kind); });
    return pageable ? cann_sim::wait_for(*stream, task, -1) : ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtMemcpyAsyncWithCondition(void *to, size_t room, const void *from, size_t size,
                                               aclrtMemcpyKind kind, aclrtStream stream) {
    return aclrtMemcpyAsync(to, room, from, size, kind, stream);
}

SIM_API aclError aclrtMemset(void *address, size_t room, int32_t value, size_t size) try {
    if (address == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclrtMemset of a null pointer");
    }
    if (size > room) {
        return fail(ACL_ERROR_RT_PARAM_INVALID, "EE1001: aclrtMemset past the end of the buffer");
    }
    std::memset(address, value, size);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t size, aclrtStream handle) try {
    if (address == nullptr || size > room || cann_sim::runs_at_once(handle)) {
        return aclrtMemset(address, room, value, size);
    }
    cann_sim::Stream *stream = nullptr;
    const aclError found = cann_sim::find_stream(handle, "aclrtMemsetAsync", &stream);
    if (found == ACL_SUCCESS) {
        cann_sim::enqueue(*stream, [=] { return aclrtMemset(address, room, value, size); });
    }
    return found;
}
SIM_CATCH

SIM_API aclError aclrtCmoAsync(void *, size_t, aclrtCmoType, aclrtStream) { return ACL_SUCCESS; }

SIM_API aclError aclrtGetMemInfo(aclrtMemAttr, size_t *available, size_t *total) try {
    const int device = cann_sim::current_device();
    if (device < 0) {
        return no_device();
    }
    const int physical = cann_sim::config().visible[device];
    *total = cann_sim::config().hbm_bytes;
    const uint64_t used = usage().mine(physical) + Usage::of_others(physical);
    *available = used < *total ? *total - used : 0;
    return ACL_SUCCESS;
}
SIM_CATCH
