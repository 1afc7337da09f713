"""The recipe's batch on any number of devices: images per device, accumulation, learning rate, schedule.

A configuration states its schedule in optimizer steps of `auto_scale_lr.base_batch_size` images, and the batch of one
device. `stretch` makes it that of another data set, or of other epochs; `fit` turns steps into iterations (one forward
and backward pass of every device) for the devices there are.
"""

from __future__ import annotations

import os
from typing import Any

from ascendet_common import progress
from ascendet_common.recipe import Batch, choose_batch
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS  # mmdet's tools look in no other
from mmengine.runner import Runner, find_latest_checkpoint

from vitdet.data import fill
from vitdet.losses import LossHook

__all__ = ["Batch", "RecipeHook", "RecipeRunner", "choose_batch", "fit", "stretch"]

# What schedulers of mmengine count in iterations, where they do not count in epochs.
_SCHEDULE = ("begin", "end", "total_iters", "T_max")
# Warm-up, and what lies between two validations or checkpoints, take at most this part of a training.
_PART = 5


def stretch(cfg: Config, pictures: int) -> None:
    """Change a training's schedule to `cfg.epochs` passes over so many pictures, from those that `cfg.schedule` states.

    The end and the drops of the learning rate move in proportion. Warm-up and intervals stay, unless they would be
    more than a fifth of a short training. For the epochs and pictures that are stated, nothing changes.
    """
    if cfg.epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {cfg.epochs}")
    ratio = cfg.epochs / cfg.schedule.epochs
    scale = ratio * pictures / cfg.schedule.pictures
    most = max(
        2, round(cfg.epochs * pictures / cfg.auto_scale_lr.base_batch_size) // _PART
    )  # a ramp needs two

    def moved(value: float, factor: float) -> Any:
        return value if value in (0, float("inf")) else max(1, round(value * factor))

    for scheduler in cfg.param_scheduler:
        by_epoch = scheduler.get("by_epoch", True)
        for name in (name for name in _SCHEDULE if name in scheduler):
            warm_up = scheduler.type == "LinearLR" and not by_epoch
            value = scheduler[name]
            scheduler[name] = min(value, most) if warm_up else moved(value, ratio if by_epoch else scale)
        if "milestones" in scheduler:
            scheduler.milestones = [
                moved(value, ratio if by_epoch else scale) for value in scheduler.milestones
            ]
    train, saving = cfg.train_cfg, cfg.default_hooks.checkpoint
    if "max_iters" in train:
        train.max_iters = moved(train.max_iters, scale)
        train.val_interval = min(train.val_interval, most)
        if "dynamic_intervals" in train:  # and once more at the end
            last = train.max_iters // train.val_interval * train.val_interval + 1
            train.dynamic_intervals = [(last, train.max_iters)]
        saving.interval = min(saving.interval, most)
    else:
        train.max_epochs = moved(train.max_epochs, ratio)
        train.val_interval = min(train.val_interval, moved(train.val_interval, ratio))
        saving.interval = min(saving.interval, moved(saving.interval, ratio))


def fit(cfg: Config, ranks: int) -> Batch:
    """Change a training's configuration for `ranks` devices; the number of images it sees stays.

    Iterations at which a checkpoint is written or validation runs become ends of optimizer steps: gradients that are
    half accumulated are in no checkpoint. Where an epoch is counted in and not a multiple of the accumulation, its
    checkpoint misses the rest.
    """
    loader = cfg.train_dataloader
    batch = choose_batch(cfg.auto_scale_lr.base_batch_size, ranks, loader.batch_size)

    def steps(value: float) -> Any:
        """Iterations for so many steps of the recipe, a multiple of the accumulation; infinity stays."""
        if value == float("inf"):
            return value
        return batch.accumulated * round(value * batch.iterations / batch.accumulated)

    loader.batch_size = batch.per_rank
    cfg.optim_wrapper.accumulative_counts = batch.accumulated
    cfg.optim_wrapper.optimizer.lr *= batch.lr_scale
    for scheduler in cfg.param_scheduler:
        if not scheduler.get("by_epoch", True):
            for name in _SCHEDULE:
                if name in scheduler:
                    scheduler[name] = steps(scheduler[name])
            if "milestones" in scheduler:
                scheduler.milestones = [steps(value) for value in scheduler.milestones]
    if "max_iters" in cfg.train_cfg:
        for name in ("max_iters", "val_begin", "val_interval"):
            if name in cfg.train_cfg:
                cfg.train_cfg[name] = max(1, steps(cfg.train_cfg[name]))
        if "dynamic_intervals" in cfg.train_cfg:
            cfg.train_cfg.dynamic_intervals = [
                tuple(max(1, steps(value)) for value in pair) for pair in cfg.train_cfg.dynamic_intervals
            ]
    saving = cfg.default_hooks.checkpoint
    if not saving.get("by_epoch", True) and saving.get("interval", -1) > 0:
        saving.interval = max(1, steps(saving.interval))
    return batch


