// What the libraries of the simulated CANN share: the device table, error reporting and the hooks that the
// compute plug-in (which alone knows libtorch) fills in. Everything here lives in libascendcl.so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "third_party/acl/inc/acl/acl.h"
#include "third_party/acl/inc/acl/acl_op_compiler.h"
#include "third_party/acl/inc/acl/error_codes/rt_error_codes.h"

#define SIM_API extern "C" __attribute__((visibility("default")))

namespace cann_sim {

// Largest number of devices that one simulated host may have (Atlas 900 A3 super node board: 16 dies).
constexpr int kMaxDevices = 64;

struct Config {
    std::vector<int> visible;  // physical id of each logical device, ASCEND_RT_VISIBLE_DEVICES applied
    int physical_devices;      // CANN_SIM_DEVICES
    size_t hbm_bytes;          // CANN_SIM_HBM_GB, per device
    std::string soc;           // CANN_SIM_SOC
};

// Read once, at first use; an invalid value ends the process with a message (there is no caller to return it to).
__attribute__((visibility("default"))) const Config &config();

// Remembers `message` as the text of aclGetRecentErrMsg (per thread, cleared when read) and returns `code`.
__attribute__((visibility("default"))) aclError fail(aclError code, const std::string &message);

// Device of the calling thread's current context; -1 before aclrtSetDevice.
__attribute__((visibility("default"))) int current_device();

int logical_device_count();

// The N-th parameter's type as torch_npu's own headers declare it, where those of its versions differ (C linkage: the
// names of enumerations, and const, make no difference to the callers).
template <size_t N, typename Function> struct ParameterOf;
template <size_t N, typename Result, typename... Parameters>
struct ParameterOf<N, Result(Parameters...)> { using type = std::tuple_element_t<N, std::tuple<Parameters...>>; };
template <size_t N, typename Function> using Parameter = typename ParameterOf<N, Function>::type;

}  // namespace cann_sim

// ---- the descriptor types that acl_base.h and acl_op.h leave opaque ----

struct aclDataBuffer {
    void *data;
    size_t size;
};

struct aclTensorDesc {
    aclDataType dtype;
    aclFormat format;
    std::vector<int64_t> dims;
    aclFormat storage_format;
    std::vector<int64_t> storage_dims;
    std::string name;
    aclMemType placement = ACL_MEMTYPE_DEVICE;
    void *const_data = nullptr;
    size_t const_size = 0;
};

struct __attribute__((visibility("default"))) aclopAttr {
    struct Value {
        enum Kind { kBool, kInt, kFloat, kString, kDataType, kInts, kFloats, kBools, kListInts };
        explicit Value(Kind kind_of_value) : kind(kind_of_value) {}

        Kind kind;
        int64_t i = 0;
        float f = 0;
        std::string s;
        std::vector<int64_t> ints;
        std::vector<float> floats;
        std::vector<std::vector<int64_t>> lists;
    };
    std::vector<std::pair<std::string, Value>> values;

    void set(const char *name, Value value);
    const Value *find(const std::string &name) const;
};

// Whether `address` lies in memory that aclrtMalloc or aclrtMapMem handed out.
SIM_API bool cann_sim_is_device_address(const void *address);

// libhccl's hook: the physical id of the calling thread's device, 0 before aclrtSetDevice.
SIM_API int cann_sim_physical_device();

// Filled in by the compute plug-in; nullptr while it is not loaded.
using cann_sim_execute_fn = aclError (*)(const char *op_type, int num_inputs, const aclTensorDesc *const *input_desc,
                                         const aclDataBuffer *const *inputs, int num_outputs,
                                         const aclTensorDesc *const *output_desc, aclDataBuffer *const *outputs,
                                         const aclopAttr *attr);
SIM_API void cann_sim_set_execute(cann_sim_execute_fn execute);
SIM_API cann_sim_execute_fn cann_sim_get_execute();
