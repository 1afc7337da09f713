// libmsprofiler.so: what torch_npu.profiler looks up there; the session itself is in libascendcl.so
// (../runtime/profiler.cpp). aclprofGetSupportedFeatures is absent: torch_npu then says that operator attributes
// (op_attr) are not recorded.

#include "runtime/abi.h"
#include "runtime/one_tree.h"

// Without acl_prof.h: aclprofSetConfig, whose first parameter is an enumeration, is declared from torch_npu 2.9.0 on
// only.
struct aclprofConfig;

// Options of the device's sampling (buffer sizes, host system metrics): there is nothing that they would change.
SIM_API aclError aclprofSetConfig(int32_t, const char *, size_t) { return ACL_SUCCESS; }
SIM_API aclError aclprofWarmup(const aclprofConfig *) { return ACL_SUCCESS; }
SIM_API aclError aclprofRegisterDeviceCallback() { return ACL_SUCCESS; }

extern "C" aclError aclprofMarkEx(const char *, size_t, aclrtStream) { return ACL_SUCCESS; }
