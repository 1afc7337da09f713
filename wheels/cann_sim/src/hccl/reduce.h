// Element types and reductions of the simulated HCCL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "third_party/hccl/inc/hccl/hccl_types.h"

namespace cann_sim::hccl {

// Bytes of one element; 0 for a value that is no HCCL data type.
size_t size_of(HcclDataType type);
const char *name_of(HcclDataType type);
const char *name_of(HcclReduceOp op);

// What Atlas A2/A3 reduce: no unsigned types, no float64, and no product of int16 and bfloat16.
bool can_reduce(HcclDataType type, HcclReduceOp op);

// Combines the ranks' values of one block in the order in which they are added, so that the result depends on
// nothing but the values: 16-bit floats are accumulated in float32 and rounded once.
class Reducer {
public:
    static constexpr size_t kBlock = 16384;  // elements per block; an accumulator stays inside the L2 cache

    Reducer(HcclDataType type, HcclReduceOp op);
    void start(const void *values, size_t count);  // count <= kBlock
    void add(const void *values, size_t count);
    void store(void *result, size_t count) const;

private:
    HcclDataType type_;
    HcclReduceOp op_;
    std::vector<uint64_t> accumulator_;  // uint64_t for its alignment
};

}  // namespace cann_sim::hccl
