"""A schedule for COCO becomes one for the images that are here, however few."""

from __future__ import annotations

import pytest
import torch
from blendmask import recipe
from blendmask.config import load
from blendmask.launch import CONFIGS


@pytest.mark.parametrize("pictures", [1, 16, 17, 33, 49, 65, 81, 97, 160, 1000])
@pytest.mark.parametrize("model", ["blendmask-r50", "blendmask-tiny"])
def test_a_training_of_any_length_has_a_learning_rate_for_each_step(model: str, pictures: int) -> None:
    """detectron2 refuses a schedule that drops twice at one step, or at the end."""
    cfg, _ = load(CONFIGS / f"{model}.yaml")
    plan = recipe.fit(cfg, pictures, ranks=1, epochs=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    schedule = recipe.Schedule(cfg, optimizer)
    rates = [schedule.set(step, optimizer) for step in range(plan.steps)]
    assert 0 < max(rates) <= plan.lr * (1 + 1e-9)
    assert min(rates) > 0


def test_the_published_schedule_stays_what_it_is() -> None:
    cfg, _ = load(CONFIGS / "blendmask-r50.yaml")
    recipe.fit(cfg, cfg.RECIPE.PICTURES, ranks=8)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((210_000, 250_000), 270_000)
