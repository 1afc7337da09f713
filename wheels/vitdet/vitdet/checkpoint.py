"""Checkpoints that are safe to read, complete, and of the right model.

PyTorch since 2.6 reads files with `weights_only`: tensors and plain values, no code. mmengine 0.10.7's checkpoints
do not pass, because its message hub pickles `HistoryBuffer` objects and numpy arrays (by way of `builtins.getattr`,
which nobody should allow-list). So, without ever switching the check off:

- what we write holds plain values only (`PlainCheckpointHook`);
- what mmengine wrote elsewhere is read with those few globals replaced by `Discarded`, which does nothing: weights,
  optimizer and counters survive, the log's history does not;
- anything else in a file is refused by PyTorch, as it should be.
"""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ascendet_common import checkpoints, progress, results
from ascendet_common.checkpoints import CheckpointError, CheckpointMismatch, Discarded, LoadReport
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from vitdet.data import describe_difference, meta_classes

# Globals that an unmodified mmengine checkpoint names besides tensors, by the module names of numpy 1 and numpy 2.
_MMENGINE_GLOBALS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)
# Weights of MAE's pre-training that a detector does not use, and weights that only the detector has.
_MAE_ONLY = ("cls_token", "mask_token", "norm.", "decoder_")
_NEW_IN_DETECTOR = (".attn.rel_pos_h", ".attn.rel_pos_w")


