// libascendcl.so: tensor descriptors, data buffers and operator attributes, the values that travel to an operator.

#include "runtime/descriptors.h"
#include "runtime/interpreter_lock.h"
#include "runtime/state.h"

#include <algorithm>
#include <cmath>
#include <memory>

using cann_sim::fail;

// ---- data buffers ----

SIM_API aclDataBuffer *aclCreateDataBuffer(void *data, size_t size) try { return new aclDataBuffer{data, size}; }
SIM_CATCH

SIM_API aclError aclDestroyDataBuffer(const aclDataBuffer *buffer) {
    delete buffer;
    return ACL_SUCCESS;
}

SIM_API aclError aclUpdateDataBuffer(aclDataBuffer *buffer, void *data, size_t size) {
    *buffer = {data, size};
    return ACL_SUCCESS;
}

SIM_API void *aclGetDataBufferAddr(const aclDataBuffer *buffer) { return buffer == nullptr ? nullptr : buffer->data; }
SIM_API size_t aclGetDataBufferSizeV2(const aclDataBuffer *buffer) { return buffer == nullptr ? 0 : buffer->size; }
SIM_API uint32_t aclGetDataBufferSize(const aclDataBuffer *buffer) {
    return static_cast<uint32_t>(aclGetDataBufferSizeV2(buffer));
}

SIM_API size_t aclDataTypeSize(aclDataType type) {
    switch (type) {
        case ACL_INT8:
        case ACL_UINT8:
        case ACL_BOOL: return 1;
        case ACL_FLOAT16:
        case ACL_BF16:
        case ACL_INT16:
        case ACL_UINT16: return 2;
        case ACL_FLOAT:
        case ACL_INT32:
        case ACL_UINT32:
        case ACL_COMPLEX32: return 4;
        case ACL_INT64:
        case ACL_UINT64:
        case ACL_DOUBLE:
        case ACL_COMPLEX64: return 8;
        case ACL_COMPLEX128: return 16;
        default: return 0;
    }
}

// ---- tensor descriptors ----

SIM_API aclTensorDesc *aclCreateTensorDesc(aclDataType type, int num_dims, const int64_t *dims, aclFormat format) try {
    if (num_dims > 0 && dims == nullptr) {
        fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclCreateTensorDesc: the dimensions are null");
        return nullptr;
    }
    cann_sim::note_interpreter_lock();
    auto desc = std::make_unique<aclTensorDesc>();
    desc->dtype = type;
    desc->format = desc->storage_format = format;
    desc->dims.assign(dims, dims + num_dims);
    desc->storage_dims = desc->dims;
    return desc.release();
}
SIM_CATCH

SIM_API void aclDestroyTensorDesc(const aclTensorDesc *desc) {
    if (desc != nullptr && desc->heads_array) {
        delete[] desc;
    } else {
        delete desc;
    }
}

// Of an array of descriptors.
SIM_API aclTensorDesc *aclGetTensorDescByIndex(aclTensorDesc *descriptors, size_t index) {
    return descriptors == nullptr ? nullptr : descriptors + index;
}

SIM_API aclDataType aclGetTensorDescType(const aclTensorDesc *desc) { return desc->dtype; }
SIM_API aclFormat aclGetTensorDescFormat(const aclTensorDesc *desc) { return desc->format; }
SIM_API size_t aclGetTensorDescNumDims(const aclTensorDesc *desc) try { return desc->dims.size(); }
SIM_CATCH

SIM_API size_t aclGetTensorDescElementCount(const aclTensorDesc *desc) try {
    size_t count = 1;
    for (const int64_t dim : desc->dims) {
        count *= static_cast<size_t>(dim);
    }
    return count;
}
SIM_CATCH
SIM_API size_t aclGetTensorDescSize(const aclTensorDesc *desc) {
    return aclGetTensorDescElementCount(desc) * aclDataTypeSize(desc->dtype);
}

SIM_API aclError aclGetTensorDescDimV2(const aclTensorDesc *desc, size_t index, int64_t *size) try {
    if (index >= desc->dims.size()) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclGetTensorDescDimV2: index past the last dimension");
    }
    *size = desc->dims[index];
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API int64_t aclGetTensorDescDim(const aclTensorDesc *desc, size_t index) try {
    return index < desc->dims.size() ? desc->dims[index] : -1;
}
SIM_CATCH

SIM_API void aclSetTensorDescName(aclTensorDesc *desc, const char *name) { desc->name = name == nullptr ? "" : name; }
SIM_API const char *aclGetTensorDescName(aclTensorDesc *desc) try { return desc->name.c_str(); }
SIM_CATCH

