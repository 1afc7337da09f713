// libacl_op_compiler.so: single operators by name. The operators themselves are in the compute plug-in's table.

#include "runtime/interpreter_lock.h"
#include "runtime/one_tree.h"
#include "runtime/operators.h"
#include "runtime/state.h"

#include <cstring>
#include <map>
#include <mutex>

using cann_sim::fail;

namespace {

std::mutex options_mutex;
std::map<int, std::string> options;

// What CANN 8.5 reports for an option that nobody set. torch_npu asks for the size first and takes 0 as an error.
const char *default_option(aclCompileOpt option) {
    switch (option) {
        case ACL_OP_JIT_COMPILE: return "disable";
        case ACL_PRECISION_MODE: return "must_keep_origin_dtype";
        case ACL_OP_COMPILER_CACHE_MODE: return "enable";
        default: return "default";
    }
}

std::string option_value(aclCompileOpt option) {
    std::lock_guard<std::mutex> lock(options_mutex);
    const auto found = options.find(option);
    return found == options.end() ? default_option(option) : found->second;
}

// The end of an operator.
aclError ended(aclError code) {
    if (code != ACL_SUCCESS) {
        cann_sim::retake_interpreter_lock();
    }
    return code;
}

}  // namespace

SIM_API aclError aclSetCompileopt(aclCompileOpt option, const char *value) try {
    std::lock_guard<std::mutex> lock(options_mutex);
    options[option] = value == nullptr ? "" : value;
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API size_t aclGetCompileoptSize(aclCompileOpt option) try { return option_value(option).size() + 1; }
SIM_CATCH

SIM_API aclError aclGetCompileopt(aclCompileOpt option, char *value, size_t length) try {
    const std::string text = option_value(option);
    if (length < text.size() + 1) {
        return fail(ACL_ERROR_INVALID_PARAM, "aclGetCompileopt: the buffer is too small");
    }
    std::memcpy(value, text.c_str(), text.size() + 1);
    return ACL_SUCCESS;
}
SIM_CATCH

SIM_API aclError aclopSetCompileFlag(aclOpCompileFlag) { return ACL_SUCCESS; }

SIM_API aclError aclopCompileAndExecute(const char *op_type, int num_inputs, const aclTensorDesc *const input_desc[],
                                        const aclDataBuffer *const inputs[], int num_outputs,
                                        const aclTensorDesc *const output_desc[], aclDataBuffer *const outputs[],
                                        const aclopAttr *attr, aclopEngineType, aclopCompileType, const char *,
                                        aclrtStream) try {
    if (cann_sim::is_lost_fork()) {
        return ended(cann_sim::lost_by_fork());
    }
    const cann_sim_execute_fn execute = cann_sim_get_execute();
    if (execute == nullptr) {
        return ended(fail(ACL_ERROR_OP_NOT_FOUND,
                          std::string("cann_sim: operator ") + op_type +
                              ": the compute plug-in is not loaded (it needs torch_npu in this process)"));
    }
    return ended(execute(op_type, num_inputs, input_desc, inputs, num_outputs, output_desc, outputs, attr));
}
SIM_CATCH

SIM_API aclError aclopCompileAndExecuteV2(const char *op_type, int num_inputs, aclTensorDesc *input_desc[],
                                          aclDataBuffer *inputs[], int num_outputs, aclTensorDesc *output_desc[],
                                          aclDataBuffer *outputs[], aclopAttr *attr, aclopEngineType engine,
                                          aclopCompileType compile, const char *path, aclrtStream stream) {
    return aclopCompileAndExecute(op_type, num_inputs, input_desc, inputs, num_outputs, output_desc, outputs, attr,
                                  engine, compile, path, stream);
}
