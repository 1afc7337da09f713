// libascendcl.so: switches the counters on and off and writes their file.

#include "runtime/counting.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/counters.h"
#include "runtime/faults.h"
#include "runtime/launches.h"
#include "runtime/memory.h"
#include "runtime/state.h"

namespace cann_sim {

namespace {

std::string output;  // file of CANN_SIM_COUNTERS
pid_t owner = 0;     // the process that writes it; not one forked from it

// %p becomes the process id; without it a rank of a distributed job puts ".rank<R>" before the extension.
std::string output_name(std::string name) {
    const size_t place = name.find("%p");
    if (place != std::string::npos) {
        return name.replace(place, 2, std::to_string(getpid()));
    }
    const char *rank = std::getenv("RANK");
    if (rank == nullptr || *rank == '\0') {
        return name;
    }
    const size_t base = name.rfind('/') == std::string::npos ? 0 : name.rfind('/') + 1;
    const size_t dot = name.rfind('.');
    return name.insert(dot == std::string::npos || dot <= base ? name.size() : dot, std::string(".rank") + rank);
}

void write_output() {
    if (output.empty() || owner != getpid()) {
        return;
    }
    FILE *file = std::fopen(output.c_str(), "w");
    const std::string text = counters_json();
    const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
    if ((file != nullptr && std::fclose(file) != 0) || !written) {
        std::fprintf(stderr, "error[cann-sim-counters]: %s cannot be written: %s\n", output.c_str(),
                     std::strerror(errno));
    }
    output.clear();
}

}  // namespace

void start_counters_from_environment() {
    const char *name = std::getenv("CANN_SIM_COUNTERS");
    if (name == nullptr || *name == '\0') {
        return;
    }
    output = output_name(name);
    owner = getpid();
    std::atexit(write_output);
    cann_sim_counters_start();
}

}  // namespace cann_sim

SIM_API void cann_sim_counters_start() try {
    cann_sim::finish_queued();
    cann_sim::reset_counters();
    cann_sim::count_held_blocks();
    cann_sim::counters_on = true;
    cann_sim::watch_launches(cann_sim::Watcher::kCounters, true);
}
SIM_CATCH_VOID

SIM_API void cann_sim_counters_stop() try {
    cann_sim::finish_queued();
    cann_sim::counters_on = false;
    cann_sim::watch_launches(cann_sim::Watcher::kCounters, false);
}
SIM_CATCH_VOID

SIM_API void cann_sim_counters_step() try {
    cann_sim::finish_queued();
    cann_sim::begin_step();
}
SIM_CATCH_VOID

SIM_API size_t cann_sim_counters_snapshot(char *text, size_t size) try {
    cann_sim::finish_queued();
    const std::string json = cann_sim::counters_json();
    if (json.size() < size) {
        std::memcpy(text, json.c_str(), json.size() + 1);
    }
    return json.size();
}
SIM_CATCH

SIM_API void cann_sim_count_hccl(const char *op, uint64_t bytes) try {
    cann_sim::delay_link(cann_sim::current_device(), bytes);
    if (cann_sim::counting()) {
        cann_sim::count_collective(op, bytes);
    }
}
SIM_CATCH_VOID
