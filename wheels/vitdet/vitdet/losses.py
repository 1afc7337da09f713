"""Log losses without a synchronisation per step, and end a training whose loss is not finite."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from ascendet_common.errors import RunError, report
from ascendet_common.images import printable
from ascendet_common.ranks import share
from ascendet_common.resume import EXIT_LOSS_NOT_FINITE
from mmdet.registry import HOOKS
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """One iteration: its pictures, learning rate and losses; `values` is (losses,), float32, on the device."""

    iteration: int
    lr: float
    pictures: list[str]
    names: list[str]
    values: Tensor


@HOOKS.register_module()
class LossHook(RuntimeInfoHook):
    """mmengine's hook, but losses are read from the device only when they are needed, not at every step.

    They are read when the log is written, before a validation and before a checkpoint is saved; all ranks do so after
    the same iterations. If a loss is not finite on any rank, all ranks then end with SystemExit(EXIT_LOSS_NOT_FINITE),
    after a line that names the first such iteration. No checkpoint is saved after a loss, or with a weight, that is
    not finite.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def before_train(self, runner: Runner) -> None:
        """Find the hooks that write the log, because losses are read when they do."""
        super().before_train(runner)
        self.done = runner.iter
        self.loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Keep the losses on the device; read them if the log will be written now."""
        assert outputs is not None
        self.done = runner.iter + 1
        step = Step(
            iteration=self.done,
            lr=runner.optim_wrapper.param_groups[0]["lr"],
            pictures=[sample.get("img_path", "?") for sample in data_batch["data_samples"]],
            names=list(outputs),
            values=torch.stack([value.detach().float() for value in outputs.values()]),
        )
        self.steps.append(step)
        if self.end_of_epoch(runner.train_dataloader, batch_idx) or any(
            logger.every_n_inner_iters(batch_idx, logger.interval) for logger in self.loggers
        ):
            self.read(runner)

    def before_val(self, runner: Runner) -> None:
        """Read the losses, so that a training that diverged ends before it is evaluated."""
        super().before_val(runner)
        self.read(runner)

    def check(self, runner: Runner) -> None:
        """Read the losses and check the weights: gradients can spoil them even if every loss was finite.

        All ranks must call this before one of them saves a checkpoint. Parameters are the same on all of them, so all
        find the same.
        """
        self.read(runner)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        weights = dict(model.named_parameters())
        bad = [name for name, value in weights.items() if not value.isfinite().all()]
        if bad:
            lr = runner.optim_wrapper.param_groups[0]
            end_all_ranks(
                f"{len(bad)} of {len(weights)} weights are not finite after iteration {self.done}, "
                f"{bad[0]} among them; {show_rate(lr['lr'], runner)}",
                runner,
            )

    def read(self, runner: Runner) -> None:
        """Pass the losses on to the log; end all ranks if one is not finite."""
        if not self.steps:
            return
        bad = self.take(runner)
        first = torch.tensor(float(bad[0][0].iteration) if bad else math.inf)
        all_reduce(first, "min")  # another rank's loss may have been the first, an iteration earlier
        if first < math.inf:
            end_all_ranks(describe(bad, runner) if bad and bad[0][0].iteration == first else None, runner)

    def explain(self, runner: Runner) -> None:
        """End this rank with `loss-not-finite` if a loss before an exception was not finite.

        It does not wait for the other ranks, which may not have raised an exception.
        """
        with contextlib.suppress(RuntimeError):  # the device may be lost
            if bad := self.take(runner):
                end(describe(bad, runner), runner)

    def take(self, runner: Runner) -> list[tuple[Step, str, float]]:
        """Copy the losses from the device, pass them on to the log, and return those that are not finite."""
        steps, self.steps = self.steps, []
        # The number of values differs between steps: a step without regions has no accuracy.
        values = iter(torch.cat([step.values for step in steps]).tolist() if steps else [])
        bad = []
        for step in steps:
            for name, value in zip(step.names, values, strict=False):
                runner.message_hub.update_scalar(f"train/{name}", value)
                if "loss" in name and not math.isfinite(value):
                    bad.append((step, name, value))
        return bad


def describe(bad: list[tuple[Step, str, float]], runner: Runner) -> str:
    """Return one line about the losses that are not finite in the first such iteration."""
    step = bad[0][0]
    bad = [entry for entry in bad if entry[0] is step]
    losses = ", ".join(f"{name} is {value}" for _, name, value in bad if name != "loss" or len(bad) == 1)
    pictures = ", ".join(map(printable, step.pictures))
    where = f"iteration {step.iteration} of rank {get_rank()}"
    return f"{losses} in {where}, {show_rate(step.lr, runner)}, pictures: {pictures}"


def show_rate(lr: float, runner: Runner) -> str:
    """Return a learning rate as text, with the rate that the schedule starts from in parentheses."""
    return f"learning rate {lr:.3g} (LR={start_rate(runner):g})"


def start_rate(runner: Runner) -> float:
    """Return the learning rate that the schedule starts from."""
    group = runner.optim_wrapper.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))  # a training without a schedule has none


def end_all_ranks(message: str | None, runner: Runner) -> NoReturn:
    """End this rank with SystemExit(EXIT_LOSS_NOT_FINITE); all other ranks must call this function, too.

    At least one rank passes a message, and the first rank of each node prints it.
    """
    message = share(message)
    end(message if os.environ.get("LOCAL_RANK", "0") == "0" else None, runner)


def end(message: str | None, runner: Runner) -> NoReturn:
    """Print and report the message, if there is one, and raise SystemExit(EXIT_LOSS_NOT_FINITE)."""
    if message:
        print(f"error[loss-not-finite]: {message}", flush=True)
        half = {"LR": f"{start_rate(runner) / 2:g}"}
        report(RunError("the training diverges", name="loss-not-finite", found=message, advice=half))
    raise SystemExit(EXIT_LOSS_NOT_FINITE)
