"""Losses and launches of torchvision's detectors, for test_level_models.py: python level_job.py OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch_npu  # noqa: F401  # registers the device
from cann_sim import counters
from torchvision.models import detection

SIZE = 96


def make(name: str) -> torch.nn.Module:
    """Return a detector without pretrained weights, the same in every process."""
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(detection, name)(
        weights=None, weights_backbone=None, min_size=SIZE, max_size=SIZE, num_classes=5
    )
    return model.npu()


def targets() -> list[dict[str, torch.Tensor]]:
    """Return two images' objects: three boxes and none."""
    boxes = torch.tensor([[5.0, 8, 40, 50], [30, 30, 90, 80], [10, 60, 30, 90]])
    return [
        {"boxes": boxes.npu(), "labels": torch.tensor([1, 2, 4]).npu()},
        {"boxes": boxes[:0].npu(), "labels": torch.tensor([], dtype=torch.long).npu()},
    ]


def counted(step: Any) -> dict[str, Any]:
    """Run a step and return its value and what it launched."""
    counters.start()
    value = step()
    launches = counters.snapshot()["launches"]
    counters.stop()
    return {"value": value, "launches": launches}


def train(name: str) -> dict[str, Any]:
    """Count one step of training; the value is the loss after a step of SGD."""
    model = make(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    images = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i)).npu() for i in range(2)]

    def step() -> float:
        for _ in range(2):
            loss = sum(model(images, targets()).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss)

    return counted(step)


def infer(name: str) -> dict[str, Any]:
    """Count one inference; the value is the sum of all scores and boxes."""
    model = make(name).eval()
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).npu()
    with torch.no_grad():
        return counted(
            lambda: [float(part[key].sum()) for part in model([image]) for key in ("scores", "boxes")]
        )


if __name__ == "__main__":
    results = {
        "fcos, training": train("fcos_resnet50_fpn"),
        "retinanet, training": train("retinanet_resnet50_fpn"),
        "mask r-cnn, inference": infer("maskrcnn_resnet50_fpn"),
    }
    Path(sys.argv[1]).write_text(json.dumps(results))
