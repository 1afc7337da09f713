// Words of opapi/functions.tsv, one per argument of the aten operator, then one per result of an operator that begins with =:
//   3     our fourth argument          _  the operator's default       T F  a bool        #1 #1.5  a number
//   ~3    a scale of resampling; 1 stands for one that is left out     @3   the data type of our fourth argument
//   ^3    a number; 0 stands for one that is left out                  L3   a tensor of indices, as int64
//   -     a result that nobody wants
// An operator without = writes into our arguments itself. That is right for in-place operators and for structured ones
// only, if their kernels follow a result's strides (those of triangles and of padding do not): others use out= as a buffer, or
// resize it, and would write beyond the device's memory.

#include "pch.h"

#include "aclnn/adapter.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "compute/types.h"

namespace cann_sim {

namespace {

std::unordered_map<std::string, ComputationRegistration::Entry> &table() {
    static std::unordered_map<std::string, ComputationRegistration::Entry> functions;
    return functions;
}

struct Word {
    enum Kind : char { kArgument, kDefault, kConstant, kScale, kUnlessZero, kIndices, kDtypeOf, kNothing } kind;
    size_t index = 0;
    c10::IValue constant;
};

struct Prepared {
    Computation by_hand = nullptr, check = nullptr;
    std::optional<c10::OperatorHandle> op;
    std::vector<Word> words;
    bool copies = false;
    bool takes_strides = true;  // whether a result lies as an input of its size does
};

Word parse(const std::string &word) {
    switch (word[0]) {
        case '_': return {Word::kDefault, 0, {}};
        case '-': return {Word::kNothing, 0, {}};
        case 'T': return {Word::kConstant, 0, true};
        case 'F': return {Word::kConstant, 0, false};
        case '#':
            return {Word::kConstant, 0,
                    word.find('.') == std::string::npos ? c10::IValue(static_cast<int64_t>(std::stoll(word.substr(1))))
                                                        : c10::IValue(std::stod(word.substr(1)))};
        case '~': return {Word::kScale, std::stoul(word.substr(1)), {}};
        case '^': return {Word::kUnlessZero, std::stoul(word.substr(1)), {}};
        case 'L': return {Word::kIndices, std::stoul(word.substr(1)), {}};
        case '@': return {Word::kDtypeOf, std::stoul(word.substr(1)), {}};
        default: return {Word::kArgument, std::stoul(word), {}};
    }
}

const Prepared &prepare(const Function &function) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    if (const void *ready = function.prepared.load()) {
        return *static_cast<const Prepared *>(ready);
    }
    auto prepared = std::make_unique<Prepared>();
    if (function.op == nullptr) {
        const auto found = table().find(function.name);
        TORCH_CHECK(found != table().end(), function.name, " is not simulated");
        prepared->by_hand = found->second.compute;
        prepared->check = found->second.check;
    } else {
        prepared->copies = function.op[0] == '=';
        const std::string name(function.op + (prepared->copies ? 1 : 0));
        // Products of matrices (arguments whose inner sizes must agree) do not at level aten either; torch's kernels of
        // softmax write as if their result was contiguous, whatever they are given.
        prepared->takes_strides = name.find("softmax") == std::string::npos &&
                                  std::none_of(function.relations, function.relations + function.relation_count,
                                               [](const Relation &rule) { return rule.kind == Relation::kInner; });
        const size_t dot = name.find('.');
        prepared->op = c10::Dispatcher::singleton().findSchemaOrThrow(
            ("aten::" + name.substr(0, dot)).c_str(), dot == std::string::npos ? "" : name.substr(dot + 1).c_str());
        std::istringstream words(function.words);
        for (std::string word; words >> word;) {
            prepared->words.push_back(parse(word));
        }
        const auto &schema = prepared->op->schema();
        const size_t results = prepared->copies ? schema.returns().size() : 0;
        TORCH_CHECK(prepared->words.size() == schema.arguments().size() + results, function.name, ": ",
                    prepared->words.size(), " words for ", schema);
    }
    const Prepared *result = prepared.release();
    function.prepared = result;  // for good
    return *result;
}

const Prepared &prepared_for(const Function &function) {
    const void *ready = function.prepared.load(std::memory_order_acquire);
    return ready != nullptr ? *static_cast<const Prepared *>(ready) : prepare(function);
}

bool holds_optionals(const c10::TypePtr &list) {
    return list->kind() == c10::TypeKind::ListType &&
           list->castRaw<c10::ListType>()->getElementType()->kind() == c10::TypeKind::OptionalType;
}

template <typename T>
c10::List<T> tensor_list(const std::vector<aclTensor *> &values) {
    c10::List<T> list;
    for (const aclTensor *value : values) {
        list.push_back(tensor(Value(value)));
    }
    return list;
}

c10::IValue number(const at::Scalar &value, c10::TypeKind kind) {
    switch (kind) {
        case c10::TypeKind::FloatType: return value.toDouble();
        case c10::TypeKind::IntType: return value.toLong();
        case c10::TypeKind::BoolType: return value.toBool();
        default: return value;
    }
}

c10::IValue to_ivalue(const Value &value, const c10::Argument &argument) {
    const bool optional = argument.type()->kind() == c10::TypeKind::OptionalType;
    const c10::TypePtr type =
        optional ? argument.type()->castRaw<c10::OptionalType>()->getElementType() : argument.type();
    if (value.is_null()) {
        return optional || type->kind() != c10::TypeKind::TensorType ? c10::IValue() : c10::IValue(at::Tensor());
    }
    switch (value.kind) {
        case Value::kTensor: return tensor(value);
        case Value::kTensors:
            if (holds_optionals(type)) {
                return tensor_list<std::optional<at::Tensor>>(value.tensors());
            }
            return tensor_list<at::Tensor>(value.tensors());
        case Value::kScalar: return number(scalar(value), type->kind());
        case Value::kScalars: {
            c10::List<at::Scalar> list;
            for (const aclScalar *item : value.scalars()) {
                list.push_back(scalar(Value(item)));
            }
            return list;
        }
        case Value::kInts: return value.ints();
        case Value::kBools: {
            c10::List<bool> list;
            for (const char bit : value.bools()) {
                list.push_back(bit != 0);
            }
            return list;
        }
        case Value::kFloats: return std::vector<double>(value.floats().begin(), value.floats().end());
        case Value::kText: return std::string(value.text());
        case Value::kDtype: return scalar_type(static_cast<aclDataType>(value.i));
        case Value::kBool: return number(value.i != 0, type->kind());
        case Value::kInt: return number(value.i, type->kind());
        case Value::kDouble: return number(value.d, type->kind());
    }
    return {};
}

c10::IValue evaluate(const Word &word, const Value *values, const c10::Argument &argument) {
    switch (word.kind) {
        case Word::kConstant: return word.constant;
        case Word::kDtypeOf: return scalar_type(values[word.index].tensor()->dtype);
        case Word::kScale:
            return values[word.index].d == 1 || values[word.index].d <= 0 ? c10::IValue() : values[word.index].d;
        case Word::kUnlessZero: return values[word.index].i == 0 ? c10::IValue() : values[word.index].i;
        case Word::kIndices: return tensor(values[word.index]).to(at::kLong);
        case Word::kArgument: return to_ivalue(values[word.index], argument);
        default: return argument.default_value().value_or(c10::IValue());
    }
}

// The first of an operator's inputs of that size.
const at::Tensor *input_like(const torch::jit::Stack &stack, const at::Tensor &out) {
    for (const c10::IValue &value : stack) {
        if (value.isTensor() && value.toTensor().defined() && value.toTensor().sizes() == out.sizes()) {
            return &value.toTensor();
        }
    }
    return nullptr;
}

// An in-place or structured operator: what it wrote has the size it had.
void call_in_place(const Prepared &prepared, torch::jit::Stack &stack) {
    struct Written {
        at::Tensor given, used;
        std::vector<int64_t> sizes;
    };
    const auto &arguments = prepared.op->schema().arguments();
    c10::SmallVector<Written, 3> written;
    for (size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].alias_info() == nullptr || !arguments[i].alias_info()->isWrite() || !stack[i].isTensor() ||
            !stack[i].toTensor().defined()) {
            continue;
        }
        const at::Tensor given = stack[i].toTensor();
        // torch_npu's results are contiguous. The CPU computes with vectors, which round otherwise, only where the
        // input lies as the result does: as at level aten, where the result takes the input's strides.
        const bool takes_strides = prepared.takes_strides && arguments[i].is_out() && given.is_contiguous();
        const at::Tensor *like = takes_strides ? input_like(stack, given) : nullptr;
        if (like != nullptr && !like->is_contiguous() && like->is_non_overlapping_and_dense()) {
            stack[i] = at::empty_strided(given.sizes(), like->strides(), given.options());
        }
        written.push_back({given, stack[i].toTensor(), given.sizes().vec()});
    }
    prepared.op->callBoxed(&stack);
    for (const auto &[given, used, sizes] : written) {
        TORCH_CHECK(used.sizes() == at::IntArrayRef(sizes), "a result of shape ", used.sizes(),
                    " for an output of shape ", at::IntArrayRef(sizes));
        if (!used.is_same(given)) {
            given.copy_(used);
        }
    }
}

