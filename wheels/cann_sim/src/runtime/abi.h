// What a library needs to speak CANN's C ABI: its declarations, which are inside the torch_npu wheel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "third_party/acl/inc/acl/acl.h"
#include "third_party/acl/inc/acl/acl_op_compiler.h"
#include "third_party/acl/inc/acl/error_codes/rt_error_codes.h"

#define SIM_API extern "C" __attribute__((visibility("default")))

// How a function of the C ABI ends that could throw (all that call anything): SIM_API aclError f() try { … } SIM_CATCH.
// Its callers are C, or C++ that is not prepared for exceptions: they get a code, null or 0, and aclGetRecentErrMsg has
// what was thrown. tests/unit/test_cann_sim_sources.py finds functions without it.
#define SIM_CATCH                          \
    catch (...) {                          \
        return cann_sim::Thrown(__func__); \
    }
#define SIM_CATCH_VOID              \
    catch (...) {                   \
        cann_sim::Thrown{__func__}; \
    }

namespace cann_sim {

// What is being handled in a catch clause, as the result of `function`.
class __attribute__((visibility("default"))) Thrown {
public:
    explicit Thrown(const char *function);

    template <typename Result>
    operator Result() const {
        if constexpr (std::is_same_v<Result, aclError>) {
            return code_;
        } else {
            return Result{};
        }
    }

private:
    aclError code_;
};

// The N-th parameter's type as torch_npu's own headers declare it, where those of its versions differ (C linkage: the
// names of enumerations, and const, make no difference to the callers).
template <size_t N, typename Function>
struct ParameterOf;
template <size_t N, typename Result, typename... Parameters>
struct ParameterOf<N, Result(Parameters...)> {
    using type = std::tuple_element_t<N, std::tuple<Parameters...>>;
};
template <size_t N, typename Function>
using Parameter = typename ParameterOf<N, Function>::type;

}  // namespace cann_sim