@RUNNERS.register_module()
class RecipeRunner(Runner):  # type: ignore[misc]  # mmengine has no types
    """mmengine's runner for the devices that torchrun gives it; restarted by torchrun, it resumes.

    Where the environment has LR, that is the learning rate, whatever the recipe's and the batch are; where it has AMP,
    the training is one in mixed precision.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner:
        """Fit a training to the data set and the devices, say how, and build the runner."""
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        training = bool(cfg.get("train_cfg"))
        pictures = fill(cfg, training=training)
        if training:
            if pictures and cfg.get("schedule"):
                stretch(cfg, pictures)
            batch, shown = fit(cfg, ranks), ""
            if cfg.get("lr"):
                cfg.optim_wrapper.optimizer.lr = cfg.lr
            if cfg.get("amp"):
                cfg.optim_wrapper.type, shown = "MixedPrecisionOptimWrapper", ", mixed precision"
            lr = cfg.optim_wrapper.optimizer.lr
            images = batch.ranks * batch.per_rank
            cfg.custom_hooks.append(dict(type="RecipeHook", images=images, lr=lr, shown=f"{batch}{shown}"))
            # A rank died and torchrun starts all of them anew: on from the last checkpoint.
            if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
                cfg.resume = True
            _choose_start(cfg)
        return super().from_cfg(cfg)

    def train(self) -> Any:
        """Train; a loss that was not finite explains an exception soon after it."""
        try:
            return super().train()
        except Exception:
            for hook in self.hooks:
                if isinstance(hook, LossHook):
                    hook.explain(self)
            raise


def _choose_start(cfg: Config) -> None:
    """Start from the file that CHECKPOINT names, unless there is a training to resume."""
    start = os.environ.get("CHECKPOINT")
    if not start or cfg.get("load_from") or (cfg.get("resume") and find_latest_checkpoint(cfg.work_dir)):
        return
    cfg.load_from, cfg.resume = start, False
    cfg.model.backbone.pop("init_cfg", None)  # it has everything


@HOOKS.register_module()
class RecipeHook(Hook):
    """Say what a step is; continue on another number of devices or with another learning rate.

    Then what was counted in iterations is counted anew, and all learning rates change by the same factor.

    Parameters
    ----------
    images
        Images per iteration, on all devices.
    lr
        The learning rate that the schedule starts from.
    shown
        What is printed when training begins.
    """

    priority = "VERY_LOW"

    def __init__(self, images: int, lr: float, shown: str) -> None:
        self.images, self.lr, self.shown = images, lr, shown

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Say it."""
        progress.write("note", text=f"recipe: {self.shown}, learning rate {self.lr:g}")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Say what an iteration is."""
        checkpoint["meta"].update(images_per_iteration=self.images, lr=self.lr)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Count in iterations of this run."""
        meta = checkpoint.get("meta") or {}
        before = meta.get("images_per_iteration", self.images)
        lr_before = meta.get("lr", self.lr)
        if not runner._resume or (before, lr_before) == (self.images, self.lr):
            return
        ratio, lr_ratio = before / self.images, self.lr / lr_before
        meta["iter"] = round(meta["iter"] * ratio)
        position = ("last_step", "_global_step")
        checkpoint["param_schedulers"] = [
            {name: round(state[name] * (1 if state.get("by_epoch") else ratio)) for name in position}
            | {"_last_value": [value * lr_ratio for value in state["_last_value"]]}
            for state in checkpoint["param_schedulers"]
        ]
        optimizer = checkpoint["optimizer"]
        for group in (*optimizer["param_groups"], optimizer.get("base_param_settings") or {}):
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= lr_ratio
        if is_main_process():
            progress.write(
                "note",
                text=f"recipe: {before} images per iteration and learning rate {lr_before:g} before, "
                f"{self.images} and {self.lr:g} now",
            )
