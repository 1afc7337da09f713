// executor.h's functions: codes and messages around reader and run.

#include "pch.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <new>
#include <string>

#include <time.h>

#include "executor/arena.h"
#include "executor/executor.h"
#include "executor/operations.h"
#include "executor/reader.h"
#include "executor/run.h"

using namespace cann_sim::executor;

// The loaded model and its description, whose pointers lead into the model.
struct cann_sim_executor_model {
    std::unique_ptr<Model> model;
    cann_sim_executor_info info = {};
    std::vector<cann_sim_executor_tensor> inputs, outputs;
    std::vector<cann_sim_executor_gear> gears;
    std::vector<cann_sim_executor_aipp> aipp;
    std::vector<const char *> metadata;
    std::deque<Value> pictures;  // of inputs with AIPP; a deque, as others point into it
    std::deque<std::vector<cann_sim_executor_tensor>> tensors;
    mutable Arenas arenas;
};

namespace {

cann_sim_executor_tensor describe_value(const Value &value) {
    return {value.name.c_str(), acl_type(value.dtype), static_cast<uint32_t>(value.shape.size()), value.shape.data(),
            value.bytes()};
}

uint64_t total(const cann_sim_executor_tensor *tensors, size_t count) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < count; ++i) {
        bytes += tensors[i].size;
    }
    return bytes;
}

int32_t gear_kind(const std::string &name) {
    if (name.empty()) {
        return CANN_SIM_EXECUTOR_STATIC;
    }
    using Kind = std::pair<const char *, cann_sim_executor_gear_kind>;
    for (const auto &[known, kind] : {Kind{"batch", CANN_SIM_EXECUTOR_BATCH}, Kind{"image", CANN_SIM_EXECUTOR_IMAGE},
                                      Kind{"dims", CANN_SIM_EXECUTOR_DIMS}}) {
        if (name == known) {
            return kind;
        }
    }
    throw Failure(CANN_SIM_EXECUTOR_BAD_FILE, "it has gears of the unknown kind " + name);
}

// The time of this model in CANN_SIM_MODEL_MS ("backbone:157.7,rpn:1.2"), negative if it is not in there.
double set_milliseconds(const std::string &name) {
    const char *setting = std::getenv("CANN_SIM_MODEL_MS");
    std::string left = setting == nullptr ? "" : setting;
    while (!left.empty()) {
        const size_t comma = left.find(',');
        const std::string entry = left.substr(0, comma);
        left = comma == std::string::npos ? "" : left.substr(comma + 1);
        const size_t colon = entry.rfind(':');
        char *end = nullptr;
        const double milliseconds = colon == std::string::npos ? -1 : std::strtod(entry.c_str() + colon + 1, &end);
        if (end == nullptr || *end != 0 || end == entry.c_str() + colon + 1 || !(milliseconds >= 0)) {
            throw Failure(CANN_SIM_EXECUTOR_BAD_ARGUMENT,
                          "CANN_SIM_MODEL_MS must be like backbone:157.7,rpn:1.2, not " + std::string(setting));
        }
        if (entry.substr(0, colon) == name) {
            return milliseconds;
        }
    }
    return -1;
}

void describe_gears(cann_sim_executor_model &made) {
    for (const Program &program : made.model->programs) {
        auto &inputs = made.tensors.emplace_back();
        for (const Value &input : program.inputs) {
            if (aipp_of(*made.model, input) == nullptr) {
                inputs.push_back(describe_value(input));
            } else {
                if (input.shape.size() != 4) {
                    throw Failure(CANN_SIM_EXECUTOR_BAD_FILE, "the input " + input.name + " of AIPP is no picture");
                }
                inputs.push_back(describe_value(made.pictures.emplace_back(picture_of(input))));
            }
        }
        auto &outputs = made.tensors.emplace_back();
        for (const Value &output : program.outputs) {
            outputs.push_back(describe_value(output));
        }
        made.gears.push_back({static_cast<uint32_t>(program.gear.size()), program.gear.data(), inputs.data(),
                              outputs.data(), program.work_size, static_cast<uint32_t>(program.operations.size())});
    }
}

void describe_model(cann_sim_executor_model &made) {
    const Model &model = *made.model;
    describe_gears(made);
    const auto larger = [&](const cann_sim_executor_gear &a, const cann_sim_executor_gear &b) {
        return total(a.inputs, model.inputs.size()) < total(b.inputs, model.inputs.size());
    };
    const auto largest = std::max_element(made.gears.begin(), made.gears.end(), larger);
    for (size_t i = 0; i < model.inputs.size(); ++i) {
        const Value &input = model.inputs[i];  // with -1 where gears differ
        const bool picture = aipp_of(model, input) != nullptr && input.dtype != at::kByte;
        made.inputs.push_back(describe_value(picture ? made.pictures.emplace_back(picture_of(input)) : input));
        made.inputs.back().size = largest->inputs[i].size;
    }
    for (size_t i = 0; i < model.outputs.size(); ++i) {
        made.outputs.push_back(describe_value(model.outputs[i]));
        made.outputs.back().size = largest->outputs[i].size;
    }
    for (const Aipp &aipp : model.aipp) {
        const auto place = std::find_if(model.inputs.begin(), model.inputs.end(),
                                        [&](const Value &input) { return input.name == aipp.input; });
        if (place == model.inputs.end()) {
            throw Failure(CANN_SIM_EXECUTOR_BAD_FILE, "AIPP of " + aipp.input + ", which is no input");
        }
        made.aipp.push_back({static_cast<uint32_t>(place - model.inputs.begin()), aipp.height, aipp.width,
                             aipp.channels_swapped, static_cast<uint32_t>(aipp.mean.size()), aipp.mean.data(),
                             aipp.minimum.data(), aipp.reciprocal.data()});
    }
    for (const std::string &text : model.metadata) {
        made.metadata.push_back(text.c_str());
    }
    uint64_t work = 0;
    for (const Program &program : model.programs) {
        work = std::max(work, program.work_size);
    }
    made.info = {model.name.c_str(),
                 model.soc.c_str(),
                 model.command.c_str(),
                 model.opset,
                 static_cast<uint32_t>(model.inputs.size()),
                 static_cast<uint32_t>(model.outputs.size()),
                 made.inputs.data(),
                 made.outputs.data(),
                 gear_kind(model.gears),
                 static_cast<uint32_t>(made.gears.size()),
                 made.gears.data(),
                 static_cast<uint32_t>(largest - made.gears.begin()),
                 work,
                 model.weight_size,
                 static_cast<uint32_t>(made.aipp.size()),
                 made.aipp.data(),
                 static_cast<uint32_t>(made.metadata.size() / 2),
                 made.metadata.data(),
                 set_milliseconds(model.name)};
}

