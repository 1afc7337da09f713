// libopapi.so: what CANN's aclnn functions refuse. A rule that is certain ends the call with CANN's code; one that is not
// (only the document or only the source says so) is counted, and the call goes on.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>

#include "opapi/call.h"
#include "runtime/counters.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

std::string type_name(int type) {
    static const char *const kNames[] = {"FLOAT",  "FLOAT16", "INT8",      "INT32",     "UINT8",  nullptr, "INT16",
                                         "UINT16", "UINT32",  "INT64",     "UINT64",    "DOUBLE", "BOOL",  "STRING",
                                         nullptr,  nullptr,   "COMPLEX64", "COMPLEX128"};  // by aclDataType
    if (type == ACL_BF16 || type == ACL_COMPLEX32) {
        return type == ACL_BF16 ? "DT_BF16" : "DT_COMPLEX32";
    }
    const bool known = type >= 0 && type < static_cast<int>(std::size(kNames)) && kNames[type] != nullptr;
    return "DT_" + (known ? std::string(kNames[type]) : std::to_string(type));
}

std::string type_names(uint64_t bits) {
    std::string text;
    for (int type = 0; type < 64; ++type) {
        if ((bits >> type & 1) != 0) {
            text += (text.empty() ? "" : ",") + type_name(type);
        }
    }
    return "[" + text + "]";
}

std::string shape_text(const std::vector<int64_t> &sizes) {
    std::string text;
    for (const int64_t size : sizes) {
        text += (text.empty() ? "" : ",") + std::to_string(size);
    }
    return "[" + text + "]";
}

// 310P and 910A share the lists that CANN's sources hold for what came before the A2.
bool is_older() {
    static const bool value = [] {
        const std::string &soc = config().soc;
        return soc.find("310P") != std::string::npos || soc == "Ascend910A" || soc == "Ascend910B" ||
               soc.rfind("Ascend910P", 0) == 0;  // 910ProA, 910ProB, 910PremiumA; the A2 are 910B1 and so on
    }();
    return value;
}

// As on a card the message begins with the process, the time and the class of the error.
int refuse(int code, const Function &function, const std::string &why) {
    const auto now = std::chrono::system_clock::now();
    const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
    const auto rest = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
    std::tm local{};
    localtime_r(&seconds, &local);
    char head[96];
    char time[32];
    std::strftime(time, sizeof time, "%F-%T", &local);
    std::snprintf(head, sizeof head, "[PID: %d] %s.%03d AclNN_Parameter_Error(EZ1001): ", static_cast<int>(getpid()),
                  time, static_cast<int>(rest));
    return fail(code, std::string(head) + function.name + ": " + why);
}

int judge(bool certain, const Function &function, const std::string &why) {
    if (certain) {
        return refuse(kBadParameter, function, why);
    }
    if (counting()) {
        count_uncertain(std::string(function.name) + ": " + why);
    }
    return 0;
}

// `index`: of a list; -1 for a tensor by itself.
int check_tensor(const Function &function, const Argument &argument, const aclTensor &tensor, int index) {
    const auto name = [&] { return argument.name + (index < 0 ? "" : "[" + std::to_string(index) + "]"); };
    const uint64_t types = is_older() && argument.older_types != 0 ? argument.older_types : argument.types;
    const bool listed = tensor.dtype >= 0 && tensor.dtype < 64 && (types >> tensor.dtype & 1) != 0;
    if (types != 0 && !listed) {
        const int status = judge(argument.certain, function,
                                 name() + " has data type " + type_name(tensor.dtype) + ", and on " + config().soc +
                                     " it must be in " + type_names(types) + " (" + name() + " not implemented for " +
                                     type_name(tensor.dtype) + ")");
        if (status != 0) {
            return status;
        }
    }
    const auto rank = static_cast<int>(tensor.sizes.size());
    if (rank < argument.least || rank > argument.most) {
        return refuse(kBadParameter, function,
                      name() + " has " + std::to_string(rank) + " dimensions, shape " + shape_text(tensor.sizes) +
                          ", and must have " + std::to_string(argument.least) + " to " + std::to_string(argument.most));
    }
    return 0;
}

// An empty list of numbers stands for what the caller leaves out: an index, or a result that nobody wants.
bool is_left_out(const aclTensor *tensor) {
    return tensor == nullptr || (tensor->sizes.size() == 1 && tensor->sizes[0] == 0);
}

int check_argument(const Function &function, const Argument &argument, const Value &value) {
    if (value.is_null()) {
        return argument.required ? refuse(kNullPointer, function, std::string(argument.name) + " is a null pointer")
                                 : 0;
    }
    if (value.kind == Value::kTensor) {
        return check_tensor(function, argument, *value.tensor(), -1);
    }
    if (value.kind == Value::kTensors) {
        int index = 0;
        for (const aclTensor *tensor : value.tensors()) {
            if (!is_left_out(tensor)) {
                if (const int status = check_tensor(function, argument, *tensor, index)) {
                    return status;
                }
            }
            ++index;
        }
    }
    return 0;
}

