// libascendcl.so: loading and unloading of OM models.

#include "model/models.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>

#include "model/cores.h"
#include "runtime/memory.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

// Never destroyed: a process that ends may still have a stream that runs a model.
struct Loaded {
    std::mutex mutex;
    std::map<uint32_t, std::shared_ptr<Model>> models;
    uint32_t next = 1;
};

Loaded &loaded() {
    static Loaded &all = *new Loaded;
    return all;
}

struct Executor {
    const cann_sim_executor_functions *functions = nullptr;
    std::string error;

    Executor() {
        Dl_info info{};
        std::string path = "libcann_sim_executor.so";
        if (dladdr(reinterpret_cast<void *>(&find_executor), &info) != 0 && info.dli_fname != nullptr) {
            const std::string library = info.dli_fname;
            path = library.substr(0, library.rfind('/') + 1) + path;
        }
        void *const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            error = dlerror();
            return;
        }
        const auto interface =
            reinterpret_cast<decltype(&cann_sim_executor_interface)>(dlsym(library, CANN_SIM_EXECUTOR_INTERFACE));
        if (interface == nullptr) {
            error = path + " has no " CANN_SIM_EXECUTOR_INTERFACE;
            return;
        }
        functions = interface();
        finish_models_at_exit();  // after libtorch was loaded: this runs before its statics end
    }
};

const Executor &executor() {
    static const Executor &library = *new Executor;
    return library;
}

// SoCs of one family run each other's models: Ascend910B1 to B4, Ascend910_93xx, Ascend310P, Ascend310B, Ascend910A.
std::string family(const std::string &soc) {
    const auto begins = [&](const char *head) { return soc.compare(0, std::strlen(head), head) == 0; };
    if (begins("Ascend910B") && soc.size() > std::strlen("Ascend910B")) {
        return "Ascend910B";
    }
    for (const char *head : {"Ascend910_93", "Ascend310P", "Ascend310B"}) {
        if (begins(head)) {
            return head;
        }
    }
    return begins("Ascend910") ? "Ascend910A" : soc;
}

aclError code_of(int executor_code) {
    switch (executor_code) {
        case CANN_SIM_EXECUTOR_NO_FILE: return kBadModelPath;
        case CANN_SIM_EXECUTOR_BAD_FILE: return kBadModelData;
        case CANN_SIM_EXECUTOR_OUT_OF_MEMORY: return ACL_ERROR_BAD_ALLOC;
        default: return static_cast<aclError>(ACL_ERROR_GE_LOAD_MODEL);
    }
}

const char *error_name(int executor_code) {
    switch (executor_code) {
        case CANN_SIM_EXECUTOR_NO_FILE: return "E13001";
        case CANN_SIM_EXECUTOR_BAD_FILE: return "E10001";
        case CANN_SIM_EXECUTOR_OUT_OF_MEMORY: return "EL0003";
        default: return "E19999";
    }
}

// Takes an area of the device, or the caller's if it is large enough.
aclError take(const char *what, const Area &callers, size_t needed, Area *area) {
    if (callers.address != nullptr) {
        if (callers.size < needed) {
            return fail(kBadParameter, std::string("E19999: the ") + what + " memory of the caller has " +
                                           std::to_string(callers.size) + " bytes, and the model needs " +
                                           std::to_string(needed));
        }
        if (!cann_sim_is_device_address(callers.address)) {
            return fail(kBadParameter,
                        std::string("E19999: the ") + what + " memory of the caller is none of a device");
        }
        *area = callers;
        return ACL_SUCCESS;
    }
    if (needed == 0) {
        return ACL_SUCCESS;
    }
    void *address = nullptr;
    if (aclrtMalloc(&address, needed, ACL_MEM_MALLOC_HUGE_FIRST) != ACL_SUCCESS) {
        const std::string why = take_recent_error();
        return fail(kNoMemory, std::string("E19999: no room for the model's ") + what + " memory, " +
                                   std::to_string(needed) + " bytes: " + why);
    }
    *area = {address, needed, true};
    return ACL_SUCCESS;
}

}  // namespace

ModelFile::~ModelFile() { executor().functions->unload(model_); }

const cann_sim_executor_info &ModelFile::info() const { return *executor().functions->describe(model_); }

Model::~Model() {
    for (const Area *area : {&work, &weights}) {
        if (area->ours) {
            aclrtFree(area->address);
        }
    }
}

aclError find_executor(const cann_sim_executor_functions **functions) {
    *functions = executor().functions;
    return *functions != nullptr
               ? ACL_SUCCESS
               : fail(ACL_ERROR_INTERNAL_ERROR,
                      "cann_sim: models run on libtorch's CPU kernels, and their library cannot be loaded: " +
                          executor().error);
}

