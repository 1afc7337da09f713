// Reads what cann_sim/atc/om_programs.py writes: change both, and the format's number.

#include "pch.h"

#include "executor/decoder.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "executor/cursor.h"
#include "executor/operations.h"

namespace cann_sim::executor {

namespace {

constexpr uint32_t kFormat = 1;
constexpr size_t kAlignment = 64;
constexpr uint64_t kMaxBytes = uint64_t{1} << 48;  // of a tensor; products of sizes stay far below an overflow
// Numbers of data types in the file: the order of ITEM_SIZES in footprint.py. ATen computes with these.
constexpr at::ScalarType kTypes[] = {at::kFloat, at::kHalf,   at::kBFloat16, at::kDouble, at::kChar,
                                     at::kByte,  at::kShort,  at::kUInt16,   at::kInt,    at::kUInt32,
                                     at::kLong,  at::kUInt64, at::kBool};

// Sizes of a tensor that exists: none negative, and together of a size that can be computed. Where gears change a size of
// the model's own inputs, it is -1.
void check_shape(const Value &value, int64_t least) {
    uint64_t bytes = c10::elementSize(value.dtype);
    for (const int64_t size : value.shape) {
        if (size < least || (size > 0 && bytes > kMaxBytes / static_cast<uint64_t>(size))) {
            refuse("the value " + value.name + " has an impossible shape");
        }
        bytes *= static_cast<uint64_t>(std::max<int64_t>(size, 1));
    }
}

Value read_value(Cursor &in, int64_t least) {
    Value result;
    result.name = in.text();
    const auto type = in.get<uint8_t>();
    if (type >= std::size(kTypes)) {
        refuse("a value has the unknown data type " + std::to_string(type));
    }
    result.dtype = kTypes[type];
    result.shape = in.numbers<int64_t>();
    check_shape(result, least);
    return result;
}

std::vector<Value> read_values(Cursor &in, int64_t least = 0) {
    return in.list(9, [&] { return read_value(in, least); });
}

Attribute read_attribute(Cursor &in) {
    Attribute result;
    result.kind = static_cast<char>(in.get<uint8_t>());
    switch (result.kind) {
        case 'i': result.integer = in.get<int64_t>(); break;
        case 'f': result.number = in.get<double>(); break;
        case 's': result.text = in.text(); break;
        case 'I': result.integers = in.numbers<int64_t>(); break;
        case 'F': result.numbers = in.numbers<double>(); break;
        case 'S': result.texts = in.texts(); break;
        default: refuse("an attribute has an unknown type");
    }
    return result;
}

using Slots = std::unordered_map<std::string, int32_t>;

std::vector<int32_t> resolve(const std::vector<std::string> &names, const Slots &slots) {
    std::vector<int32_t> result;
    for (const std::string &name : names) {
        const auto found = slots.find(name);
        if (!name.empty() && found == slots.end()) {
            refuse("an operation uses " + name + ", which is not there");
        }
        result.push_back(name.empty() ? -1 : found->second);
    }
    return result;
}

Operation read_operation(Cursor &in, const Slots &slots) {
    Operation result;
    for (std::string *text : {&result.name, &result.type, &result.kernel, &result.engine}) {
        *text = in.text();
    }
    result.inputs = resolve(in.texts(), slots);
    result.outputs = resolve(in.texts(), slots);
    for (size_t left = in.count(5); left > 0; --left) {
        const std::string name = in.text();
        result.attributes[name] = read_attribute(in);
    }
    result.function = find_operator(result.type);
    if (result.function == nullptr) {
        throw Failure(CANN_SIM_EXECUTOR_UNSUPPORTED,
                      "operation " + result.name + ": cann_sim does not simulate the operator " + result.type);
    }
    return result;
}

// Every input must have been computed, and every value is computed once; then, by whom each is used last.
void order(Program &program) {
    const auto values = static_cast<int32_t>(program.values.size());
    std::vector<bool> known(program.values.size());
    std::vector<size_t> last(program.values.size());
    for (const int32_t slot : program.input_slots) {
        known[slot] = true;
    }
    for (size_t i = 0; i < program.operations.size(); ++i) {
        const Operation &operation = program.operations[i];
        for (const int32_t slot : operation.inputs) {
            if (slot >= 0 && slot < values) {
                if (!known[slot]) {
                    refuse("operation " + operation.name + " uses " + program.values[slot].name + " before it exists");
                }
                last[slot] = i;
            }
        }
        for (const int32_t slot : operation.outputs) {
            if (slot >= values || (slot >= 0 && known[slot])) {
                refuse("operation " + operation.name + " computes what is there already");
            }
            if (slot >= 0) {
                known[slot] = true;
                last[slot] = i;
            }
        }
    }
    for (const int32_t slot : program.output_slots) {
        if (slot < values && !known[slot]) {
            refuse("nothing computes the output " + program.values[slot].name);
        }
        if (slot < values) {
            last[slot] = program.operations.size();
        }
    }
    for (int32_t slot = 0; slot < values; ++slot) {
        if (known[slot] && last[slot] < program.operations.size()) {
            program.operations[last[slot]].dying.push_back(slot);
        }
    }
}

Program read_program(Cursor &in, const Model &model) {
    Program result;
    result.gear = in.numbers<int64_t>();
    result.work_size = in.get<uint64_t>();
    result.inputs = read_values(in);
    result.outputs = read_values(in);
    result.values = read_values(in);
    Slots slots;
    for (const std::vector<Value> *values : {&std::as_const(result.values), &model.constants}) {
        for (const Value &value : *values) {
            if (!slots.emplace(value.name, static_cast<int32_t>(slots.size())).second) {
                refuse("two values have the name " + value.name);
            }
        }
    }
    const auto names = [](const std::vector<Value> &values) {
        std::vector<std::string> result;
        for (const Value &value : values) {
            result.push_back(value.name);
        }
        return result;
    };
    result.input_slots = resolve(names(result.inputs), slots);
    result.output_slots = resolve(names(result.outputs), slots);
    for (const int32_t slot : result.input_slots) {
        if (slot < 0 || slot >= static_cast<int32_t>(result.values.size())) {
            refuse("an input of a program is no value");
        }
    }
    for (const int32_t slot : result.output_slots) {
        if (slot < 0) {
            refuse("an output of a program has no name");
        }
    }
    result.operations = in.list(28, [&] { return read_operation(in, slots); });
    order(result);
    return result;
}

Aipp read_aipp(Cursor &in) {
    Aipp result;
    result.input = in.text();
    const auto size = in.numbers<int64_t>();
    result.channels_swapped = in.get<uint8_t>() != 0;
    result.mean = in.numbers<double>();
    result.minimum = in.numbers<double>();
    result.reciprocal = in.numbers<double>();
    const size_t channels = result.mean.size();
    if (size.size() != 2 || channels == 0 || result.minimum.size() != channels ||
        result.reciprocal.size() != channels) {
        refuse("the AIPP of " + result.input + " has no size or not the same number of channels everywhere");
    }
    result.height = size[0];
    result.width = size[1];
    return result;
}

void read_constant(Cursor &in, Model &model, const unsigned char *constants, size_t size) {
    Value value = read_value(in, 0);
    const auto offset = in.get<uint64_t>();
    if (offset % kAlignment != 0 || offset > size || value.bytes() > size - offset) {
        refuse("the constant " + value.name + " lies outside its partition");
    }
    // Nobody writes to constants: Call::owned is false for them. ATen has no tensor of const memory.
    void *data = const_cast<unsigned char *>(constants + offset);
    model.constant_tensors.push_back(at::from_blob(data, value.shape, at::TensorOptions().dtype(value.dtype)));
    model.weight_size += (value.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    model.constants.push_back(std::move(value));
}

}  // namespace

uint64_t Value::bytes() const { return static_cast<uint64_t>(c10::multiply_integers(shape)) * c10::elementSize(dtype); }

bool Model::saturates() const { return soc.rfind("Ascend310P", 0) == 0 || soc.rfind("Ascend910A", 0) == 0; }

std::unique_ptr<Model> decode(const unsigned char *programs, size_t size, const unsigned char *constants,
                              size_t constants_size) {
    Cursor in(programs, size);
    const auto format = in.get<uint32_t>();
    if (format != kFormat) {
        refuse("its format is " + std::to_string(format) + ", and this cann_sim reads " + std::to_string(kFormat));
    }
    auto model = std::make_unique<Model>();
    for (std::string *text : {&model->name, &model->soc, &model->command, &model->gears}) {
        *text = in.text();
    }
    model->opset = in.get<uint32_t>();
    for (size_t left = 2 * in.count(8); left > 0; --left) {
        model->metadata.push_back(in.text());
    }
    model->inputs = read_values(in, -1);
    model->outputs = read_values(in);
    model->aipp = in.list(19, [&] { return read_aipp(in); });
    for (size_t left = in.count(17); left > 0; --left) {
        read_constant(in, *model, constants, constants_size);
    }
    model->programs = in.list(24, [&] { return read_program(in, *model); });
    if (model->programs.empty()) {
        refuse("it holds no program");
    }
    for (const Program &program : model->programs) {
        if (program.inputs.size() != model->inputs.size() || program.outputs.size() != model->outputs.size()) {
            refuse("a program has not the inputs and outputs of the model");
        }
    }
    return model;
}

}  // namespace cann_sim::executor
