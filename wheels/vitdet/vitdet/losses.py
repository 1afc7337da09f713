"""Losses in the log without a wait per step, and the end of a training whose loss is not finite."""

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
from mmengine.runner import Runner
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """What an iteration was about; `values` are its losses, (losses,), float32, on the device until they are read."""

    iteration: int
    lr: float
    pictures: list[str]
    names: list[str]
    values: Tensor


@HOOKS.register_module()
class LossHook(RuntimeInfoHook):  # type: ignore[misc]  # mmengine has no types
    """mmengine's hook, which waits for the device at each loss of each step; here they are read when they are needed.

    That is when the log is written, before a validation and before a checkpoint is saved: by all ranks after the same
    iterations. A loss that is not finite on any rank then ends all of them, with SystemExit(EXIT_LOSS_NOT_FINITE) after
    a line that tells the first such iteration. Neither it nor weights that are not finite are ever saved.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def before_train(self, runner: Runner) -> None:
        """Find out when the log is written."""
        super().before_train(runner)
        self.done = runner.iter
        self.loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Keep the losses on the device; read them if the log is about to be written."""
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
        """Read before weights are evaluated that may not be worth it."""
        super().before_val(runner)
        self.read(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Read; look at the weights, too, which gradients can spoil although the losses were finite."""
        self.read(runner)
        checkpoint["message_hub"] = runner.message_hub.state_dict()  # with what was just read
        bad = [name for name, value in checkpoint["state_dict"].items() if not value.isfinite().all()]
        if bad:
            lr = runner.optim_wrapper.param_groups[0]
            end_all_ranks(
                f"{len(bad)} of {len(checkpoint['state_dict'])} weights are not finite after iteration {self.done}, "
                f"{bad[0]} among them; {shown_rate(lr['lr'], runner)}",
                runner,
            )

    def read(self, runner: Runner) -> None:
        """Pass the losses on to the log; end if one is not finite."""
        if not self.steps:
            return
        bad = self.take(runner)
        first = torch.tensor(float(bad[0][0].iteration) if bad else math.inf)
        all_reduce(first, "min")  # this rank's may be the consequence of another one's, an iteration earlier
        if first < math.inf:
            end_all_ranks(describe(bad, runner) if bad and bad[0][0].iteration == first else None, runner)

    def explain(self, runner: Runner) -> None:
        """End this rank, which an exception leaves without the others, if a loss was not finite before it."""
        with contextlib.suppress(RuntimeError):  # the device may be lost
            if bad := self.take(runner):
                end(describe(bad, runner), runner)

    def take(self, runner: Runner) -> list[tuple[Step, str, float]]:
        """Copy the losses from the device, pass them on to the log, and return those that are not finite."""
        steps, self.steps = self.steps, []
        # Not all steps have the same: without a region there is no accuracy.
        values = iter(torch.cat([step.values for step in steps]).tolist() if steps else [])
        bad = []
        for step in steps:
            for name, value in zip(step.names, values, strict=False):
                runner.message_hub.update_scalar(f"train/{name}", value)
                if "loss" in name and not math.isfinite(value):
                    bad.append((step, name, value))
        return bad


def describe(bad: list[tuple[Step, str, float]], runner: Runner) -> str:
    """Return one line about the losses that are not finite, those of the first such iteration."""
    step = bad[0][0]
    bad = [entry for entry in bad if entry[0] is step]
    losses = ", ".join(f"{name} is {value}" for _, name, value in bad if name != "loss" or len(bad) == 1)
    pictures = ", ".join(map(printable, step.pictures))
    where = f"iteration {step.iteration} of rank {get_rank()}"
    return f"{losses} in {where}, {shown_rate(step.lr, runner)}, pictures: {pictures}"


def shown_rate(lr: float, runner: Runner) -> str:
    """Return a learning rate beside the one that the schedule starts from."""
    return f"learning rate {lr:.3g} (LR={start_rate(runner):g})"


def start_rate(runner: Runner) -> float:
    """Return the learning rate that the schedule starts from."""
    group = runner.optim_wrapper.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))  # a training without a schedule has none


def end_all_ranks(message: str | None, runner: Runner) -> NoReturn:
    """End this rank; all others do the same. One rank, at least, has a message, and each machine's first one prints it.

    Raises SystemExit(EXIT_LOSS_NOT_FINITE).
    """
    message = share(message)
    end(message if os.environ.get("LOCAL_RANK", "0") == "0" else None, runner)


def end(message: str | None, runner: Runner) -> NoReturn:
    """Report the message, if this is the rank to do so, and raise SystemExit(EXIT_LOSS_NOT_FINITE)."""
    if message:
        print(f"error[loss-not-finite]: {message}", flush=True)
        half = {"LR": f"{start_rate(runner) / 2:g}"}
        report(RunError("the training diverges", name="loss-not-finite", found=message, advice=half))
    raise SystemExit(EXIT_LOSS_NOT_FINITE)
