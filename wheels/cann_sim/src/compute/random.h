// Random numbers of the simulated NPU: every draw has a CPU generator of its own, seeded with the device generator's seed
// and Philox offset, which torch.npu.get_rng_state saves. They are neither a card's nor the CPU's, and equal at both levels.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <mutex>

namespace cann_sim {

// By how much a draw moves the offset: torch_npu's kernels ask for 10, which its generator rounds up to a multiple of 4.
constexpr uint64_t kOffsetOfADraw = 12;

inline at::Generator generator_of(uint64_t seed, uint64_t offset) {
    // golden-ratio step, as in SplitMix64
    return at::make_generator<at::CPUGeneratorImpl>(seed ^ ((offset / kOffsetOfADraw + 1) * 0x9E3779B97F4A7C15ULL));
}

struct Draw {
    uint64_t seed = 0, offset = 0;

    // Takes the next draw of a device's generator.
    static Draw next(at::Generator npu) {
        const std::lock_guard<std::mutex> lock(npu.mutex());
        const Draw drawn{npu.current_seed(), npu.get_offset()};
        npu.set_offset(drawn.offset + kOffsetOfADraw);
        return drawn;
    }
};

}  // namespace cann_sim
