// One call of an aclnn function: what is known of the function (generated from opapi/*.tsv), the arguments it got, and the
// two phases: `plan` checks, `execute` computes.
#pragma once

#include <atomic>
#include <list>
#include <string>
#include <type_traits>
#include <vector>

#include "opapi/objects.h"

struct aclOpExecutor;

namespace cann_sim {

// Error codes of aclnn functions.
constexpr int kNullPointer = 161001;
constexpr int kBadParameter = 161002;
constexpr int kInnerError = 561103;

// An argument as a function got it.
struct Value {
    enum Kind : uint8_t {
        kTensor,
        kTensors,
        kScalar,
        kScalars,
        kInts,
        kFloats,
        kBools,
        kText,  // pointers
        kInt,
        kDouble,
        kBool,
        kDtype,
    } kind;
    union {
        const void *pointer;
        int64_t i;
        double d;
    };

    Value(const aclTensor *p) : kind(kTensor), pointer(p) {}
    Value(const aclTensorList *p) : kind(kTensors), pointer(p) {}
    Value(const aclScalar *p) : kind(kScalar), pointer(p) {}
    Value(const aclScalarList *p) : kind(kScalars), pointer(p) {}
    Value(const aclIntArray *p) : kind(kInts), pointer(p) {}
    Value(const aclFloatArray *p) : kind(kFloats), pointer(p) {}
    Value(const aclBoolArray *p) : kind(kBools), pointer(p) {}
    Value(const char *p) : kind(kText), pointer(p) {}
    template <typename T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
    Value(T value) : kind(kInt), i(static_cast<int64_t>(value)) {}
    Value(double value) : kind(kDouble), d(value) {}
    Value(float value) : kind(kDouble), d(static_cast<double>(value)) {}
    Value(bool value) : kind(kBool), i(value) {}
    Value(aclDataType value) : kind(kDtype), i(value) {}

    bool is_null() const { return kind <= kText && pointer == nullptr; }
    // Not const: a function may find out only now what shape its result has (aclGetViewShape).
    aclTensor *tensor() const { return const_cast<aclTensor *>(static_cast<const aclTensor *>(pointer)); }
    const std::vector<aclTensor *> &tensors() const { return static_cast<const aclTensorList *>(pointer)->values; }
    const aclScalar &scalar() const { return *static_cast<const aclScalar *>(pointer); }
    const std::vector<aclScalar *> &scalars() const { return static_cast<const aclScalarList *>(pointer)->values; }
    const std::vector<int64_t> &ints() const { return static_cast<const aclIntArray *>(pointer)->values; }
    const std::vector<float> &floats() const { return static_cast<const aclFloatArray *>(pointer)->values; }
    const std::vector<char> &bools() const { return static_cast<const aclBoolArray *>(pointer)->values; }
    const char *text() const { return static_cast<const char *>(pointer); }
};

// What CANN demands of one argument.
struct Argument {
    const char *name;
    uint64_t types;        // a bit per aclDataType, on A2 and A3; 0: anything
    uint64_t older_types;  // on 310P and 910A
    bool certain;          // the list of types refuses; else it only warns
    int8_t least, most;    // dimensions
    bool required;         // not null
    bool written;
};

// What CANN demands of two tensors together, or (kKeepType) of a tensor and cubeMathType; indices of arguments.
struct Relation {
    enum Kind : uint8_t { kSameShape, kSameDtype, kBroadcast, kCastable, kInner, kKeepType } kind;
    uint8_t first, second;
    bool certain;
};

// An aclnn function.
struct Function {
    const char *name;
    const char *op;     // the aten operator; nullptr: written by hand in the compute plug-in
    const char *words;  // where its arguments come from: aclnn/adapter.cpp
    const Argument *arguments;
    size_t count;
    const Relation *relations;
    size_t relation_count;
    mutable std::atomic<const void *> prepared{nullptr};  // the compute plug-in's, since the first call
};

// Entry points of the compute plug-in. None of them throws.
struct AclnnHooks {
    // Of a function that is written by hand: 0, or the code in which the call ends; its message is remembered.
    int (*check)(const Function &function, const Value *values);
    // On the thread that plans: whether the call is a part of an operator that is counted as a whole.
    bool (*planned)();
    // Computes, and returns 0 or an error code whose message is remembered (aclGetRecentErrMsg).
    int (*run)(const aclOpExecutor &executor);
    // What failed in torch_npu's task queue before, which has ended then; empty: nothing.
    std::string (*queue_failure)();
};

// rules.cpp: 0, or the code in which the call ends; its message is remembered.
int check(const Function &function, const Value *values);

// First phase of every function: checks and makes the executor. No workspace is needed.
int plan(const Function &function, const Value *values, uint64_t *workspace, aclOpExecutor **executor) noexcept;

// Second phase; the executor is used up.
int execute(aclOpExecutor *executor) noexcept;

}  // namespace cann_sim

struct aclOpExecutor {
    const cann_sim::Function *function;
    std::vector<cann_sim::Value> values;  // they outlive the run: the caller destroys them afterwards
    std::list<std::string> texts;         // but for texts, which are op-plugin's local variables: copies
    bool part;                            // of an operator that is counted as a whole
};
