"""Fit a recipe to any number of devices: pictures per device, gradient accumulation, learning rate, schedule.

A configuration states its schedule in optimizer steps of `auto_scale_lr.base_batch_size` pictures, and the batch of one
device. `stretch` adapts the schedule to another data set or number of epochs; `fit` converts steps to iterations (one
forward and backward pass of every device) for the number of devices.
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
# Warm-up and the interval between validations or checkpoints are at most 1/_PART of a training.
_PART = 5


def stretch(cfg: Config, pictures: int) -> None:
    """Change a training's schedule from the epochs and pictures in `cfg.schedule` to `cfg.epochs` and `pictures`.

    The end of the training and the drops of the learning rate move in proportion. Warm-up and intervals stay, but are
    limited to a fifth of a short training. Nothing changes if epochs and pictures are those that the recipe states.
    """
    if cfg.epochs < 1:
        raise ValueError(f"epochs must be at least 1, not {cfg.epochs}")
    ratio = cfg.epochs / cfg.schedule.epochs
    scale = ratio * pictures / cfg.schedule.pictures
    most = max(
        2, round(cfg.epochs * pictures / cfg.auto_scale_lr.base_batch_size) // _PART
    )  # a ramp needs two

    def move(value: float, factor: float) -> Any:
        return value if value in (0, float("inf")) else max(1, round(value * factor))

    for scheduler in cfg.param_scheduler:
        by_epoch = scheduler.get("by_epoch", True)
        for name in (name for name in _SCHEDULE if name in scheduler):
            warm_up = scheduler.type == "LinearLR" and not by_epoch
            value = scheduler[name]
            scheduler[name] = min(value, most) if warm_up else move(value, ratio if by_epoch else scale)
        if "milestones" in scheduler:
            scheduler.milestones = [
                move(value, ratio if by_epoch else scale) for value in scheduler.milestones
            ]
    train, saving = cfg.train_cfg, cfg.default_hooks.checkpoint
    if "max_iters" in train:
        train.max_iters = move(train.max_iters, scale)
        train.val_interval = min(train.val_interval, most)
        if "dynamic_intervals" in train:  # and once more at the end
            last = train.max_iters // train.val_interval * train.val_interval + 1
            train.dynamic_intervals = [(last, train.max_iters)]
        saving.interval = min(saving.interval, most)
    else:
        train.max_epochs = move(train.max_epochs, ratio)
        train.val_interval = min(train.val_interval, move(train.val_interval, ratio))
        saving.interval = min(saving.interval, move(saving.interval, ratio))


def fit(cfg: Config, ranks: int) -> Batch:
    """Change a training's configuration for `ranks` devices, in place, and return the batch that it uses.

    The number of pictures that the training sees stays. Checkpoints and validations happen at the end of an optimizer
    step, because a checkpoint cannot hold partly accumulated gradients. If the schedule counts epochs and an epoch is
    not a multiple of the accumulation, the checkpoint misses the gradients of the remainder.
    """
    loader = cfg.train_dataloader
    batch = choose_batch(cfg.auto_scale_lr.base_batch_size, ranks, loader.batch_size)

    def steps(value: float) -> Any:
        """Return the iterations for this many steps of the recipe, a multiple of the accumulation; keep infinity."""
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
class RecipeRunner(Runner):
    """mmengine's runner, fitted to the data set and to the devices that torchrun started it on.

    It resumes after torchrun restarted it. `cfg.lr` replaces the learning rate, whatever the recipe and the batch are;
    `cfg.amp` switches mixed precision on.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner:
        """Build the runner of a configuration; a training is first fitted to the data set and the devices."""
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
            # A rank died and torchrun restarted all ranks: resume from the last checkpoint.
            if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
                cfg.resume = True
            _choose_start(cfg)
        return super().from_cfg(cfg)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save on the first rank, after all ranks have checked losses and weights, which they must do together."""
        for hook in self.hooks:
            if isinstance(hook, LossHook):
                hook.check(self)
        super().save_checkpoint(*args, **kwargs)

    def train(self) -> Any:
        """Train. If an exception follows a loss that was not finite, report the loss as the reason."""
        try:
            return super().train()
        except Exception:
            for hook in self.hooks:
                if isinstance(hook, LossHook):
                    hook.explain(self)
            raise


def _choose_start(cfg: Config) -> None:
    """Make the training start from the file that CHECKPOINT names, unless it resumes."""
    start = os.environ.get("CHECKPOINT")
    if not start or cfg.get("load_from") or (cfg.get("resume") and find_latest_checkpoint(cfg.work_dir)):
        return
    cfg.load_from, cfg.resume = start, False
    cfg.model.backbone.pop("init_cfg", None)  # the checkpoint has all weights


@HOOKS.register_module()
class RecipeHook(Hook):
    """Print the batch, and let a training resume on another number of devices or with another learning rate.

    On resuming, counts of iterations are converted, and all learning rates change by the same factor.

    Parameters
    ----------
    images
        Pictures per iteration, on all devices.
    lr
        The learning rate that the schedule starts from.
    shown
        Text about the batch, printed when training begins.
    """

    priority = "VERY_LOW"

    def __init__(self, images: int, lr: float, shown: str) -> None:
        self.images, self.lr, self.shown = images, lr, shown

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write the batch and the learning rate to the progress file."""
        progress.write("note", text=f"recipe: {self.shown}, learning rate {self.lr:g}")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Store the pictures per iteration and the learning rate in the checkpoint."""
        checkpoint["meta"].update(images_per_iteration=self.images, lr=self.lr)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Convert a resumed checkpoint's iterations and learning rates to this run's."""
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
