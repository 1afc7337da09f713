// aclnn functions of optimizers and of the scale of their losses.

#include "pch.h"

#include "aclnn/adapter.h"

namespace cann_sim {

namespace {

// (parameter, first moment, second moment, its largest?, gradient, step, rate, beta1, beta2, decay, epsilon, amsgrad?,
// maximize?): the kernel adds 1 to the step, so torch_npu passes the one before.
void adamw(const Value *v) {
    // The CPU's kernel walks over memory.
    std::array<at::Tensor, 4> given, used;
    for (size_t i = 0; i < given.size(); ++i) {
        given[i] = tensor(v[i]);
        used[i] = given[i].defined() ? given[i].contiguous() : given[i];
    }
    const bool amsgrad = v[11].i != 0;
    TORCH_CHECK(!amsgrad || used[3].defined(), "maxGradNormOptionalRef is a null pointer, and amsgrad needs it");
    const std::vector<at::Tensor> largest = amsgrad ? std::vector<at::Tensor>{used[3]} : std::vector<at::Tensor>();
    at::_fused_adamw_({used[0]}, {tensor(v[4]).contiguous()}, {used[1]}, {used[2]}, largest,
                      {tensor(v[5]).to(at::kFloat) + 1}, v[6].d, v[7].d, v[8].d, v[9].d, v[10].d, amsgrad,
                      v[12].i != 0);
    for (size_t i = 0; i < given.size(); ++i) {
        if (!used[i].is_same(given[i])) {
            given[i].copy_(used[i]);
        }
    }
}

// (scale, steps since it changed, found inf, growth, backoff, interval, new scale, new steps)
void update_scale(const Value *v) {
    at::Tensor scale = tensor(v[0]).clone(), steps = tensor(v[1]).clone();
    at::_amp_update_scale_(scale, steps, tensor(v[2]), v[3].d, v[4].d, v[5].i);
    write(v[6], scale);
    write(v[7], steps);
}

const ComputationRegistration registered{
    {"aclnnApplyAdamWV2", adamw},
    {"aclnnAmpUpdateScale", update_scale},
};

}  // namespace

}  // namespace cann_sim