// Runs `action`, and turns what it throws into a code and a message.
template <typename Action>
int guarded(char *message, size_t room, Action action) noexcept {
    const auto say = [&](const char *text) {
        if (message != nullptr && room > 0) {
            std::snprintf(message, room, "%s", text);
        }
    };
    try {
        say("");
        action();
        return CANN_SIM_EXECUTOR_OK;
    } catch (const Failure &failure) {
        say(failure.what());
        return failure.code;
    } catch (const std::bad_alloc &) {
        say("the host's memory is exhausted");
        return CANN_SIM_EXECUTOR_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        say(error.what());
        return CANN_SIM_EXECUTOR_RUN_FAILED;
    } catch (...) {
        say("an exception of an unknown type");
        return CANN_SIM_EXECUTOR_RUN_FAILED;
    }
}

template <typename Read>
int load(cann_sim_executor_model **model, char *message, size_t room, Read read) {
    return guarded(message, room, [&] {
        if (model == nullptr) {
            throw Failure(CANN_SIM_EXECUTOR_BAD_ARGUMENT, "the place for the model is null");
        }
        *model = nullptr;
        const c10::InferenceMode inference;  // as run: its tensors carry no versions for gradients
        auto made = std::make_unique<cann_sim_executor_model>();
        made->model = read();
        describe_model(*made);
        *model = made.release();
    });
}

int load_file(const char *path, cann_sim_executor_model **model, char *message, size_t room) {
    return load(model, message, room, [&] {
        if (path == nullptr) {
            throw Failure(CANN_SIM_EXECUTOR_BAD_ARGUMENT, "the path is null");
        }
        return read_file(path);
    });
}

int load_memory(const void *data, size_t size, cann_sim_executor_model **model, char *message, size_t room) {
    return load(model, message, room, [&] {
        if (data == nullptr) {
            throw Failure(CANN_SIM_EXECUTOR_BAD_ARGUMENT, "the model's memory is null");
        }
        return read_memory(data, size);
    });
}

void unload(cann_sim_executor_model *model) { delete model; }

const cann_sim_executor_info *describe(const cann_sim_executor_model *model) {
    return model == nullptr ? nullptr : &model->info;
}

// Sleeps until `milliseconds` after `begin`, however often a signal wakes it.
void sleep_until(timespec begin, double milliseconds) {
    const auto nanoseconds = static_cast<int64_t>(milliseconds * 1e6) + begin.tv_nsec;
    begin.tv_sec += nanoseconds / 1000000000;
    begin.tv_nsec = nanoseconds % 1000000000;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &begin, nullptr) == EINTR) {
    }
}

int run_gear(const cann_sim_executor_model *model, uint32_t gear, const void *const *inputs,
             const uint64_t *input_sizes, void *const *outputs, const uint64_t *output_sizes,
             cann_sim_executor_observer observer, void *context, char *message, size_t room) {
    timespec begin;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    return guarded(message, room, [&] {
        const auto demand = [](bool holds, const char *rule) {
            if (!holds) {
                throw Failure(CANN_SIM_EXECUTOR_BAD_ARGUMENT, rule);
            }
        };
        demand(model != nullptr, "the model is null");
        demand(gear < model->model->programs.size(), "there is no such gear");
        for (uint32_t i = 0; i < model->info.num_inputs; ++i) {
            demand(inputs[i] != nullptr || input_sizes[i] == 0, "an input's buffer is null");
        }
        for (uint32_t i = 0; i < model->info.num_outputs; ++i) {
            demand(outputs[i] != nullptr || output_sizes[i] == 0, "an output's buffer is null");
        }
        if (model->info.milliseconds >= 0) {
            sleep_until(begin, model->info.milliseconds);
            return;
        }
        const std::shared_ptr<Arena> arena = model->arenas.borrow(gear);
        {
            const InArena memory(arena);
            run(*model->model, model->model->programs[gear], {inputs, input_sizes, outputs, output_sizes},
                {observer, context});
        }
        model->arenas.give_back(arena, gear);
    });
}

const char *operators() { return operator_names().c_str(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const cann_sim_executor_functions *cann_sim_executor_interface() {
    static const cann_sim_executor_functions functions = {load_file, load_memory, unload,
                                                          describe,  run_gear,    operators};
    return &functions;
}
