// What a library needs to speak CANN's C ABI: its declarations, which are inside the torch_npu wheel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>

#include "third_party/acl/inc/acl/acl.h"
#include "third_party/acl/inc/acl/acl_op_compiler.h"
#include "third_party/acl/inc/acl/error_codes/rt_error_codes.h"

#define SIM_API extern "C" __attribute__((visibility("default")))

namespace cann_sim {

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