bool is_complex(int type) { return type == ACL_COMPLEX64 || type == ACL_COMPLEX128 || type == ACL_COMPLEX32; }
bool is_floating(int type) {
    return type == ACL_FLOAT || type == ACL_FLOAT16 || type == ACL_BF16 || type == ACL_DOUBLE;
}

// CANN's rule is torch's: no part of a number may be lost but its precision and range.
bool can_cast(int from, int to) {
    if (is_complex(from)) {
        return is_complex(to);
    }
    if (is_floating(from)) {
        return is_floating(to) || is_complex(to);
    }
    return from == ACL_BOOL || to != ACL_BOOL;
}

bool can_broadcast(const std::vector<int64_t> &a, const std::vector<int64_t> &b) {
    for (size_t i = 1; i <= std::min(a.size(), b.size()); ++i) {
        const int64_t x = a[a.size() - i], y = b[b.size() - i];
        if (x != y && x != 1 && y != 1) {
            return false;
        }
    }
    return true;
}

// Of two matrices, or batches of them, that are multiplied: columns of the one, rows of the other.
bool can_multiply(const std::vector<int64_t> &a, const std::vector<int64_t> &b) {
    return a.empty() || b.empty() || a.back() == b[b.size() == 1 ? 0 : b.size() - 2];
}

bool holds(Relation::Kind kind, const aclTensor &a, const aclTensor &b) {
    switch (kind) {
        case Relation::kSameShape: return a.sizes == b.sizes;
        case Relation::kSameDtype: return a.dtype == b.dtype;
        case Relation::kBroadcast: return can_broadcast(a.sizes, b.sizes);
        case Relation::kCastable: return can_cast(a.dtype, b.dtype);
        case Relation::kInner: return can_multiply(a.sizes, b.sizes);
        case Relation::kKeepType: break;  // of one tensor: keeps_type
    }
    return true;
}

// cubeMathType 0 keeps the data type: matrix units before the A2 do not multiply float32. torch_npu passes it there for
// ACL_PRECISION_MODE must_keep_origin_dtype.
int check_kept_type(const Function &function, const Relation &relation, const Value &x, int64_t cube_math_type) {
    if (!is_older() || cube_math_type != 0 || x.is_null() || x.tensor()->dtype != ACL_FLOAT) {
        return 0;
    }
    return judge(relation.certain, function,
                 std::string(function.arguments[relation.first].name) + " has data type DT_FLOAT, which " +
                     config().soc + " does not multiply with cubeMathType 0 (keep type)");
}

int check_relation(const Function &function, const Relation &relation, const Value *values) {
    const Value &x = values[relation.first], &y = values[relation.second];
    if (relation.kind == Relation::kKeepType) {
        return check_kept_type(function, relation, x, y.i);
    }
    if (x.kind != Value::kTensor || y.kind != Value::kTensor || is_left_out(x.tensor()) || is_left_out(y.tensor())) {
        return 0;
    }
    const aclTensor &a = *x.tensor(), &b = *y.tensor();
    if (holds(relation.kind, a, b)) {
        return 0;
    }
    const std::string names =
        std::string(function.arguments[relation.first].name) + " and " + function.arguments[relation.second].name;
    const std::string shapes = shape_text(a.sizes) + " and " + shape_text(b.sizes);
    const std::string types = type_name(a.dtype) + " and " + type_name(b.dtype);
    std::string why;
    switch (relation.kind) {
        case Relation::kSameShape: why = "the shapes of " + names + " must be equal, not " + shapes; break;
        case Relation::kSameDtype: why = "the data types of " + names + " must be equal, not " + types; break;
        case Relation::kBroadcast: why = "the shapes of " + names + " do not broadcast: " + shapes; break;
        case Relation::kCastable: why = "between " + names + " there is no cast: " + types; break;
        case Relation::kInner: why = "the inner sizes of " + names + " must be equal, not of " + shapes; break;
        case Relation::kKeepType: break;
    }
    return judge(relation.certain, function, why);
}

}  // namespace

// In CANN's order: null pointers, then data types and dimensions, then how the tensors fit together.
int check(const Function &function, const Value *values) {
    for (size_t i = 0; i < function.count; ++i) {
        if (values[i].is_null() && function.arguments[i].required) {
            return check_argument(function, function.arguments[i], values[i]);
        }
    }
    for (size_t i = 0; i < function.count; ++i) {
        if (const int status = check_argument(function, function.arguments[i], values[i])) {
            return status;
        }
    }
    for (size_t i = 0; i < function.relation_count; ++i) {
        if (const int status = check_relation(function, function.relations[i], values)) {
            return status;
        }
    }
    return 0;
}

}  // namespace cann_sim
