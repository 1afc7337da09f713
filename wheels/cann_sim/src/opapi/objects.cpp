// libopapi.so: creates and destroys the arguments of aclnn functions. A function that cannot create returns nullptr.

#include "opapi/objects.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "runtime/state.h"

namespace {

template <typename T>
std::vector<T> copied(const T *values, uint64_t count) {
    return count == 0 ? std::vector<T>() : std::vector<T>(values, values + count);
}

// Lists own what is in them.
template <typename T>
std::vector<T *> writable(const T *const *values, uint64_t count) {
    std::vector<T *> result(count);
    std::transform(values, values + count, result.begin(), [](const T *value) { return const_cast<T *>(value); });
    return result;
}

template <typename T>
T read(const void *value) {
    T result;
    std::memcpy(&result, value, sizeof result);
    return result;
}

}  // namespace

SIM_API aclTensor *aclCreateTensor(const int64_t *sizes, uint64_t rank, aclDataType dtype, const int64_t *strides,
                                   int64_t offset, aclFormat format, const int64_t *storage, uint64_t storage_rank,
                                   void *data) try {
    return new aclTensor{
        copied(sizes, rank), copied(strides, rank), offset, dtype, format, copied(storage, storage_rank), data};
}
SIM_CATCH

SIM_API aclScalar *aclCreateScalar(void *value, aclDataType dtype) try {
    switch (dtype) {
        case ACL_DOUBLE: return new aclScalar{dtype, 0, read<double>(value)};
        case ACL_FLOAT: return new aclScalar{dtype, 0, static_cast<double>(read<float>(value))};
        case ACL_INT64: return new aclScalar{dtype, read<int64_t>(value), {}};
        case ACL_INT32: return new aclScalar{dtype, read<int32_t>(value), {}};
        case ACL_BOOL: return new aclScalar{dtype, read<bool>(value), {}};
        case ACL_COMPLEX128: return new aclScalar{dtype, 0, read<std::complex<double>>(value)};
        default:
            cann_sim::fail(ACL_ERROR_INVALID_PARAM,
                           "aclCreateScalar: data type " + std::to_string(dtype) + " is not simulated");
            return nullptr;
    }
}
SIM_CATCH

SIM_API aclIntArray *aclCreateIntArray(const int64_t *values, uint64_t count) try {
    return new aclIntArray{copied(values, count)};
}
SIM_CATCH

SIM_API aclFloatArray *aclCreateFloatArray(const float *values, uint64_t count) try {
    return new aclFloatArray{copied(values, count)};
}
SIM_CATCH

SIM_API aclBoolArray *aclCreateBoolArray(const bool *values, uint64_t count) try {
    return new aclBoolArray{{values, values + count}};
}
SIM_CATCH

SIM_API aclTensorList *aclCreateTensorList(const aclTensor *const *values, uint64_t count) try {
    return new aclTensorList{writable(values, count)};
}
SIM_CATCH

SIM_API aclScalarList *aclCreateScalarList(const aclScalar *const *values, uint64_t count) try {
    return new aclScalarList{writable(values, count)};
}
SIM_CATCH

namespace {

template <typename T>
int destroy(const T *object) noexcept {
    delete object;
    return 0;
}

template <typename T>
int destroy_list(const T *list) noexcept {
    if (list != nullptr) {
        for (auto *element : list->values) {
            delete element;
        }
    }
    return destroy(list);
}

}  // namespace

SIM_API int aclDestroyTensor(const aclTensor *object) { return destroy(object); }
SIM_API int aclDestroyScalar(const aclScalar *object) { return destroy(object); }
SIM_API int aclDestroyIntArray(const aclIntArray *object) { return destroy(object); }
SIM_API int aclDestroyFloatArray(const aclFloatArray *object) { return destroy(object); }
SIM_API int aclDestroyBoolArray(const aclBoolArray *object) { return destroy(object); }
SIM_API int aclDestroyTensorList(const aclTensorList *list) { return destroy_list(list); }
SIM_API int aclDestroyScalarList(const aclScalarList *list) { return destroy_list(list); }

// The caller frees the array with delete[].
SIM_API int aclGetViewShape(const aclTensor *tensor, int64_t **sizes, uint64_t *rank) try {
    if (tensor == nullptr || sizes == nullptr || rank == nullptr) {
        return cann_sim::fail(ACL_ERROR_INVALID_PARAM, "aclGetViewShape: a null pointer");
    }
    *sizes = new (std::nothrow) int64_t[tensor->sizes.size()];
    if (*sizes == nullptr) {
        return cann_sim::fail(ACL_ERROR_BAD_ALLOC, "aclGetViewShape: no memory");
    }
    *rank = tensor->sizes.size();
    std::copy(tensor->sizes.begin(), tensor->sizes.end(), *sizes);
    return 0;
}
SIM_CATCH