aclError read_model(const Source &source, std::shared_ptr<ModelFile> *file) {
    const cann_sim_executor_functions *functions = nullptr;
    const aclError found = find_executor(&functions);
    if (found != ACL_SUCCESS) {
        return found;
    }
    char message[1024] = "";
    cann_sim_executor_model *model = nullptr;
    const int code = source.data == nullptr
                         ? functions->load_file(source.path.c_str(), &model, message, sizeof message)
                         : functions->load_memory(source.data, source.size, &model, message, sizeof message);
    if (code != CANN_SIM_EXECUTOR_OK) {
        return fail(code_of(code), std::string(error_name(code)) + ": the model cannot be loaded: " + message);
    }
    auto read = std::make_shared<ModelFile>(model);
    const std::string soc = read->info().soc;
    if (family(soc) != family(config().soc)) {
        return fail(ACL_ERROR_RT_SOC_VERSION, "EE1001: the model was converted for " + soc + ", and this device is " +
                                                  config().soc + ": convert it with --soc_version=" + config().soc);
    }
    *file = std::move(read);
    return ACL_SUCCESS;
}

aclError load_model(const Source &source, const Area &work, const Area &weights, uint32_t *id) {
    if (id == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: the place for the model's id is null");
    }
    if (current_context() == nullptr) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, "EE1001: a model is loaded into a context, and this thread has none");
    }
    std::shared_ptr<ModelFile> file;
    const aclError read = read_model(source, &file);
    if (read != ACL_SUCCESS) {
        return read;
    }
    auto model = std::make_shared<Model>(file);
    model->context = current_context();
    model->device = current_device();
    model->gear = file->info().largest_gear;
    aclError taken = take("weight", weights, file->info().weight_size, &model->weights);
    if (taken == ACL_SUCCESS) {
        taken = take("work", work, file->info().work_size, &model->work);
    }
    if (taken != ACL_SUCCESS) {
        return taken;
    }
    const std::lock_guard<std::mutex> lock(loaded().mutex);
    *id = loaded().next++;
    loaded().models[*id] = std::move(model);
    return ACL_SUCCESS;
}

aclError find_model(uint32_t id, std::shared_ptr<Model> *model) {
    const std::lock_guard<std::mutex> lock(loaded().mutex);
    const auto found = loaded().models.find(id);
    if (found == loaded().models.end()) {
        return fail(kBadModelId, "E19999: no model with id " + std::to_string(id) + " is loaded");
    }
    *model = found->second;
    return ACL_SUCCESS;
}

aclError find_model_here(uint32_t id, const char *call, std::shared_ptr<Model> *model) {
    if (current_context() == nullptr) {
        return fail(ACL_ERROR_RT_CONTEXT_NULL, std::string("EE1001: ") + call + ": this thread has no context");
    }
    const aclError found = find_model(id, model);
    if (found == ACL_SUCCESS && (*model)->context != current_context()) {
        return fail(ACL_ERROR_RT_MODEL_CONTEXT,
                    std::string("EE1001: ") + call + ": model " + std::to_string(id) +
                        " was loaded in another context than this thread's: load, execute and unload it in one");
    }
    return found;
}

}  // namespace cann_sim

using cann_sim::fail;

namespace {

aclError load_path(const char *path, uint32_t *id, const cann_sim::Area &work, const cann_sim::Area &weights) {
    return path == nullptr ? fail(ACL_ERROR_INVALID_PARAM, "EH0002: the model's path is null")
                           : cann_sim::load_model({path}, work, weights, id);
}

aclError load_memory(const void *data, size_t size, uint32_t *id, const cann_sim::Area &work,
                     const cann_sim::Area &weights) {
    return data == nullptr || size == 0 ? fail(ACL_ERROR_INVALID_PARAM, "EH0002: the model in memory is null or empty")
                                        : cann_sim::load_model({"", data, size}, work, weights, id);
}

aclError query(const cann_sim::Source &source, size_t *work, size_t *weights) {
    if (work == nullptr || weights == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: the place for a size is null");
    }
    std::shared_ptr<cann_sim::ModelFile> file;
    const aclError read = cann_sim::read_model(source, &file);
    if (read == ACL_SUCCESS) {
        *work = file->info().work_size;
        *weights = file->info().weight_size;
    }
    return read;
}

}  // namespace

SIM_API aclError aclmdlLoadFromFile(const char *path, uint32_t *id) try { return load_path(path, id, {}, {}); }
SIM_CATCH
SIM_API aclError aclmdlLoadFromFileWithMem(const char *path, uint32_t *id, void *work, size_t work_size, void *weights,
                                           size_t weights_size) try {
    return load_path(path, id, {work, work_size}, {weights, weights_size});
}
SIM_CATCH
SIM_API aclError aclmdlLoadFromMem(const void *data, size_t size, uint32_t *id) try {
    return load_memory(data, size, id, {}, {});
}
SIM_CATCH
SIM_API aclError aclmdlLoadFromMemWithMem(const void *data, size_t size, uint32_t *id, void *work, size_t work_size,
                                          void *weights, size_t weights_size) try {
    return load_memory(data, size, id, {work, work_size}, {weights, weights_size});
}
SIM_CATCH

