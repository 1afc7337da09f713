"""Checkpoints: ours, AdelaiDet's (.pth) and detectron2's backbones (.pkl), read without running anything of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from ascendet_common import checkpoints, results
from ascendet_common.checkpoints import CheckpointError, CheckpointMismatch, LoadReport
from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from detectron2.utils.array_pickle import ArrayUnpickler
from torch import Tensor, nn

# What a detectron2 or AdelaiDet training leaves in its files besides tensors and plain values.
_HARMLESS = tuple(
    f"numpy.{name}"
    for name in (
        "dtype",
        "ndarray",
        "core.multiarray.scalar",
        "core.multiarray._reconstruct",
        "_core.multiarray.scalar",
        "_core.multiarray._reconstruct",
    )
)
# What unpickling raises where a file was cut off, or holds bytes that are no pickle.
_DAMAGED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
_BACKBONE = "backbone.bottom_up."
# FrozenBN's statistics: files of Caffe2 have them in the scale and the bias.
_STATISTICS = ("norm.running_mean", "norm.running_var")


def read(filename: str | Path) -> dict[str, Any]:
    """Read a checkpoint (.pth, .pt) or a pickle of arrays (.pkl).

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CheckpointError
        It is damaged, or wants to run code.
    """
    path = Path(filename).expanduser()
    if path.suffix != ".pkl":
        return checkpoints.read(path, discarded=_HARMLESS)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        if not str(error).startswith("refused"):
            raise CheckpointError(f"{path} is no complete pickle of weights: {error}") from error
        raise CheckpointError(f"{path} is refused, because reading it could run code: {error}") from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path} is no complete pickle of weights: {error!r}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def weights_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by key: those below "model", or bare ones; arrays become tensors."""
    found = content.get("model", content)
    if not isinstance(found, Mapping):
        found = content
    return {
        str(name).removeprefix("module."): torch.as_tensor(value)
        for name, value in found.items()
        if isinstance(value, (Tensor, np.ndarray))
    }


def backbone_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a backbone's file by the model's names, without prefix.

    Files of detectron2's model zoo have "model" and these names; others, such as MSRA's R-50.pkl, have Caffe2's.
    """
    if "model" in content:
        return weights_of(content)
    weights = weights_of(content.get("blobs", content))
    names = [name for name in weights if not name.endswith("_momentum")]
    return {ours: weights[name] for name, ours in zip(names, convert_basic_c2_names(names), strict=True)}


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a backbone's file by the model's names, without prefix.

    They are kept beside the file as safetensors, a format that can hold nothing else: the pickle is read once. What is
    kept is used as long as it is of the file that is there, by SHA-256.

    Raises
    ------
    CheckpointError
        `checkpoint-missing`: there is no such file. Else as `read`.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the backbone {path.name} has not been fetched", name="checkpoint-missing", expected=str(path)
        ) from error
    kept = path.with_suffix(".safetensors")
    with (
        contextlib.suppress(FileNotFoundError, safetensors.SafetensorError),
        safetensors.safe_open(kept, "pt") as content,
    ):
        if (content.metadata() or {}).get("made_of") == digest:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118  # no dictionary
    weights = {name: value.contiguous() for name, value in sorted(backbone_weights(read(path)).items())}
    if os.environ.get("RANK", "0") == "0":
        # A container may only read there.
        with contextlib.suppress(OSError), results.replacing(kept) as new:
            new.write(safetensors.torch.save(weights, {"made_of": digest}))
    return weights


def classes_in(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes that one of our checkpoints states; none in others."""
    meta = content.get("meta")
    return tuple(meta.get("classes") or ()) if isinstance(meta, Mapping) else ()


def load(model: nn.Module, content: Mapping[str, Any]) -> LoadReport:
    """Load exactly this model's weights; CheckpointMismatch where a key is missing, too many, or of another shape."""
    weights = weights_of(content)
    report = checkpoints.compare(model.state_dict(), weights)
    if not report.complete:
        raise CheckpointMismatch(f"the checkpoint is not one of this model\n{report}")
    model.load_state_dict(weights)
    return report


def load_backbone(model: nn.Module, filename: str | Path) -> LoadReport:
    """Load a backbone's file into a model; CheckpointMismatch unless all of the backbone is there.

    The classifier of its pre-training is ignored; FrozenBN's statistics are the identity where the file has none.
    Raises as `read_backbone` too.
    """
    weights = {f"{_BACKBONE}{name}": value for name, value in read_backbone(Path(filename)).items()}
    own = {name: value for name, value in model.state_dict().items() if name.startswith(_BACKBONE)}
    found = checkpoints.compare(own, weights)
    by_design = f"{_BACKBONE}fc1000.", f"{_BACKBONE}linear."
    # A bias before a normalisation that has one: Caffe2's first convolution.
    spare = f"{_BACKBONE}stem.conv1.bias"
    ignored = tuple(name for name in found.unexpected if name.startswith(by_design) or name == spare)
    report = LoadReport(
        matched=found.matched,
        missing=tuple(name for name in found.missing if not name.endswith(_STATISTICS)),
        unexpected=tuple(name for name in found.unexpected if name not in ignored),
        mismatched=found.mismatched,
        initialised=tuple(name for name in found.missing if name.endswith(_STATISTICS)),
        ignored=ignored,
    )
    if not report.complete:
        raise CheckpointMismatch(f"{filename} does not fit this backbone\n{report}")
    model.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)
    return report


def load_to_start(
    model: nn.Module, content: Mapping[str, Any], *, other_classes: bool
) -> tuple[LoadReport, tuple[str, ...]]:
    """Load what a training may start from: what has something per class is made anew where the classes are others.

    Returns
    -------
    report, made_anew
        How the rest matches, and the names of the layers that were left as they are.

    Raises
    ------
    CheckpointMismatch
        Nothing of it fits.
    """
    weights, own = weights_of(content), model.state_dict()
    layers = ("proposal_generator.fcos_head.cls_logits", "basis_module.seg_head.6")
    made_anew = []
    for layer in layers:
        keys = [name for name in weights if name.startswith(f"{layer}.")]
        if keys and (
            other_classes or any(name in own and own[name].shape != weights[name].shape for name in keys)
        ):
            made_anew.append(layer)
            for name in keys:
                del weights[name]
    report = checkpoints.compare(own, weights)
    fitting = {
        name: value for name, value in weights.items() if name in own and own[name].shape == value.shape
    }
    if not fitting:
        raise CheckpointMismatch(f"the checkpoint is not one of this model: nothing of it fits\n{report}")
    model.load_state_dict(fitting, strict=False)
    return report, tuple(made_anew)
