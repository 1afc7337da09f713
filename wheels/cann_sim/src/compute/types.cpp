#include "pch.h"

#include "compute/types.h"

namespace cann_sim {

at::ScalarType scalar_type(aclDataType type, const char *user) {
    switch (type) {
        case ACL_FLOAT: return at::kFloat;
        case ACL_FLOAT16: return at::kHalf;
        case ACL_BF16: return at::kBFloat16;
        case ACL_DOUBLE: return at::kDouble;
        case ACL_INT8: return at::kChar;
        case ACL_UINT8: return at::kByte;
        case ACL_INT16: return at::kShort;
        case ACL_UINT16: return at::kUInt16;
        case ACL_INT32: return at::kInt;
        case ACL_UINT32: return at::kUInt32;
        case ACL_INT64: return at::kLong;
        case ACL_UINT64: return at::kUInt64;
        case ACL_BOOL: return at::kBool;
        case ACL_COMPLEX32: return at::kComplexHalf;
        case ACL_COMPLEX64: return at::kComplexFloat;
        case ACL_COMPLEX128: return at::kComplexDouble;
        default: TORCH_CHECK(false, user, ": data type ", static_cast<int>(type), " is not simulated");
    }
}

}  // namespace cann_sim
