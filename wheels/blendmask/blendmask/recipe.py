"""A training's schedule: stated for a data set and a batch, and made that of the images and devices that are here.

A configuration states its schedule in steps of `SOLVER.IMS_PER_BATCH` images, for a data set of `RECIPE.PICTURES`
images. A step is an optimizer's, of all ranks and of the batches that it accumulates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ascendet_common.recipe import Batch, choose_batch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler, get_default_optimizer_params
from torch import nn

# Warm-up, and what lies between two validations or checkpoints, take at most this part of a training.
_PART = 5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A schedule in steps.

    batch
        How the ranks make a step's images.
    epochs
        Passes over the data set, as far as whole steps make them.
    steps
        How many there are.
    validate, save
        Steps between two validations, and between two checkpoints; both also come at the end.
    lr
        The learning rate that the schedule starts from, after warm-up.
    """

    batch: Batch
    epochs: float
    steps: int
    validate: int
    save: int
    lr: float

    def __str__(self) -> str:
        """One line for people."""
        return str(self.batch)


def fit(
    cfg: CfgNode, pictures: int, ranks: int, *, epochs: int | None = None, lr: float | None = None
) -> Recipe:
    """Change a configuration's SOLVER to the data set and the ranks that are here, and return what is made of it.

    The end and the drops of the learning rate move in proportion. Warm-up and intervals stay, unless they would be more
    than a fifth of a short training. For the pictures and the batch that are stated, nothing changes.

    Parameters
    ----------
    cfg
        Its SOLVER and TEST.EVAL_PERIOD are changed.
    pictures
        How many the training takes.
    ranks
        How many devices.
    epochs
        Passes over the data set; the recipe's where it is None.
    lr
        The learning rate, whatever the batch is; the recipe's, scaled with the batch, where it is None.

    Raises
    ------
    ValueError
        Epochs below 1.
    """
    solver = cfg.SOLVER
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {epochs}")
    batch = choose_batch(solver.IMS_PER_BATCH, ranks, cfg.RECIPE.IMAGES_PER_DEVICE)
    stated = solver.MAX_ITER * solver.IMS_PER_BATCH / cfg.RECIPE.PICTURES
    passes = epochs or stated
    steps = max(1, round(passes * pictures / batch.effective))
    factor = steps / solver.MAX_ITER
    # Steps of the recipe that see as many images as one step here.
    images = batch.recipe / batch.effective
    most = max(2, steps // _PART)
    # A drop that falls on another one or on the end, in a training of a few steps, is none; detectron2 refuses it.
    drops = {max(1, round(step * factor)) for step in solver.STEPS}
    solver.STEPS = tuple(sorted(step for step in drops if step < steps))
    solver.MAX_ITER = steps
    solver.WARMUP_ITERS = min(round(solver.WARMUP_ITERS * images), most)
    solver.CHECKPOINT_PERIOD = min(max(1, round(solver.CHECKPOINT_PERIOD * images)), most)
    cfg.TEST.EVAL_PERIOD = (
        min(max(1, round(cfg.TEST.EVAL_PERIOD * images)), steps) if cfg.TEST.EVAL_PERIOD else steps
    )
    solver.BASE_LR = lr if lr is not None else solver.BASE_LR * batch.lr_scale
    return Recipe(
        batch=batch,
        epochs=steps * batch.effective / pictures,
        steps=steps,
        validate=cfg.TEST.EVAL_PERIOD,
        save=solver.CHECKPOINT_PERIOD,
        lr=solver.BASE_LR,
    )


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that SOLVER names: SGD, detectron2's only one, or AdamW."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    if solver.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, betas=(0.9, 0.99))
    return torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


class Schedule:
    """The learning rate of a step, by detectron2's scheduler; it depends on nothing but the step.

    Parameters
    ----------
    cfg
        As `fit` leaves it.
    optimizer
        Fresh, with the learning rates that the schedule starts from.
    """

    def __init__(self, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> None:
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.base = list(self.scheduler.base_lrs)

    def set(self, step: int, optimizer: torch.optim.Optimizer) -> float:
        """Give an optimizer the learning rate of a step, counted from 0; return that of its first group."""
        self.scheduler.last_epoch = step
        for group, rate in zip(optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
        first: float = optimizer.param_groups[0]["lr"]
        return first
