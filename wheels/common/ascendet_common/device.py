"""The NPU of this process, if it has one."""

from __future__ import annotations

import torch


def has_npu() -> bool:
    """Return whether torch has an NPU here; False too where torch_npu is not loaded."""
    return hasattr(torch, "npu") and bool(torch.npu.is_available())


def synchronize() -> None:
    """Wait until the NPU has done all that was launched on it; without one there is nothing to wait for."""
    if has_npu():
        torch.npu.synchronize()
