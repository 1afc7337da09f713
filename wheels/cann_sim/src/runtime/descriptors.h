// The descriptor types that acl_base.h and acl_op.h leave opaque.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "runtime/abi.h"

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
    bool heads_array = false;  // the first of several that are destroyed together
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
