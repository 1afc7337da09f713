// libascendcl.so: runs of models, at once or in a stream.

#include "model/running.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "model/cores.h"
#include "model/dataset.h"
#include "model/models.h"
#include "runtime/counters.h"
#include "runtime/faults.h"
#include "runtime/memory.h"
#include "runtime/profiler.h"
#include "runtime/state.h"
#include "runtime/streams.h"

using cann_sim::fail;
using cann_sim::Model;

namespace {

// A buffer may lack this many bytes (davinci_model.cc): sizes are rounded up to 32 bytes and have 32 to spare.
constexpr uint64_t kSlack = 64;

// What aclmdlCreateAndGetOpDesc tells in the callback of an exception, which runs on the stream's thread.
thread_local std::shared_ptr<cann_sim::ModelFile> last_failed;

// A run with everything that it needs; data sets may change once it is queued.
struct Run {
    std::shared_ptr<Model> model;
    uint32_t id = 0, gear = 0;
    std::vector<const void *> inputs;
    std::vector<void *> outputs;
    std::vector<uint64_t> input_sizes, output_sizes;
};

std::string shape_of(const cann_sim_executor_tensor &tensor) {
    std::string text = "[";
    for (uint32_t i = 0; i < tensor.rank; ++i) {
        text += (i == 0 ? "" : ",") + std::to_string(tensor.dims[i]);
    }
    return text + "]";
}

// Checks one buffer of a data set against the gear's tensor. `unchecked`: its size may be any.
aclError check_buffer(const Run &run, const char *what, const char *code, size_t index,
                      const cann_sim_executor_tensor &tensor, const aclDataBuffer &buffer, bool unchecked) {
    const std::string name = std::string(what) + " " + std::to_string(index) + " (" + tensor.name + " " +
                             shape_of(tensor) + ") of model " + std::to_string(run.id);
    if (buffer.data == nullptr && tensor.size != 0) {
        return fail(cann_sim::kBadParameter, std::string(code) + ": the buffer of " + name + " has no memory");
    }
    if (!unchecked && buffer.size + kSlack < tensor.size) {
        return fail(cann_sim::kBadParameter, std::string(code) + ": the buffer of " + name + " has " +
                                                 std::to_string(buffer.size) + " bytes, and the model needs " +
                                                 std::to_string(tensor.size));
    }
    return ACL_SUCCESS;
}

aclError check_count(uint32_t id, const char *what, size_t expected, size_t found) {
    return expected == found ? ACL_SUCCESS
                             : fail(cann_sim::kBadParameter, "E19999: model " + std::to_string(id) + " has " +
                                                                 std::to_string(expected) + " " + what +
                                                                 ", and the data set has " + std::to_string(found));
}

aclError prepare(uint32_t id, const aclmdlDataset *input, const aclmdlDataset *output, const char *call, Run *run) {
    if (input == nullptr || output == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, std::string("EH0002: ") + call + ": a data set is null");
    }
    const aclError found = cann_sim::find_model_here(id, call, &run->model);
    if (found != ACL_SUCCESS) {
        return found;
    }
    const cann_sim_executor_info &info = run->model->file->info();
    run->id = id;
    run->gear = input->has_gear ? input->gear : info.largest_gear;
    if (run->gear >= info.num_gears) {
        return fail(cann_sim::kNoSuchGear, "E19999: the data set's gear is none of model " + std::to_string(id));
    }
    aclError error = check_count(id, "inputs", info.num_inputs + cann_sim::has_gears(info), input->buffers.size());
    if (error == ACL_SUCCESS) {
        error = check_count(id, "outputs", info.num_outputs, output->buffers.size());
    }
    const cann_sim_executor_gear &gear = info.gears[run->gear];
    for (size_t i = 0; error == ACL_SUCCESS && i < info.num_inputs; ++i) {
        const aclDataBuffer &buffer = *input->buffers[i];
        error = check_buffer(*run, "input", "E13025", i, gear.inputs[i], buffer, input->has_gear);
        run->inputs.push_back(buffer.data);
        run->input_sizes.push_back(buffer.size);
    }
    for (size_t i = 0; error == ACL_SUCCESS && i < info.num_outputs; ++i) {
        const aclDataBuffer &buffer = *output->buffers[i];
        error = check_buffer(*run, "output", "E13031", i, gear.outputs[i], buffer, input->has_gear);
        run->outputs.push_back(buffer.data);
        run->output_sizes.push_back(buffer.size);
    }
    return error;
}

aclError code_of(int executor_code) {
    switch (executor_code) {
        case CANN_SIM_EXECUTOR_BAD_ARGUMENT: return cann_sim::kBadParameter;
        case CANN_SIM_EXECUTOR_OUT_OF_MEMORY: return ACL_ERROR_BAD_ALLOC;
        default: return ACL_ERROR_RT_MODEL_EXECUTE;
    }
}

// The device has its own memory: a core that reads the host's ends in an exception.
aclError check_addresses(const Run &run) {
    std::vector<const void *> all = run.inputs;
    all.insert(all.end(), run.outputs.begin(), run.outputs.end());
    for (const void *address : all) {
        if (address != nullptr && !cann_sim_is_device_address(address)) {
            return fail(ACL_ERROR_RT_AICORE_EXCEPTION,
                        "EZ9999: model " + std::to_string(run.id) +
                            " was given an address that is no device memory: allocate it with aclrtMalloc");
        }
    }
    return ACL_SUCCESS;
}

