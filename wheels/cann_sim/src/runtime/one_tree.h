// Refuses a process that mixes two CANN trees: every library of ours checks, when it is loaded, that what else is
// loaded under CANN's names lies beside it. Included by one source of each library.
#pragma once

#include <dlfcn.h>
#include <link.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct OneTree {
    char folder[PATH_MAX] = "";  // of this library, symbolic links resolved

    static bool folder_of(const char *library, char *result) {
        if (realpath(library, result) == nullptr) {
            return false;
        }
        *std::strrchr(result, '/') = '\0';
        return true;
    }

    OneTree() {
        Dl_info info{};
        if (dladdr(this, &info) != 0 && folder_of(info.dli_fname, folder)) {
            dl_iterate_phdr(&OneTree::check, this);
        }
    }

    static int check(dl_phdr_info *loaded, size_t, void *self) {
        static const char *const kNames[] = {"libascendcl.so",  "libacl_op_compiler.so", "libhccl.so",
                                             "libge_runner.so", "libgraph.so",           "libacl_tdt_channel.so",
                                             "libopapi.so",     "libmsprofiler.so",      "libruntime.so"};
        const char *ours = static_cast<OneTree *>(self)->folder;
        const char *slash = std::strrchr(loaded->dlpi_name, '/');
        char theirs[PATH_MAX];
        for (const char *name : kNames) {
            if (slash != nullptr && std::strcmp(slash + 1, name) == 0 && folder_of(loaded->dlpi_name, theirs) &&
                std::strcmp(theirs, ours) != 0) {
                std::fprintf(
                    stderr,
                    "error[cann-sim-mixed-trees]: this process loaded libraries of two CANN trees\n"
                    "  expected: all of them from one\n"
                    "  found:    cann_sim in %s\n            %s in %s\n"
                    "  next:     for the simulated NPU take the other tree off LD_LIBRARY_PATH (in a new shell:"
                    " eval \"$(python -m cann_sim env)\");\n"
                    "            for a real one take %s off it\n",
                    ours, name, theirs, ours);
                std::fflush(stderr);
                _exit(90);
            }
        }
        return 0;
    }
};

const OneTree one_tree;

}  // namespace
