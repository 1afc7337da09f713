// The settings of the simulated host, the device that a thread uses, and the last error. All other files in this folder
// may include this one, and it includes none of them.
#pragma once

#include <string>
#include <vector>

#include "runtime/abi.h"

namespace cann_sim {

// Largest number of devices that one simulated host may have (Atlas 900 A3 super node board: 16 dies).
constexpr int kMaxDevices = 64;

struct Config {
    std::vector<int> visible;   // physical id of each logical device, ASCEND_RT_VISIBLE_DEVICES applied
    std::string visible_fault;  // what is wrong with that list; empty where nothing is
    int physical_devices;       // CANN_SIM_DEVICES
    size_t hbm_bytes;           // CANN_SIM_HBM_GB, per device
    std::string soc;            // CANN_SIM_SOC
};

// Read once, at first use; an invalid value ends the process with a message (there is no caller to return it to).
__attribute__((visibility("default"))) const Config &config();

// Remembers `message` as the text of aclGetRecentErrMsg (per thread, cleared when read) and returns `code`.
__attribute__((visibility("default"))) aclError fail(aclError code, const std::string &message);

// Takes the text of this thread's last error, as aclGetRecentErrMsg does.
std::string take_recent_error();

// Device of the calling thread's current context; -1 before aclrtSetDevice.
__attribute__((visibility("default"))) int current_device();
void set_current_device(int device);

int logical_device_count();

// A2 (910B1 to B4-1) and A3 (910_93xx) have bf16 and the INF/NaN overflow mode, which torch_npu selects there; older
// generations and 310P/310B saturate (torch_npu/csrc/core/npu/NpuVariables.cpp: IsSupportInfNan, IsBF16Supported).
bool has_inf_nan();

// Whether the devices' mode is the one in which an overflow is the largest number and raises a flag.
__attribute__((visibility("default"))) bool overflow_saturates();
void set_overflow_saturates(bool saturates);

// Whether this process is a fork of one that had used a device. It has the parent's objects and none of its devices.
__attribute__((visibility("default"))) bool is_lost_fork();

// The error of every call of such a process that needs a device.
__attribute__((visibility("default"))) aclError lost_by_fork();

}  // namespace cann_sim

// libhccl's hook: the physical id of the calling thread's device, 0 before aclrtSetDevice.
SIM_API int cann_sim_physical_device();