SIM_API aclError aclmdlUnload(uint32_t id) try {
    std::shared_ptr<cann_sim::Model> model;  // the last reference, so that it ends outside of the lock
    const aclError found = cann_sim::find_model_here(id, "aclmdlUnload", &model);
    if (found == ACL_SUCCESS) {
        const std::lock_guard<std::mutex> lock(cann_sim::loaded().mutex);
        cann_sim::loaded().models.erase(id);
    }
    return found;
}
SIM_CATCH

SIM_API aclError aclmdlQuerySize(const char *path, size_t *work, size_t *weights) try {
    return path == nullptr ? fail(ACL_ERROR_INVALID_PARAM, "EH0002: the model's path is null")
                           : query({path}, work, weights);
}
SIM_CATCH
SIM_API aclError aclmdlQuerySizeFromMem(const void *data, size_t size, size_t *work, size_t *weights) try {
    return data == nullptr || size == 0 ? fail(ACL_ERROR_INVALID_PARAM, "EH0002: the model in memory is null or empty")
                                        : query({"", data, size}, work, weights);
}
SIM_CATCH

// ---- loading by configuration ----

struct aclmdlConfigHandle {
    size_t type = 0;
    std::string path;
    const void *data = nullptr;
    size_t size = 0;
    cann_sim::Area work, weights;
};

SIM_API aclmdlConfigHandle *aclmdlCreateConfigHandle() try { return new aclmdlConfigHandle; }
SIM_CATCH
SIM_API aclError aclmdlDestroyConfigHandle(aclmdlConfigHandle *handle) {
    delete handle;
    return handle == nullptr ? ACL_ERROR_INVALID_PARAM : ACL_SUCCESS;
}

namespace {

template <typename T>
aclError read_option(const void *value, size_t size, T *field) {
    if (size != sizeof(T)) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclmdlSetConfigOpt: the value's size is not its type's");
    }
    std::memcpy(field, value, sizeof(T));
    return ACL_SUCCESS;
}

}  // namespace

SIM_API aclError aclmdlSetConfigOpt(aclmdlConfigHandle *handle, aclmdlConfigAttr attribute, const void *value,
                                    size_t size) try {
    if (handle == nullptr || value == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclmdlSetConfigOpt: the handle or the value is null");
    }
    int32_t priority = 0;
    size_t accepted = 0;
    const char *path = nullptr;
    switch (attribute) {
        case ACL_MDL_PRIORITY_INT32: return read_option(value, size, &priority);
        case ACL_MDL_LOAD_TYPE_SIZET: return read_option(value, size, &handle->type);
        case ACL_MDL_PATH_PTR: {
            const aclError read = read_option(value, size, &path);
            handle->path = path == nullptr ? "" : path;
            return read;
        }
        case ACL_MDL_MEM_ADDR_PTR: return read_option(value, size, &handle->data);
        case ACL_MDL_MEM_SIZET: return read_option(value, size, &handle->size);
        case ACL_MDL_WEIGHT_ADDR_PTR: return read_option(value, size, &handle->weights.address);
        case ACL_MDL_WEIGHT_SIZET: return read_option(value, size, &handle->weights.size);
        case ACL_MDL_WORKSPACE_ADDR_PTR: return read_option(value, size, &handle->work.address);
        case ACL_MDL_WORKSPACE_SIZET: return read_option(value, size, &handle->work.size);
        case ACL_MDL_WORKSPACE_MEM_OPTIMIZE: return read_option(value, size, &accepted);
        default:
            return fail(ACL_ERROR_FEATURE_UNSUPPORTED,
                        "cann_sim: aclmdlSetConfigOpt does not simulate option " + std::to_string(attribute));
    }
}
SIM_CATCH

SIM_API aclError aclmdlLoadWithConfig(const aclmdlConfigHandle *handle, uint32_t *id) try {
    if (handle == nullptr) {
        return fail(ACL_ERROR_INVALID_PARAM, "EH0002: aclmdlLoadWithConfig: the handle is null");
    }
    switch (handle->type) {
        case ACL_MDL_LOAD_FROM_FILE: return load_path(handle->path.c_str(), id, {}, {});
        case ACL_MDL_LOAD_FROM_FILE_WITH_MEM: return load_path(handle->path.c_str(), id, handle->work, handle->weights);
        case ACL_MDL_LOAD_FROM_MEM: return load_memory(handle->data, handle->size, id, {}, {});
        case ACL_MDL_LOAD_FROM_MEM_WITH_MEM:
            return load_memory(handle->data, handle->size, id, handle->work, handle->weights);
        default:
            return fail(ACL_ERROR_INVALID_PARAM, "EH0001: aclmdlLoadWithConfig: load type " +
                                                     std::to_string(handle->type) +
                                                     " is none of 1 to 4 (queues are not simulated)");
    }
}
SIM_CATCH
