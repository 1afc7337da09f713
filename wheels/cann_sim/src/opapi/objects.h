// The objects that callers of aclnn functions make and pass on. To them they are opaque; the compute plug-in reads them.
#pragma once

#include <complex>
#include <vector>

#include "runtime/abi.h"

struct aclTensor {
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;  // in elements, as `offset`
    int64_t offset;
    aclDataType dtype;
    aclFormat format;
    std::vector<int64_t> storage;  // its shape
    void *data;                    // of the storage
};

// A number of one of the types that torch_npu passes; what it is, `dtype` says.
struct aclScalar {
    aclDataType dtype;
    int64_t integer;  // also bool
    std::complex<double> floating;
};

struct aclIntArray {
    std::vector<int64_t> values;
};
struct aclFloatArray {
    std::vector<float> values;
};
struct aclBoolArray {
    std::vector<char> values;
};

// A list owns its elements.
struct aclTensorList {
    std::vector<aclTensor *> values;
};
struct aclScalarList {
    std::vector<aclScalar *> values;
};