void write_value(const Value &out, const c10::IValue &result) {
    if (result.isTensorList()) {
        const auto tensors = result.toTensorVector();
        TORCH_CHECK(out.kind == Value::kTensors && out.tensors().size() == tensors.size(), tensors.size(),
                    " results for another number of outputs");
        for (size_t i = 0; i < tensors.size(); ++i) {
            write(Value(out.tensors()[i]), tensors[i]);
        }
    } else if (result.isTensor()) {
        write(out, result.toTensor());
    } else if (!result.isNone()) {
        write(out, at::scalar_tensor(result.toScalar(), at::kDouble));
    }
}

}  // namespace

at::Tensor tensor(const Value &value) {
    const aclTensor *t = value.tensor();
    if (t == nullptr) {
        return {};
    }
    const at::ScalarType type = scalar_type(t->dtype);
    char *first = static_cast<char *>(t->data) + t->offset * static_cast<int64_t>(c10::elementSize(type));
    return at::from_blob(first, t->sizes, t->strides, at::TensorOptions().dtype(type));
}

at::Scalar scalar(const Value &value) {
    const aclScalar &s = value.scalar();
    switch (s.dtype) {
        case ACL_BOOL: return s.integer != 0;
        case ACL_INT32:
        case ACL_INT64: return s.integer;
        case ACL_COMPLEX128: return c10::complex<double>(s.floating);
        default: return s.floating.real();
    }
}

