// Errors of the simulated HCCL: one exception type inside the library, HCCL's result codes and its EIxxxx
// report on standard error at the C boundary.
#pragma once

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "third_party/hccl/inc/hccl/hccl_types.h"

namespace cann_sim::hccl {

// The numbers under which the real library files its reports (the ones users search for).
inline constexpr const char *kBadEnvironment = "EI0001";
inline constexpr const char *kExecTimeout = "EI0002";
inline constexpr const char *kBadArgument = "EI0003";
inline constexpr const char *kRanksDisagree = "EI0005";
inline constexpr const char *kConnectTimeout = "EI0006";
inline constexpr const char *kResource = "EI0007";
inline constexpr const char *kRemote = "EI0013";
inline constexpr const char *kPortInUse = "EI0019";  // EJ0003 in older ones

class Error : public std::runtime_error {
public:
    Error(HcclResult result, const char *number, const std::string &what)
        : std::runtime_error(what), result_(result), number_(number) {}
    HcclResult result() const { return result_; }
    const char *number() const { return number_; }

private:
    HcclResult result_;
    const char *number_;
};

// Writes one report to standard error and, if libascendcl is loaded, into what aclGetRecentErrMsg returns.
void report(const Error &error, const char *function);

const char *result_text(HcclResult result);

// Time limits of one communicator, read when it is made: tests and users set them per run.
struct Settings {
    std::chrono::seconds connect_timeout;
    std::chrono::seconds exec_timeout;  // 0: wait for ever, as on Atlas A2/A3
    bool shared_memory;                 // ranks of one host may read each other's buffers directly
    int base_port;                      // a root listens here, plus its device's physical id

    static Settings from_environment();
};

}  // namespace cann_sim::hccl
