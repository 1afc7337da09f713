"""Counts for test_waits.py what BlendMask asks of an NPU, at the goldens' size: python waits_job.py OUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blendmask
import torch
import torch_npu  # noqa: F401  registers the device
from blendmask.config import load
from blendmask.model import BlendMask
from blendmask_goldens import fill_model, sample
from cann_sim import counters

STEPS = 6
CONFIG = Path(blendmask.__file__).parent / "configs" / "blendmask-r50.yaml"


def count(step: Callable[[int], object]) -> dict[str, Any]:
    """The counters of some steps."""
    torch.npu.synchronize()
    counters.start()
    for number in range(STEPS):
        step(number)
        counters.step()
    counters.stop()
    return counters.snapshot()


def main() -> None:
    device = torch.device("npu:0")
    model = BlendMask(load(CONFIG)[0])
    fill_model(model)
    model.to(device)
    results = {"inference": count(lambda _: model.eval()([sample(0)]))}
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    # The same sizes; which objects there are goes from step to step.
    objects = [(False, False), (False, True), (True, True), (False, False), (True, False), (False, True)]

    def train(number: int) -> None:
        losses = model.train()([sample(one, empty=empty) for one, empty in enumerate(objects[number])])
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    results["training"] = count(train)
    Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
