"""Smoke test of an installed NPU build of mmcv: import it, and compare nms and RoIAlign on the NPU with the CPU.

Run by `make mmcv-wheel` in the stack's environment, on real NPUs or on cann_sim; prints one line per check.
"""

from __future__ import annotations

import torch
import torch_npu
from mmcv import _ext
from mmcv.ops import nms, roi_align

SEED = 20251121


def main() -> None:
    """Run every check; an assertion that fails ends the process with its message."""
    print(
        f"mmcv._ext: {_ext.get_compiler_version()}, torch {torch.__version__}, torch_npu {torch_npu.__version__}"
    )
    check_nms()
    check_roi_align()


def check_nms() -> None:
    """Check that nms of 500 overlapping boxes keeps the same boxes on both devices, in the same order."""
    random = torch.Generator().manual_seed(SEED)
    corners = torch.rand(500, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + 5 + torch.rand(500, 2, generator=random) * 40], dim=1)
    scores = torch.rand(500, generator=random) + 0.01  # the NPU kernel drops scores that are not positive
    expected, kept = nms(boxes, scores, iou_threshold=0.5)
    found, indices = nms(boxes.npu(), scores.npu(), iou_threshold=0.5)
    assert 10 < len(kept) < 490, f"{len(kept)} of 500 boxes kept: the test would not notice a wrong threshold"
    assert torch.equal(indices.cpu(), kept), "nms keeps other boxes than on the CPU"
    assert torch.equal(found.cpu(), expected), "nms returns other boxes than on the CPU"
    print(f"nms: {len(kept)} of 500 boxes kept, as on the CPU")


def check_roi_align() -> None:
    """Check that RoIAlign's output and the gradient of its input differ by less than 1e-4 (values are around 1)."""
    random = torch.Generator().manual_seed(SEED)
    features = torch.randn(2, 16, 32, 40, generator=random)
    corners = torch.rand(64, 2, generator=random) * torch.tensor([120.0, 90.0])
    sizes = 4 + torch.rand(64, 2, generator=random) * 30
    image = torch.randint(2, (64, 1), generator=random).float()
    rois = torch.cat([image, corners, corners + sizes], dim=1)
    weight = torch.randn(64, 16, 7, 7, generator=random)
    results = {}
    for device in ("cpu", "npu"):
        inputs = features.clone().to(device).requires_grad_()
        output = roi_align(inputs, rois.to(device), 7, 0.25, 2, "avg", True)
        (output * weight.to(device)).sum().backward()
        assert inputs.grad is not None
        results[device] = (output.detach().cpu(), inputs.grad.cpu())
    for what, expected, found in zip(("output", "gradient"), results["cpu"], results["npu"], strict=True):
        error = float((expected - found).abs().max())
        assert expected.abs().max() > 0.1, f"RoIAlign's {what} is all but zero: the test would not notice"
        assert error < 1e-4, f"RoIAlign's {what} differs from the CPU's by {error}"
        print(f"RoIAlign {what}: differs from the CPU's by at most {error:.1e}")


if __name__ == "__main__":
    main()