aclError compute(const Run &run) {
    const cann_sim_executor_info &info = run.model->file->info();
    const std::string name = std::string("model::") + info.name;
    const cann_sim_executor_gear &gear = info.gears[run.gear];
    std::string signature;
    for (uint32_t i = 0; i < info.num_inputs; ++i) {
        signature += (i == 0 ? "" : ", ") + std::to_string(gear.inputs[i].dtype) + shape_of(gear.inputs[i]);
    }
    if (cann_sim::counting()) {
        cann_sim::count_launch(name, signature);
    }
    cann_sim::LaunchFault fault{1, false};
    if (cann_sim::faults_watch_launches()) {
        fault = cann_sim::fault_at_launch(name, run.model->device);
    }
    aclError error = cann_sim::fault_at_wait(run.model->device, -1);
    if (error == ACL_SUCCESS) {
        error = check_addresses(run);
    }
    if (error != ACL_SUCCESS) {
        return error;
    }
    const cann_sim_executor_functions *functions = nullptr;
    cann_sim::find_executor(&functions);  // it loaded the model
    const uint64_t task = cann_sim_task_begin(), begin = cann_sim::now_ns();
    char message[1024] = "";
    const int code =
        functions->run(run.model->file->handle(), run.gear, run.inputs.data(), run.input_sizes.data(),
                       run.outputs.data(), run.output_sizes.data(), nullptr, nullptr, message, sizeof message);
    if (fault.slow_down > 1) {
        usleep(static_cast<useconds_t>(static_cast<double>(cann_sim::now_ns() - begin) * (fault.slow_down - 1) / 1e3));
    }
    if (fault.corrupt && !run.outputs.empty()) {
        std::memset(run.outputs[0], 0, std::min(run.output_sizes[0], gear.outputs[0].size));
    }
    if (task != 0) {
        cann_sim_task_end(task, "SIMULATED", name.c_str(), signature.c_str());
    }
    return code == CANN_SIM_EXECUTOR_OK
               ? ACL_SUCCESS
               : fail(code_of(code), "E19999: model " + std::to_string(run.id) + " (" + info.name + "): " + message);
}

aclError run_now(const Run &run) {
    if (run.model->running.exchange(true)) {
        return fail(ACL_ERROR_RT_MODEL_EXECUTE,
                    "E19999: model " + std::to_string(run.id) +
                        " runs already: one model id cannot run twice at a time, load the model once per stream");
    }
    cann_sim::take_cores(run.model->device);
    aclError error = ACL_SUCCESS;
    try {
        error = compute(run);
    } catch (...) {
        error = cann_sim::Thrown("aclmdlExecute");
    }
    cann_sim::release_cores(run.model->device);
    run.model->running = false;
    if (error != ACL_SUCCESS) {
        last_failed = run.model->file;
    }
    return error;
}

}  // namespace

SIM_API aclError aclmdlExecute(uint32_t id, const aclmdlDataset *input, aclmdlDataset *output) try {
    Run run;
    const aclError error = prepare(id, input, output, "aclmdlExecute", &run);
    if (error != ACL_SUCCESS) {
        return error;
    }
    if (cann_sim::counting()) {
        cann_sim::count_wait("aclmdlExecute");
    }
    return run_now(run);
}
SIM_CATCH

SIM_API aclError aclmdlExecuteAsync(uint32_t id, const aclmdlDataset *input, aclmdlDataset *output,
                                    aclrtStream handle) try {
    Run run;
    aclError error = prepare(id, input, output, "aclmdlExecuteAsync", &run);
    cann_sim::Stream *stream = nullptr;
    if (error == ACL_SUCCESS) {
        error = cann_sim::find_stream(handle, "aclmdlExecuteAsync", &stream);
    }
    if (error == ACL_SUCCESS) {
        cann_sim::enqueue(*stream, [run = std::move(run)] { return run_now(run); });
    }
    return error;
}
SIM_CATCH

// ---- the operator of an exception ----

namespace {

size_t describe(const cann_sim_executor_tensor *tensors, uint32_t count, aclTensorDesc **descriptions) {
    *descriptions = new aclTensorDesc[std::max(count, 1U)];
    (*descriptions)[0].heads_array = true;
    for (uint32_t i = 0; i < count; ++i) {
        aclTensorDesc &description = (*descriptions)[i];
        description.dtype = static_cast<aclDataType>(tensors[i].dtype);
        description.format = description.storage_format = ACL_FORMAT_ND;
        description.dims.assign(tensors[i].dims, tensors[i].dims + tensors[i].rank);
        description.storage_dims = description.dims;
        description.name = tensors[i].name;
    }
    return count;
}

}  // namespace

// A model is one task here: its operator is the model itself.
SIM_API aclError aclmdlCreateAndGetOpDesc(uint32_t, uint32_t, uint32_t, char *name, size_t room,
                                          aclTensorDesc **input_desc, size_t *num_inputs, aclTensorDesc **output_desc,
                                          size_t *num_outputs) try {
    if (name == nullptr || room == 0 || input_desc == nullptr || num_inputs == nullptr || output_desc == nullptr ||
        num_outputs == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclmdlCreateAndGetOpDesc: a place for a result is null");
    }
    if (last_failed == nullptr) {
        return fail(ACL_ERROR_FAILURE,
                    "E19999: aclmdlCreateAndGetOpDesc: no task of this thread failed (call it in the callback of "
                    "aclrtSetExceptionInfoCallback)");
    }
    const cann_sim_executor_info &info = last_failed->info();
    std::snprintf(name, room, "%s", info.name);
    *num_inputs = describe(info.inputs, info.num_inputs, input_desc);
    *num_outputs = describe(info.outputs, info.num_outputs, output_desc);
    return ACL_SUCCESS;
}
SIM_CATCH
