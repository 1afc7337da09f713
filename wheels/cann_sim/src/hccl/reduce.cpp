#include "hccl/reduce.h"

#include <cstring>
#include <type_traits>

// -O2 vectorises only loops of known length; these loops are what a large all-reduce spends its time in.
#pragma GCC optimize("O3")

namespace cann_sim::hccl {
namespace {

float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

struct BFloat16 {
    using Storage = uint16_t;
    static float widen(Storage value) { return bits_to_float(static_cast<uint32_t>(value) << 16); }
    static Storage round(float value) {
        const uint32_t bits = float_to_bits(value);
        const uint32_t nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        const uint32_t quiet_nan = (bits >> 16) | 0x40;
        return static_cast<Storage>((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : nearest_even);
    }
};

struct Float16 {
    using Storage = uint16_t;
    static float widen(Storage value) {
        const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
        const uint32_t magnitude = value & 0x7fff;
        // 2^112 moves the exponent bias from 15 to 127 and makes subnormals come out right.
        const float scaled = bits_to_float(magnitude << 13) * 0x1p112f;
        const uint32_t finite = float_to_bits(scaled);
        const uint32_t special = (magnitude << 13) | 0x7f800000;  // infinity and NaN
        return bits_to_float(sign | (magnitude >= 0x7c00 ? special : finite));
    }
    static Storage round(float value) {
        const uint32_t bits = float_to_bits(value);
        const uint32_t sign = (bits >> 16) & 0x8000;
        const uint32_t magnitude = bits & 0x7fffffff;
        // Normal results: drop 13 bits, nearest even, bias 127 -> 15. The carry may reach infinity, which is
        // right.
        const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        // Subnormal results: adding 0.5 lets the FPU round at the last bit that float16 has (2^-24).
        const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
        const uint32_t infinity_or_nan = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
        uint32_t result = magnitude < 0x38800000 ? subnormal : normal;
        result = magnitude >= 0x47800000 ? infinity_or_nan : result;
        return static_cast<Storage>(sign | result);
    }
};

template <typename T>
struct Plain {
    using Storage = T;
    static T widen(T value) { return value; }
    static T round(T value) { return value; }
};

// Overflow of signed integers wraps on the device; in C++ only unsigned arithmetic does.
template <typename T, bool = std::is_integral_v<T>>
struct Wrapping {
    using type = T;
};
template <typename T>
struct Wrapping<T, true> {
    using type = std::conditional_t<(sizeof(T) < 4), uint32_t, std::make_unsigned_t<T>>;
};

template <typename Element, typename Value>
void combine(Value *accumulator, const typename Element::Storage *values, size_t count, HcclReduceOp op) {
    using Unsigned = typename Wrapping<Value>::type;
    switch (op) {
        case HCCL_REDUCE_SUM:
            for (size_t i = 0; i < count; ++i) {
                accumulator[i] = static_cast<Value>(static_cast<Unsigned>(accumulator[i]) +
                                                    static_cast<Unsigned>(Element::widen(values[i])));
            }
            break;
        case HCCL_REDUCE_PROD:
            for (size_t i = 0; i < count; ++i) {
                accumulator[i] = static_cast<Value>(static_cast<Unsigned>(accumulator[i]) *
                                                    static_cast<Unsigned>(Element::widen(values[i])));
            }
            break;
        case HCCL_REDUCE_MAX:
            for (size_t i = 0; i < count; ++i) {
                const Value value = Element::widen(values[i]);
                accumulator[i] = value > accumulator[i] ? value : accumulator[i];
            }
            break;
        default:
            for (size_t i = 0; i < count; ++i) {
                const Value value = Element::widen(values[i]);
                accumulator[i] = value < accumulator[i] ? value : accumulator[i];
            }
    }
}

// Calls `body` with the element trait of `type`; Reducer's constructor has refused every other type.
template <typename Body>
void dispatch(HcclDataType type, Body body) {
    switch (type) {
        case HCCL_DATA_TYPE_INT8: return body(Plain<int8_t>{});
        case HCCL_DATA_TYPE_INT16: return body(Plain<int16_t>{});
        case HCCL_DATA_TYPE_INT32: return body(Plain<int32_t>{});
        case HCCL_DATA_TYPE_INT64: return body(Plain<int64_t>{});
        case HCCL_DATA_TYPE_FP16: return body(Float16{});
        case HCCL_DATA_TYPE_BFP16: return body(BFloat16{});
        default: return body(Plain<float>{});
    }
}

template <typename Element>
using Storage = typename Element::Storage;
template <typename Element>
using ValueOf = decltype(Element::widen(Storage<Element>{}));

}  // namespace

size_t size_of(HcclDataType type) {
    switch (type) {
        case HCCL_DATA_TYPE_INT8:
        case HCCL_DATA_TYPE_UINT8: return 1;
        case HCCL_DATA_TYPE_INT16:
        case HCCL_DATA_TYPE_UINT16:
        case HCCL_DATA_TYPE_FP16:
        case HCCL_DATA_TYPE_BFP16: return 2;
        case HCCL_DATA_TYPE_INT32:
        case HCCL_DATA_TYPE_UINT32:
        case HCCL_DATA_TYPE_FP32: return 4;
        case HCCL_DATA_TYPE_INT64:
        case HCCL_DATA_TYPE_UINT64:
        case HCCL_DATA_TYPE_FP64: return 8;
        default: return 0;
    }
}

const char *name_of(HcclDataType type) {
    static constexpr const char *kNames[] = {"int8",   "int16", "int32",  "float16", "float32", "int64",
                                             "uint64", "uint8", "uint16", "uint32",  "float64", "bfloat16"};
    const auto index = static_cast<size_t>(type);
    return index < sizeof kNames / sizeof *kNames ? kNames[index] : "unknown";
}

const char *name_of(HcclReduceOp op) {
    static constexpr const char *kNames[] = {"sum", "prod", "max", "min"};
    const auto index = static_cast<size_t>(op);
    return index < sizeof kNames / sizeof *kNames ? kNames[index] : "unknown";
}

bool can_reduce(HcclDataType type, HcclReduceOp op) {
    if (static_cast<size_t>(op) >= HCCL_REDUCE_RESERVED) return false;
    switch (type) {
        case HCCL_DATA_TYPE_INT8:
        case HCCL_DATA_TYPE_INT32:
        case HCCL_DATA_TYPE_INT64:
        case HCCL_DATA_TYPE_FP16:
        case HCCL_DATA_TYPE_FP32: return true;
        case HCCL_DATA_TYPE_INT16:
        case HCCL_DATA_TYPE_BFP16: return op != HCCL_REDUCE_PROD;
        default: return false;
    }
}

Reducer::Reducer(HcclDataType type, HcclReduceOp op) : type_(type), op_(op), accumulator_(kBlock) {}

void Reducer::start(const void *values, size_t count) {
    dispatch(type_, [&](auto element) {
        using Element = decltype(element);
        auto *accumulator = reinterpret_cast<ValueOf<Element> *>(accumulator_.data());
        auto *source = static_cast<const Storage<Element> *>(values);
        for (size_t i = 0; i < count; ++i) accumulator[i] = Element::widen(source[i]);
    });
}

void Reducer::add(const void *values, size_t count) {
    dispatch(type_, [&](auto element) {
        using Element = decltype(element);
        combine<Element>(reinterpret_cast<ValueOf<Element> *>(accumulator_.data()),
                         static_cast<const Storage<Element> *>(values), count, op_);
    });
}

void Reducer::store(void *result, size_t count) const {
    dispatch(type_, [&](auto element) {
        using Element = decltype(element);
        auto *accumulator = reinterpret_cast<const ValueOf<Element> *>(accumulator_.data());
        auto *destination = static_cast<Storage<Element> *>(result);
        for (size_t i = 0; i < count; ++i) destination[i] = Element::round(accumulator[i]);
    });
}

}  // namespace cann_sim::hccl
