// Work on several threads without OpenMP, whose library would be a second one beside libtorch's own.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace cann_sim::executor {

// Calls work(first, last) for parts of [0, count), on as many threads as ATen's kernels use here; `work` must not throw.
template <typename Work>
void in_parallel(int64_t count, Work work) {
    const int64_t parts = std::min<int64_t>(at::get_num_threads(), count);
    std::vector<std::thread> threads;
    for (int64_t part = 1; part < parts; ++part) {
        threads.emplace_back([=] { work(count * part / parts, count * (part + 1) / parts); });
    }
    work(int64_t{0}, count / std::max<int64_t>(parts, 1));
    for (std::thread &thread : threads) {
        thread.join();
    }
}

}  // namespace cann_sim::executor
