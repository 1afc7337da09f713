// libascend_hal.so, the driver's library: torch_npu.profiler asks it whether the host's cycle counter may be used as
// clock. Below driver interface 0x071905 it may not, and CLOCK_MONOTONIC_RAW is used.

#include <cstdint>

#include "runtime/abi.h"

namespace {

constexpr int kVersion = 0x071904;
constexpr int kNotSupported = 0xfffe;  // DRV_ERROR_NOT_SUPPORT

}  // namespace

SIM_API int halGetAPIVersion(int *version) {
    *version = kVersion;
    return 0;
}

SIM_API int halGetDeviceInfo(uint32_t, int32_t, int32_t, int64_t *) { return kNotSupported; }
