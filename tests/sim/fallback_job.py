"""Call NMS and RoIAlign with gradients under the gate, without the NPU kernels that TAKE_AWAY names."""

from __future__ import annotations

import os

import ascendet_npu_ops
import torch
import torchvision
from ascendet_common import fallback
from ascendet_common.errors import forget, reporting


def take_away(names: list[str]) -> None:
    """Leave operators to torch_npu's CPU fallback, as if the wheel did not have them."""
    for name, library in zip(list(ascendet_npu_ops._KERNELS), ascendet_npu_ops._libraries, strict=True):
        if name in names:
            library._destroy()


def main() -> None:
    """Work as one of our programs does."""
    take_away(os.environ.get("TAKE_AWAY", "").split())
    forget()
    with reporting():
        watch = fallback.watch()
        features = torch.randn(1, 2, 16, 16).npu().requires_grad_()
        rois = torch.tensor([[0.0, 1.0, 1.0, 9.0, 9.0]]).npu()
        for _ in range(2):
            kept = torchvision.ops.nms(rois[:, 1:], rois[:, 0], 0.5)
        torchvision.ops.roi_align(features, rois, 4).sum().backward()
        assert features.grad is not None
        print("kept", kept.tolist(), "gradient", round(float(features.grad.sum()), 3))
        print("found", sorted(watch.found.items()) if watch else None)


if __name__ == "__main__":
    main()