def read(filename: str, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint without running code from it; see `ascendet_common.checkpoints.read`."""
    content = checkpoints.read(filename, map_location, discarded=_MMENGINE_GLOBALS)
    if "message_hub" in content:
        content["message_hub"] = restore_message_hub(content["message_hub"], Path(filename).name)
    return content


def load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
    """Read a checkpoint for mmengine, in place of its loader of local files; mmengine prints this function's name."""
    return read(filename, map_location)


def weights_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by key, from `state_dict` (mmengine), `model` (MAE) or a file of bare weights."""
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    return {key.removeprefix("module."): value for key, value in content.items() if isinstance(value, Tensor)}


def compare(model: nn.Module, weights: Mapping[str, Tensor]) -> LoadReport:
    """Return how `weights` would load. Position tables match at any length, because loading resizes them."""

    def fits(key: str, own: Tensor, other: Tensor) -> bool:
        table = key.endswith(("pos_embed", "rel_pos_h", "rel_pos_w"))
        return own.shape == other.shape or (table and own.shape[-1] == other.shape[-1])

    return checkpoints.compare(model.state_dict(), weights, fits)


def load_pretrained(backbone: nn.Module, filename: str) -> LoadReport:
    """Load MAE's weights into a backbone.

    Raises
    ------
    CheckpointError
        A key is missing, unexpected or of another shape, other than those by which pre-training and detection differ;
        or `checkpoint-missing`: there is no such file.
    """
    if not Path(filename).is_file():
        raise CheckpointError(
            f"the backbone {Path(filename).name} has not been fetched",
            name="checkpoint-missing",
            expected=filename,
        )
    weights = weights_of(read(filename))
    found = compare(backbone, weights)
    report = LoadReport(
        matched=found.matched,
        missing=tuple(key for key in found.missing if not key.endswith(_NEW_IN_DETECTOR)),
        unexpected=tuple(key for key in found.unexpected if not key.startswith(_MAE_ONLY)),
        mismatched=found.mismatched,
        initialised=tuple(key for key in found.missing if key.endswith(_NEW_IN_DETECTOR)),
        ignored=tuple(key for key in found.unexpected if key.startswith(_MAE_ONLY)),
    )
    if not report.complete:
        raise CheckpointMismatch(f"{filename} does not fit this backbone\n{report}")
    backbone.load_state_dict(weights, strict=False)
    print_log(f"{filename}: {report}", logger="current")
    return report


def plain(value: Any, where: str = "checkpoint") -> Any:
    """Return a copy that `weights_only` can read back: numpy's scalars become Python's, numpy's arrays become tensors.

    >>> plain({"lr": np.float64(0.5), "sizes": (1, np.int32(2))})
    {'lr': 0.5, 'sizes': (1, 2)}

    Raises
    ------
    TypeError
        A value has another type; the message says where it is. It is better to fail now than when the file is needed.
    """
    if value is None or isinstance(value, (bool, str, bytes, Tensor)) or type(value) in (int, float, complex):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {"log": log.tolist(), "count": count.tolist(), "max_length": value.max_length}
    if isinstance(value, Mapping):
        items = {plain(key, where): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
        kinds: tuple[type[dict[Any, Any]], ...] = (OrderedDict, Counter)
        return next((kind(items) for kind in kinds if type(value) is kind), items)
    if isinstance(value, (list, tuple, set)):
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        return kind(plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold safely")


def restore_message_hub(hub: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rebuild mmengine's objects from a message hub's plain form; drop entries that were discarded on reading."""
    scalars = {
        key: HistoryBuffer(entry["log"], entry["count"], entry["max_length"])
        for key, entry in hub["log_scalars"].items()
        if not isinstance(entry, Discarded)
    }
    info = {key: value for key, value in hub["runtime_info"].items() if not isinstance(value, Discarded)}
    dropped = len(hub["log_scalars"]) - len(scalars) + len(hub["runtime_info"]) - len(info)
    if dropped:
        print_log(
            f"{name}: written by plain mmengine; {dropped} entries of its log are left out", logger="current"
        )
    return {"log_scalars": scalars, "runtime_info": info, "resumed_keys": hub["resumed_keys"]}


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, but a checkpoint gets its name only after all of it is on the disk."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write `obj` beside `filepath` and rename it; remove the incomplete file if that fails."""
        final = Path(filepath)
        final.parent.mkdir(parents=True, exist_ok=True)
        with results.replacing(final) as file:
            file.write(obj)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Write checkpoints that can be read safely; refuse checkpoints of another model."""

    priority = "LOWEST"  # after the hooks that add to a checkpoint

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace everything except the weights, which are tensors, with plain values."""
        for name in checkpoint.keys() - {"state_dict"}:
            checkpoint[name] = plain(checkpoint[name], name)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Log how the keys match, and refuse a checkpoint of another model or other classes.

        Only a training may start from a checkpoint of other classes: the layers that depend on the classes are then
        dropped from the checkpoint and initialised.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        starting = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        loader = (
            runner.cfg.train_dataloader
            if isinstance(runner._train_loop, BaseLoop)
            else runner.cfg.test_dataloader
        )
        here = tuple((loader.dataset.get("metainfo") or {}).get("classes") or ())
        stated = meta_classes(checkpoint.get("meta") or {})
        other = bool(stated and here and stated != here)
        if starting:
            made_anew = drop_class_layers(model, checkpoint, by_name=other)
            if made_anew:
                print_log(
                    f"checkpoint: made anew for {', '.join(here)}: {', '.join(made_anew)}", logger="current"
                )
                if is_main_process():
                    progress.write(
                        "note",
                        text=f"starts from a checkpoint of other classes; made anew: {', '.join(made_anew)}",
                    )
        elif other:
            raise CheckpointMismatch(
                f"the checkpoint is not one of this model: {describe_difference(stated, here)}"
            )
        report = compare(model, weights_of(checkpoint))
        if not report.complete and not starting:
            raise CheckpointMismatch(f"the checkpoint is not one of this model\n{report}")
        if starting and not report.matched:
            raise CheckpointMismatch(f"the checkpoint is not one of this model: nothing of it fits\n{report}")
        print_log(f"checkpoint: {report}", logger="current")


def class_layers(model: nn.Module) -> Iterator[str]:
    """Yield the names of the layers whose size depends on the number of classes, in a detector with boxes and masks."""
    box, mask = model.roi_head.bbox_head, model.roi_head.mask_head
    yield "roi_head.bbox_head.fc_cls"
    if not box.reg_class_agnostic:
        yield "roi_head.bbox_head.fc_reg"
    if not mask.class_agnostic:
        yield "roi_head.mask_head.conv_logits"


def drop_class_layers(model: nn.Module, checkpoint: Mapping[str, Any], *, by_name: bool) -> tuple[str, ...]:
    """Remove the layers of other classes from a checkpoint's weights, in place, and return the names of these layers.

    Parameters
    ----------
    model
        The detector that will be trained.
    checkpoint
        A checkpoint of mmengine, with `state_dict`, or bare weights.
    by_name
        Whether the classes are known to differ: their layers are then removed even if the shapes are equal.
    """
    weights = checkpoint.get("state_dict", checkpoint)
    own = model.state_dict()
    gone = []
    for layer in class_layers(model) if hasattr(model, "roi_head") else ():
        keys = [key for key in weights if key.removeprefix("module.").startswith(f"{layer}.")]
        shapes = [
            own[name].shape == weights[key].shape
            for key in keys
            if (name := key.removeprefix("module.")) in own
        ]
        if keys and (by_name or not all(shapes)):
            gone.append(layer)
            for key in keys:
                del weights[key]
    return tuple(gone)


@HOOKS.register_module()
class KeepingCheckpointHook(CheckpointHook):
    """mmengine's hook, but it removes an old checkpoint after the new one is written, not before.

    If the disk fills up while the new checkpoint is written, the last and the best one therefore still exist. The disk
    needs room for one checkpoint more than are kept.
    """

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not set(self.key_indicators or ()) <= metrics.keys():
            return  # nothing was detected: mmdet then reports no numbers
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextlib.contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Postpone removals until the block has ended; after an exception nothing is removed."""
        old: list[str] = []
        remove = self.file_backend.remove
        self.file_backend.remove = old.append
        try:
            yield
        finally:
            self.file_backend.remove = remove
        for path in old:
            remove(path)