SIM_API aclError aclSetTensorFormat(aclTensorDesc *desc, aclFormat format) {
    desc->storage_format = format;
    return ACL_SUCCESS;
}
SIM_API aclError aclSetTensorShape(aclTensorDesc *desc, int num_dims, const int64_t *dims) try {
    desc->storage_dims.assign(dims, dims + num_dims);
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclSetTensorOriginFormat(aclTensorDesc *desc, aclFormat format) {
    desc->format = format;
    return ACL_SUCCESS;
}
SIM_API aclError aclSetTensorOriginShape(aclTensorDesc *desc, int num_dims, const int64_t *dims) try {
    desc->dims.assign(dims, dims + num_dims);
    return ACL_SUCCESS;
}
SIM_CATCH
SIM_API aclError aclSetTensorConst(aclTensorDesc *desc, void *data, size_t size) {
    desc->const_data = data;
    desc->const_size = size;
    return ACL_SUCCESS;
}
SIM_API aclError aclSetTensorPlaceMent(aclTensorDesc *desc, aclMemType placement) {
    desc->placement = placement;
    return ACL_SUCCESS;
}

// The older names.
SIM_API aclError aclSetTensorStorageFormat(aclTensorDesc *desc, aclFormat format) {
    return aclSetTensorFormat(desc, format);
}
SIM_API aclError aclSetTensorStorageShape(aclTensorDesc *desc, int num_dims, const int64_t *dims) {
    return aclSetTensorShape(desc, num_dims, dims);
}

// ---- float16 ----

SIM_API float aclFloat16ToFloat(aclFloat16 value) try {
    const int exponent = value >> 10 & 31, fraction = value & 1023;
    const float magnitude = exponent == 31  ? (fraction == 0 ? HUGE_VALF : NAN)
                            : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                            : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return (value & 0x8000) != 0 ? -magnitude : magnitude;
}
SIM_CATCH

// Rounds to the nearest, and to even between two.
SIM_API aclFloat16 aclFloatToFloat16(float value) try {
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) {
        return static_cast<aclFloat16>(sign | 0x7E00);
    }
    if (magnitude >= 65520.0F) {
        return static_cast<aclFloat16>(sign | 0x7C00);
    }
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    const int unit = std::max(exponent - 11, -24);  // of the last bit
    const long fraction = std::lrint(std::ldexp(magnitude, -unit));
    return static_cast<aclFloat16>(sign | (((unit + 24) << 10) + fraction));
}
SIM_CATCH

// ---- operator attributes ----

void aclopAttr::set(const char *name, Value value) {
    for (auto &entry : values) {
        if (entry.first == name) {
            entry.second = std::move(value);
            return;
        }
    }
    values.emplace_back(name, std::move(value));
}

const aclopAttr::Value *aclopAttr::find(const std::string &name) const {
    for (const auto &entry : values) {
        if (entry.first == name) {
            return &entry.second;
        }
    }
    return nullptr;
}

namespace {

using Value = aclopAttr::Value;

aclError set(aclopAttr *attr, const char *name, Value value) {
    if (attr == nullptr || name == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclopSetAttr: attribute set or name is null");
    }
    attr->set(name, std::move(value));
    return ACL_SUCCESS;
}

Value integer(Value::Kind kind, int64_t i) {
    Value value{kind};
    value.i = i;
    return value;
}

}  // namespace

SIM_API aclopAttr *aclopCreateAttr() try { return new aclopAttr; }
SIM_CATCH
SIM_API void aclopDestroyAttr(const aclopAttr *attr) { delete attr; }

SIM_API aclError aclopSetAttrBool(aclopAttr *attr, const char *name, uint8_t value) try {
    return set(attr, name, integer(Value::kBool, value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrInt(aclopAttr *attr, const char *name, int64_t value) try {
    return set(attr, name, integer(Value::kInt, value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrDataType(aclopAttr *attr, const char *name, aclDataType value) try {
    return set(attr, name, integer(Value::kDataType, value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrFloat(aclopAttr *attr, const char *name, float f) try {
    Value value{Value::kFloat};
    value.f = f;
    return set(attr, name, std::move(value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrString(aclopAttr *attr, const char *name, const char *s) try {
    Value value{Value::kString};
    value.s = s;
    return set(attr, name, std::move(value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrListInt(aclopAttr *attr, const char *name, int count, const int64_t *ints) try {
    Value value{Value::kInts};
    value.ints.assign(ints, ints + count);
    return set(attr, name, std::move(value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrListBool(aclopAttr *attr, const char *name, int count, const uint8_t *bools) try {
    Value value{Value::kBools};
    value.ints.assign(bools, bools + count);
    return set(attr, name, std::move(value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrListFloat(aclopAttr *attr, const char *name, int count, const float *floats) try {
    Value value{Value::kFloats};
    value.floats.assign(floats, floats + count);
    return set(attr, name, std::move(value));
}
SIM_CATCH
SIM_API aclError aclopSetAttrListListInt(aclopAttr *attr, const char *name, int lists, const int *counts,
                                         const int64_t *const ints[]) try {
    Value value{Value::kListInts};
    for (int i = 0; i < lists; ++i) {
        value.lists.emplace_back(ints[i], ints[i] + counts[i]);
    }
    return set(attr, name, std::move(value));
}
SIM_CATCH
