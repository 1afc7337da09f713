"""Write the progress of a training or a prediction as rows of `ascendet_common.progress`."""

from __future__ import annotations

import logging
import time
from typing import Any

from ascendet_common import progress
from mmdet.registry import HOOKS, VISBACKENDS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend

_AP = {"coco/bbox_mAP": "bbox", "coco/segm_mAP": "segm"}
_EVERY = 5.0  # seconds between two rows of a validation or prediction


@VISBACKENDS.register_module()
class ProgressVisBackend(BaseVisBackend):
    """Write what mmengine's LoggerHook logs as rows of `progress.jsonl`; mmengine calls it on the first rank only."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)

    def _init_env(self) -> None:
        """Do nothing; mmengine calls this to prepare a backend, and this one needs no preparation."""

    @property
    def experiment(self) -> None:
        """None: this backend has no writer that others could use."""

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **_: Any
    ) -> None:
        """Write a row for a training step, or for a validation that measured AP."""
        ap = {kind: scalar_dict[name] for name, kind in _AP.items() if name in scalar_dict}
        hub = MessageHub.get_current_instance()
        # mmengine counts a validation after an epoch in epochs; curves want the step.
        done = int(hub.get_info("iter", -1)) + 1
        if ap:
            progress.write("validate", step=done, AP=ap)
        elif "loss" in scalar_dict:
            losses = {name: float(value) for name, value in scalar_dict.items() if name.startswith("loss_")}
            progress.write(
                "train",
                step=done,
                of=hub.get_info("max_iters"),
                epoch=hub.get_info("epoch") + 1,
                eta=hub.get_info("eta") if "eta" in hub.runtime_info else None,
                loss=float(scalar_dict["loss"]),
                losses=losses,
                lr=float(scalar_dict["lr"]),
                seconds=scalar_dict.get("time"),
                memory=round(scalar_dict["memory"]) if "memory" in scalar_dict else None,
            )


class _WarningsToProgress(logging.Handler):
    """Write warnings of the log to `progress.jsonl`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a row for the warning, unless it is about a library's own future, which is in the log."""
        if "deprecated in future" not in record.getMessage():
            progress.write("warning", text=record.getMessage())


@HOOKS.register_module()
class ProgressHook(Hook):
    """Write the step that a training resumes from, mmengine's warnings, and the progress of a prediction."""

    def __init__(self) -> None:
        self.last = 0.0

    def before_run(self, runner: Runner) -> None:
        """Pass on warnings, on the first rank."""
        if is_main_process():
            runner.logger.addHandler(_WarningsToProgress(logging.WARNING))

    def before_train(self, runner: Runner) -> None:
        """Write the step that a resumed training continues from."""
        if runner.iter and is_main_process():
            progress.write("note", text=f"resumed after step {runner.iter}")

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write a row every few seconds."""
        self._row("validate", batch_idx, len(runner.val_dataloader))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write a row every few seconds."""
        self._row("predict", batch_idx, len(runner.test_dataloader))

    def _row(self, phase: str, index: int, of: int) -> None:
        now = time.monotonic()
        if is_main_process() and (now - self.last > _EVERY or index + 1 == of):
            self.last = now
            progress.write(phase, step=index + 1, of=of)
