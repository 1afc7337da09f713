"""Device memory in the log: mmengine 0.10 reads it from CUDA only."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.device import is_npu_available
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class DeviceMemoryHook(Hook):
    """Log the peak memory of tensors on this rank's NPU so far, as `memory`, in MiB."""

    priority = "NORMAL"  # before the logger, which is below

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Log the allocator's peak, which costs no synchronisation."""
        if is_npu_available():
            runner.message_hub.update_scalar("train/memory", torch.npu.max_memory_allocated() / 2**20)