void write(const Value &out, const at::Tensor &result) {
    if (!result.defined() || out.is_null()) {
        return;
    }
    const at::Tensor given = tensor(out);
    if (given.sizes() == result.sizes()) {
        given.copy_(result);
        return;
    }
    if (given.numel() == 0 && given.dim() == 1) {  // stands for a result that the caller does not want
        return;
    }
    // Sizes of 1 may differ: some outputs have them for numbers and for reduced dimensions.
    TORCH_CHECK(given.squeeze().sizes() == result.squeeze().sizes(), "a result of shape ", result.sizes(),
                " for an output of shape ", given.sizes());
    given.copy_(result.reshape(given.sizes()));
}

void write_shrunk(const Value &out, const at::Tensor &result) {
    aclTensor *given = out.tensor();
    const int64_t room = c10::multiply_integers(given->sizes);
    TORCH_CHECK(result.numel() <= room, result.numel(), " elements for an output of ", room);
    const at::Tensor whole = result.contiguous();
    given->sizes = whole.sizes().vec();
    given->strides = whole.strides().vec();
    tensor(out).copy_(whole);
}

ComputationRegistration::ComputationRegistration(std::initializer_list<Entry> functions) {
    for (const Entry &function : functions) {
        if (!table().emplace(function.name, function).second) {
            std::fprintf(stderr, "cann_sim: two files register the aclnn function %s\n", function.name);
            std::abort();
        }
    }
}

void check_by_hand(const Function &function, const Value *values) {
    if (const Computation by_hand = prepared_for(function).check) {
        by_hand(values);
    }
}

void compute(const Function &function, const Value *values) {
    const Prepared &prepared = prepared_for(function);
    if (prepared.by_hand != nullptr) {
        prepared.by_hand(values);
        return;
    }
    const auto &arguments = prepared.op->schema().arguments();
    torch::jit::Stack stack;
    stack.reserve(arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
        stack.push_back(evaluate(prepared.words[i], values, arguments[i]));
    }
    if (!prepared.copies) {
        call_in_place(prepared, stack);
        return;
    }
    prepared.op->callBoxed(&stack);
    for (size_t i = 0; i < stack.size(); ++i) {
        const Word &word = prepared.words[arguments.size() + i];
        if (word.kind == Word::kArgument) {
            write_value(values[word.index], stack[i]);
        }
    }
}

}  // namespace cann_sim
