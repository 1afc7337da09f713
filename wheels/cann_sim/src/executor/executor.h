// The C interface of libcann_sim_executor.so: it loads OM files of cann_sim and runs their programs on the CPU with ATen.
//
// libascendcl.so has no torch of its own; it loads this library at the first aclmdlLoad* with
//     dlopen("<folder of libascendcl.so>/libcann_sim_executor.so", RTLD_NOW | RTLD_LOCAL)
// and looks cann_sim_executor_interface up. The library needs libtorch_cpu and libc10 only and finds them beside the
// cann_sim package (its runpath leads to ../../../torch/lib), in a process without Python, too; where torch is loaded
// already, that one is used.
//
// Every function is safe to call from C: it returns a code, writes why into `message` (always ended with 0, cut to
// `room`; null is allowed), and never throws. Different models may run at the same time, and so may runs of one model. One
// thing is the process's: the first run puts an allocator before ATen's, which lets a model keep the memory of its runs
// (until it is unloaded), and which does what ATen's does for everybody else. Numbers of data types are aclDataType's (float 0, float16 1, int32 3, int64 9, bfloat16 27 …).
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum cann_sim_executor_code {
    CANN_SIM_EXECUTOR_OK = 0,
    CANN_SIM_EXECUTOR_NO_FILE = 1,        // the file does not exist or cannot be read
    CANN_SIM_EXECUTOR_BAD_FILE = 2,       // no OM, an OM for a card, truncated, altered
    CANN_SIM_EXECUTOR_UNSUPPORTED = 3,    // an operator, data type or attribute that is not simulated; said at load
    CANN_SIM_EXECUTOR_BAD_ARGUMENT = 4,   // a gear that does not exist, a null buffer
    CANN_SIM_EXECUTOR_RUN_FAILED = 5,     // an operation failed; the message names it
    CANN_SIM_EXECUTOR_OUT_OF_MEMORY = 6,  // the host's memory is exhausted
};

typedef struct cann_sim_executor_model cann_sim_executor_model;

typedef struct {
    const char *name;
    int32_t dtype;  // aclDataType
    uint32_t rank;
    const int64_t *dims;  // in the model's own inputs a dimension that gears change is -1
    uint64_t size;        // bytes; of a tensor with -1 the largest gear's
} cann_sim_executor_tensor;

// AIPP of an input: uint8 NHWC in, (pixel - mean - min) * var_reci per channel, in the network's order of channels.
typedef struct {
    uint32_t input;  // index among the inputs
    int64_t height, width;
    int32_t channels_swapped;
    uint32_t channels;
    const double *mean, *minimum, *reciprocal;
} cann_sim_executor_aipp;

typedef struct {
    uint32_t num_values;
    const int64_t *values;  // (4) for a batch, (800, 1344) for an image size, all dimensions of all inputs for dims
    const cann_sim_executor_tensor *inputs;   // num_inputs of them; with AIPP uint8 NHWC
    const cann_sim_executor_tensor *outputs;  // num_outputs of them
    uint64_t work_size;
    uint32_t num_operations;
} cann_sim_executor_gear;

enum cann_sim_executor_gear_kind {
    CANN_SIM_EXECUTOR_STATIC = 0,
    CANN_SIM_EXECUTOR_BATCH = 1,
    CANN_SIM_EXECUTOR_IMAGE = 2,
    CANN_SIM_EXECUTOR_DIMS = 3,
};

// Owned by the model, and valid as long as it is loaded.
typedef struct {
    const char *name, *soc, *command;
    uint32_t opset;
    uint32_t num_inputs, num_outputs;  // without the input of gears (ascend_mbatch_shape_data), which is the caller's
    const cann_sim_executor_tensor *inputs;  // as the model describes them
    const cann_sim_executor_tensor *outputs;
    int32_t gear_kind;
    uint32_t num_gears;                   // 1 for a static model
    const cann_sim_executor_gear *gears;  // in the order in which ATC got them
    uint32_t largest_gear;                // what runs if the caller chooses none
    uint64_t work_size;                   // bytes of the largest gear
    uint64_t weight_size;                 // bytes of the constants
    uint32_t num_aipp;
    const cann_sim_executor_aipp *aipp;
    uint32_t num_metadata;
    const char *const *metadata;  // key, value, key, value …
    double milliseconds;          // from CANN_SIM_MODEL_MS; negative: the model computes
} cann_sim_executor_info;

// What a run tells after each operation, for profiles, dumps and counters. Its tensors are valid during the call only;
// `data` is contiguous. `begin` and `end` are of CLOCK_MONOTONIC in nanoseconds.
typedef struct {
    const char *name, *operator_type, *kernel, *engine;
    uint64_t begin, end;
    uint32_t num_inputs, num_outputs;  // those that are left out have a null name
    const cann_sim_executor_tensor *inputs;
    const cann_sim_executor_tensor *outputs;
    const void *const *output_data;
} cann_sim_executor_operation;

typedef void (*cann_sim_executor_observer)(void *context, const cann_sim_executor_operation *operation);

typedef struct {
    // The model in a file, mapped; or in memory, of which a copy is made, so that the caller may free it.
    // The checksum is compared first, so loading reads the whole file once.
    int (*load_file)(const char *path, cann_sim_executor_model **model, char *message, size_t room);
    int (*load_memory)(const void *data, size_t size, cann_sim_executor_model **model, char *message, size_t room);
    void (*unload)(cann_sim_executor_model *model);
    const cann_sim_executor_info *(*describe)(const cann_sim_executor_model *model);

    // Computes gear number `gear`. It returns when the outputs are written; for execute_async call it from the stream's
    // thread. Sizes are those of the buffers. The C ABI's checks of sizes are the caller's: a run reads and writes
    // within the sizes, takes what an input lacks as zero bytes, and drops what an output has no room for. An input and
    // an output may share a buffer. With CANN_SIM_MODEL_MS="backbone:157.7,rpn:1.2" (read at load, by the model's
    // name) a run takes that long without computing, on one sleeping thread, and leaves the outputs as they are.
    // `observer` may be null; with one, outputs of operations are made contiguous, which costs time.
    int (*run)(const cann_sim_executor_model *model, uint32_t gear, const void *const *inputs,
               const uint64_t *input_sizes, void *const *outputs, const uint64_t *output_sizes,
               cann_sim_executor_observer observer, void *context, char *message, size_t room);

    // The operators that can be run, separated by blanks, sorted.
    const char *(*operators)(void);
} cann_sim_executor_functions;

#define CANN_SIM_EXECUTOR_INTERFACE "cann_sim_executor_interface"
const cann_sim_executor_functions *cann_sim_executor_interface(void);

#ifdef __cplusplus
}
#endif
