// torch_npu's task queue ends with the first operator that fails on it. The error is raised once; what is queued
// afterwards is dropped without a word, and results of later operators by ACL name would be unwritten memory.
#pragma once

#include <string>

namespace cann_sim {

// An operator failed with `message`; noted if it did so on the queue's thread.
void remember_queue_failure(const std::string &message);

// Throws if this process is a fork of one that used a device: it has no queue and no device.
void check_fork();

// What failed on the queue's thread, or that this process is such a fork, and what that means; empty if nothing did.
std::string queue_failure();

// Throws queue_failure.
void check_task_queue();

}  // namespace cann_sim
