"""Whole detectors on NPUs without a CPU fallback: torchvision's Mask R-CNN, RetinaNet and FCOS, with random weights."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

Make = Callable[..., nn.Module]
SMALL = {"weights": None, "weights_backbone": None, "num_classes": 7, "min_size": 128, "max_size": 160}
FEW = {"score_thresh": 0.0, "topk_candidates": 200, "detections_per_img": 30}
REGIONS = {
    "rpn_pre_nms_top_n_train": 300,
    "rpn_post_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 300,
    "rpn_batch_size_per_image": 20000,
    "box_batch_size_per_image": 2000,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 20,
}
MAKERS: dict[str, Make] = {
    "maskrcnn": lambda: detection.maskrcnn_resnet50_fpn(**SMALL, **REGIONS),
    "retinanet": lambda: detection.retinanet_resnet50_fpn(**SMALL, **FEW),
    "fcos": lambda: detection.fcos_resnet50_fpn(**SMALL, **FEW),
}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MAKERS[request.param]()


def pictures() -> list[Tensor]:
    return [torch.rand(3, 128, 150), torch.rand(3, 120, 160)]


def targets() -> list[dict[str, Tensor]]:
    """Three objects and none: pictures without objects are among everybody's."""
    boxes = torch.tensor([[10.0, 12.0, 70.0, 80.0], [40.0, 30.0, 140.0, 120.0], [5.0, 90.0, 30.0, 110.0]])
    masks = torch.zeros(3, 128, 150, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 3, 6]), "masks": masks},
        {
            "boxes": torch.empty(0, 4),
            "labels": torch.empty(0, dtype=torch.int64),
            "masks": torch.empty(0, 120, 160, dtype=torch.uint8),
        },
    ]


def to(device: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: to(device, item) for name, item in value.items()}
    return [to(device, item) for item in value]


def counted(call: Callable[[], Any]) -> Any:
    """Return what `call` returns; on cann_sim no operator of it may be computed on the CPU."""
    if "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""):
        return call()
    from cann_sim import counters

    counters.start()
    result = call()
    counters.stop()
    assert counters.snapshot()["cpu_fallbacks"] == {}
    return result


def test_detections_are_the_cpu_s(model: nn.Module) -> None:
    model.eval()
    images = pictures()
    with torch.no_grad():
        expected = model(images)
        on_npu = copy.deepcopy(model).npu()
        found = counted(lambda: on_npu(to("npu", images)))
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs["boxes"].size(0) > 5
        for name, value in theirs.items():
            torch.testing.assert_close(
                mine[name].cpu(), value, rtol=1e-4, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_losses_and_gradients_are_the_cpu_s(model: nn.Module) -> None:
    """Every anchor and proposal is sampled, so that no random choice lies between the two devices."""
    model.train()
    images, truths = pictures(), targets()
    on_npu = copy.deepcopy(model).npu()
    expected = model(images, targets())
    sum(expected.values()).backward()

    def step() -> dict[str, Tensor]:
        losses: dict[str, Tensor] = on_npu(to("npu", images), to("npu", truths))
        sum(losses.values()).backward()
        return losses

    found = counted(step)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].detach().cpu(), value.detach(), rtol=1e-4, atol=1e-5)
    for (name, mine), theirs in zip(on_npu.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            assert mine.grad is not None, name
            norm = float(theirs.grad.norm())
            assert float((mine.grad.cpu() - theirs.grad).norm()) <= 1e-3 * norm + 1e-6, name
