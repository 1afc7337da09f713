// libfmk_onnx_parser.so: GE's functions that turn an ONNX model into an OM within a program (onnxruntime's CANN execution
// provider): the tree's atc does it, as a process of its own.

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/abi.h"
#include "third_party/acl/inc/graph/graph.h"

extern char **environ;

#define GE_API __attribute__((visibility("default")))
// How a function of GE ends that could throw: its callers get a code only.
#define GE_CATCH             \
    catch (...) {            \
        return GRAPH_FAILED; \
    }

namespace ge {

// What the headers of torch_npu declare and leave open: a graph is the ONNX model as it came.
class GraphImpl {
public:
    std::string name, onnx;
};

// The friend of Graph.
class GraphUtils {
public:
    static GraphImplPtr &model(Graph &graph) { return graph.impl_; }
    static const GraphImplPtr &model(const Graph &graph) { return graph.impl_; }
};

struct ModelBufferData {
    std::shared_ptr<uint8_t> data;
    uint64_t length;
};

using Options = std::map<AscendString, AscendString>;

GE_API AscendString::AscendString(const char *text) : name_(text == nullptr ? nullptr : new std::string(text)) {}
GE_API const char *AscendString::GetString() const { return name_ == nullptr ? "" : name_->c_str(); }
GE_API bool AscendString::operator<(const AscendString &other) const {
    return std::strcmp(GetString(), other.GetString()) < 0;
}

GE_API Graph::Graph(const char *name) : impl_(std::make_shared<GraphImpl>()) {
    impl_->name = name == nullptr ? "" : name;
}

namespace {

Options &global_options() {
    static Options options;
    return options;
}

// ATC's name of an option of GE, empty for one that says nothing about a conversion here.
std::string atc_name(const std::string &option) {
    static const std::map<std::string, std::string> names = {
        {"ge.socVersion", "soc_version"},
        {"ge.exec.precision_mode", "precision_mode"},
        {"ge.exec.precision_mode_v2", "precision_mode_v2"},
        {"ge.exec.modify_mixlist", "modify_mixlist"},
        {"ge.exec.op_precision_mode", "op_precision_mode"},
        {"ge.opSelectImplmode", "op_select_implmode"},
        {"ge.optypelistForImplmode", "optypelist_for_implmode"},
        {"ge.outputDatatype", "output_type"},
        {"ge.insertOpFile", "insert_op_conf"},
    };
    const auto found = names.find(option);
    if (found != names.end()) {
        return found->second;
    }
    return option.compare(0, 3, "ge.") == 0 ? "" : option;  // options of one build have ATC's names
}

// A folder that is gone at the end.
class Folder {
public:
    Folder() {
        std::string pattern = std::string(P_tmpdir) + "/cann_sim.XXXXXX";
        if (mkdtemp(pattern.data()) != nullptr) {
            path_ = pattern;
        }
    }
    ~Folder() {
        for (const char *name : {"/model.onnx", "/model.om", "/atc.log"}) {
            unlink((path_ + name).c_str());
        }
        rmdir(path_.c_str());
    }
    Folder(const Folder &) = delete;
    Folder &operator=(const Folder &) = delete;

    const std::string &path() const { return path_; }

private:
    std::string path_;
};

// <tree>/bin/atc, from <tree>/lib64/libfmk_onnx_parser.so.
std::string atc() {
    Dl_info info{};
    dladdr(reinterpret_cast<void *>(&atc_name), &info);
    const std::string library = info.dli_fname == nullptr ? "" : info.dli_fname;
    return library.substr(0, library.rfind('/') + 1) + "../bin/atc";
}

// Runs a command with its output in a file; -1 where it did not start.
int run(std::vector<std::string> words, const std::string &output) {
    std::vector<char *> arguments;
    for (std::string &word : words) {
        arguments.push_back(word.data());
    }
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
    pid_t child = 0;
    const int failed = posix_spawn(&child, arguments[0], &files, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    int status = 0;
    if (failed != 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        return -1;
    }
    return WEXITSTATUS(status);
}

std::string content(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

GE_API graphStatus aclgrphBuildInitialize(Options &options) try {
    global_options() = options;
    return GRAPH_SUCCESS;
}
GE_CATCH

GE_API void aclgrphBuildFinalize() try { global_options().clear(); } catch (...) {
}

GE_API graphStatus aclgrphParseONNXFromMem(const char *data, size_t size, const Options &, Graph &graph) try {
    if (data == nullptr || size == 0) {
        return GRAPH_PARAM_INVALID;
    }
    GraphImplPtr &model = GraphUtils::model(graph);
    if (model == nullptr) {
        model = std::make_shared<GraphImpl>();
    }
    model->onnx.assign(data, size);
    return GRAPH_SUCCESS;
}
GE_CATCH

GE_API graphStatus aclgrphBuildModel(const Graph &graph, const Options &options, ModelBufferData &result) try {
    const GraphImplPtr &model = GraphUtils::model(graph);
    const Folder folder;
    if (model == nullptr || model->onnx.empty() || folder.path().empty()) {
        return GRAPH_PARAM_INVALID;
    }
    std::ofstream(folder.path() + "/model.onnx", std::ios::binary) << model->onnx;
    Options all = options;
    all.insert(global_options().begin(), global_options().end());
    std::vector<std::string> words = {atc(), "--framework=5", "--model=" + folder.path() + "/model.onnx",
                                      "--output=" + folder.path() + "/model"};
    bool has_soc = false;
    for (const auto &[name, value] : all) {
        const std::string option = atc_name(name.GetString());
        has_soc = has_soc || option == "soc_version";
        if (!option.empty() && *value.GetString() != '\0') {
            words.push_back("--" + option + "=" + value.GetString());
        }
    }
    if (!has_soc) {
        words.push_back(std::string("--soc_version=") + aclrtGetSocName());
    }
    if (run(words, folder.path() + "/atc.log") != 0) {
        std::fprintf(stderr, "%s\n", content(folder.path() + "/atc.log").c_str());
        return GRAPH_FAILED;
    }
    const std::string om = content(folder.path() + "/model.om");
    result.data = std::shared_ptr<uint8_t>(new uint8_t[om.size()], std::default_delete<uint8_t[]>());
    std::memcpy(result.data.get(), om.data(), om.size());
    result.length = om.size();
    return om.empty() ? GRAPH_FAILED : GRAPH_SUCCESS;
}
GE_CATCH

GE_API graphStatus aclgrphSaveModel(const char *name, const ModelBufferData &model) try {
    std::ofstream file(std::string(name) + ".om", std::ios::binary);
    file.write(reinterpret_cast<const char *>(model.data.get()), static_cast<std::streamsize>(model.length));
    return file ? GRAPH_SUCCESS : GRAPH_FAILED;
}
GE_CATCH

}  // namespace ge
