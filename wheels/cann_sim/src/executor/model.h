// An OM file in memory: what cann_sim.atc.program describes, with names resolved to numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace cann_sim::executor {

struct Value {
    std::string name;
    at::ScalarType dtype;
    std::vector<int64_t> shape;

    uint64_t bytes() const;
};

struct Attribute {
    char kind = 'I';  // i, f, s; lists I, F, S
    int64_t integer = 0;
    double number = 0;
    std::string text;
    std::vector<int64_t> integers;
    std::vector<double> numbers;
    std::vector<std::string> texts;
};

class Call;
using Function = void (*)(Call &);

// Inputs and outputs are numbers of slots: first the program's values, then the model's constants; -1 is left out.
struct Operation {
    std::string name, type, kernel, engine;
    std::vector<int32_t> inputs, outputs;
    std::map<std::string, Attribute> attributes;
    Function function = nullptr;
    std::vector<int32_t> dying;  // values that nobody uses after this operation, in the order of its inputs
};

struct Program {
    std::vector<int64_t> gear;
    uint64_t work_size = 0;
    std::vector<Value> inputs, outputs, values;
    std::vector<int32_t> input_slots, output_slots;
    std::vector<Operation> operations;
};

struct Aipp {
    std::string input;
    int64_t height, width;
    bool channels_swapped;
    std::vector<double> mean, minimum, reciprocal;
};

struct Model {
    std::string name, soc, command, gears;
    uint32_t opset = 0;
    std::vector<std::string> metadata;  // key, value, key, value …
    std::vector<Value> inputs, outputs;
    std::vector<Aipp> aipp;
    std::vector<Value> constants;
    std::vector<at::Tensor> constant_tensors;  // over the mapped file
    uint64_t weight_size = 0;
    std::vector<Program> programs;
    std::shared_ptr<const void> file;  // keeps the mapping

    // On 310P and 910A float16 saturates; the 910B family has infinities.
    bool saturates() const;
};

// How loading and running end; the code is executor.h's.
struct Failure : std::runtime_error {
    Failure(int number, const std::string &message) : std::runtime_error(message), code(number) {}
    int code;
};

}  // namespace cann_sim::executor
