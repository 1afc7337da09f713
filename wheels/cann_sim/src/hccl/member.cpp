#include "hccl/member.h"

#include <sys/random.h>

#include <cerrno>

#include "hccl/error.h"

namespace cann_sim::hccl {

Nonce random_nonce() {
    Nonce nonce{};
    if (getrandom(nonce.data(), sizeof nonce, 0) != sizeof nonce) {
        throw Error(HCCL_E_SYSCALL, kResource, "getrandom: " + reason(errno));
    }
    return nonce;
}

}  // namespace cann_sim::hccl
