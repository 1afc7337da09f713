#include "compute/levels.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace cann_sim {

namespace {

enum class Choice { kAten, kAclnn, kAll };

Choice chosen() {
    static const Choice choice = [] {
        const char *value = std::getenv("CANN_SIM_LEVEL");
        if (value == nullptr || *value == '\0' || std::strcmp(value, "aclnn") == 0) {
            return Choice::kAclnn;
        }
        if (std::strcmp(value, "aten") == 0) {
            return Choice::kAten;
        }
        if (std::strcmp(value, "all") == 0) {
            return Choice::kAll;
        }
        std::fprintf(stderr,
                     "error[cann-sim-config]: CANN_SIM_LEVEL=%s is no level\n"
                     "  expected: aclnn (torch_npu's own kernels where they pass), aten (the CPU's) or all\n"
                     "  next:     unset CANN_SIM_LEVEL\n",
                     value);
        std::exit(90);
    }();
    return choice;
}

}  // namespace

bool at_level_aclnn(const std::string &op) {
    if (chosen() == Choice::kAten) {
        return false;
    }
    const auto found = ready_operators().find(op);
    return found != ready_operators().end() && (found->second.calls == Held::kNone || chosen() == Choice::kAll);
}

std::string held_argument(const std::string &op) {
    const auto found = ready_operators().find(op);
    return found != ready_operators().end() && chosen() == Choice::kAclnn ? found->second.argument : "";
}

}  // namespace cann_sim

SIM_API int cann_sim_level(const char *op) try {
    const auto found = cann_sim::ready_operators().find(op);
    if (found == cann_sim::ready_operators().end()) {
        return 0;
    }
    switch (found->second.calls) {
        case cann_sim::Held::kNone: return 1;
        case cann_sim::Held::kSome: return 3;
        default: return 2;
    }
}
SIM_CATCH
