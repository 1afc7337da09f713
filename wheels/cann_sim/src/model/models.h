// The models that this process has loaded, and the library that reads and runs them.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "executor/executor.h"
#include "runtime/abi.h"
#include "runtime/streams.h"

namespace cann_sim {

// Codes of ge_error_codes.h as aclError.
constexpr aclError kBadParameter = static_cast<aclError>(ACL_ERROR_GE_PARAM_INVALID);                 // 145000
constexpr aclError kBadModelPath = static_cast<aclError>(ACL_ERROR_GE_EXEC_MODEL_PATH_INVALID);       // 145002
constexpr aclError kBadModelId = static_cast<aclError>(ACL_ERROR_GE_EXEC_MODEL_ID_INVALID);           // 145003
constexpr aclError kBadModelData = static_cast<aclError>(ACL_ERROR_GE_EXEC_MODEL_DATA_SIZE_INVALID);  // 145006
constexpr aclError kBadModelAddress = static_cast<aclError>(ACL_ERROR_GE_EXEC_MODEL_ADDR_INVALID);    // 145007
constexpr aclError kGearAddress = static_cast<aclError>(ACL_ERROR_GE_DYNAMIC_INPUT_ADDR_INVALID);     // 145011
constexpr aclError kGearLength = static_cast<aclError>(ACL_ERROR_GE_DYNAMIC_INPUT_LENGTH_INVALID);    // 145012
constexpr aclError kNoSuchGear = static_cast<aclError>(ACL_ERROR_GE_DYNAMIC_BATCH_SIZE_INVALID);      // 145013
constexpr aclError kNoAipp = static_cast<aclError>(ACL_ERROR_GE_AIPP_NOT_EXIST);                      // 145015
constexpr aclError kAippMode = static_cast<aclError>(ACL_ERROR_GE_AIPP_MODE_INVALID);                 // 145016
constexpr aclError kNoMemory = static_cast<aclError>(ACL_ERROR_GE_MEMORY_ALLOCATION);                 // 245000

// Where a model is: a file, or memory.
struct Source {
    std::string path;
    const void *data = nullptr;
    size_t size = 0;
};

// A model that the executor has read; unloaded with the last user.
class ModelFile {
public:
    explicit ModelFile(cann_sim_executor_model *model) : model_(model) {}
    ~ModelFile();
    ModelFile(const ModelFile &) = delete;
    ModelFile &operator=(const ModelFile &) = delete;

    const cann_sim_executor_info &info() const;
    const cann_sim_executor_model *handle() const { return model_; }

private:
    cann_sim_executor_model *const model_;
};

// Device memory that a load gives to a model, or the caller's.
struct Area {
    void *address = nullptr;
    size_t size = 0;
    bool ours = false;
};

// A loaded model.
struct Model {
    explicit Model(std::shared_ptr<ModelFile> read) : file(std::move(read)) {}
    ~Model();

    const std::shared_ptr<ModelFile> file;
    Context *context = nullptr;
    int device = 0;
    Area work, weights;
    std::atomic<bool> running{false};
    std::atomic<uint32_t> gear{0};  // the last that a data set got: what aclmdlGetCurOutputDims tells
};

// The library, loaded at the first call.
aclError find_executor(const cann_sim_executor_functions **functions);

// Reads a model and refuses one for another family of SoCs than the devices'. `path` in messages.
aclError read_model(const Source &source, std::shared_ptr<ModelFile> *file);

// Reads a model and gives it its memory on the current device; the areas are the caller's where they have an address.
aclError load_model(const Source &source, const Area &work, const Area &weights, uint32_t *id);

// The model of an id: 145003 where there is none.
aclError find_model(uint32_t id, std::shared_ptr<Model> *model);

// The same, of the calling thread's context: 107002 without one, 107004 where it was loaded in another.
aclError find_model_here(uint32_t id, const char *call, std::shared_ptr<Model> *model);

// Whether the model has gears; its last input is then the one that chooses.
inline bool has_gears(const cann_sim_executor_info &info) { return info.gear_kind != CANN_SIM_EXECUTOR_STATIC; }

}  // namespace cann_sim
