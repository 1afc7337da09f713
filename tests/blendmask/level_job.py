"""BlendMask's losses, objects and launches on a device, for test_level.py: python level_job.py DEVICE OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blendmask
import torch
import torch_npu  # noqa: F401  # registers the device
from blendmask.config import load
from blendmask.model import BlendMask
from blendmask_goldens import fill_model, sample
from cann_sim import counters

CONFIG = Path(blendmask.__file__).parent / "configs" / "blendmask-r50.yaml"


def counted(step: Callable[[], Any]) -> dict[str, Any]:
    """Run a step and return its value and what it launched."""
    counters.start()
    value = step()
    launches = counters.snapshot()["launches"]
    counters.stop()
    return {"value": value, "launches": launches}


def main(device: str, out: Path) -> None:
    model = BlendMask(load(CONFIG)[0])
    fill_model(model)
    model.to(device)
    optimizer = torch.optim.SGD(
        [value for value in model.parameters() if value.requires_grad], lr=1e-6, momentum=0.9
    )

    def train() -> list[dict[str, float]]:
        found = []
        for empty in (False, True, False):  # the second image has no object in the second step
            losses = model.train()([sample(0), sample(1, empty=empty)])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            found.append({name: value.item() for name, value in losses.items()})
        return found

    def infer() -> list[list[float]]:
        objects = [result["instances"] for result in model.eval()([sample(0), sample(1)])]
        return [
            [float(one.scores.sum()), float(one.pred_boxes.tensor.sum()), float(one.pred_masks.sum())]
            for one in objects
        ]

    out.write_text(json.dumps({"training": counted(train), "inference": counted(infer)}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
