"""Reading a checkpoint without running anything of it, and saying how its keys meet a model's."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ascendet_common import results
from ascendet_common.errors import RunError


class CheckpointError(RunError):
    """A checkpoint that is damaged, that wants to run code, or that belongs to another model."""

    default_name = "checkpoint-unreadable"


class CheckpointMismatch(CheckpointError):
    """A checkpoint that belongs to another model, or to other classes."""

    default_name = "checkpoint-mismatch"


class Discarded:
    """Stands for an object of a checkpoint that is not rebuilt. Calling it, or giving it state, has no effect."""

    def __new__(cls, *_: object) -> Discarded:
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        """Keep nothing."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """How a checkpoint's keys meet a model's. `complete` is what one wants to see."""

    matched: int
    missing: tuple[str, ...] = ()  # in the model only
    unexpected: tuple[str, ...] = ()  # in the checkpoint only
    mismatched: tuple[str, ...] = ()  # in both, with other shapes: "key (checkpoint) -> (model)"
    initialised: tuple[str, ...] = ()  # in the model only, by design
    ignored: tuple[str, ...] = ()  # in the checkpoint only, by design

    @property
    def complete(self) -> bool:
        """Whether every weight was found and used."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """One line per kind that occurs."""
        lines = [f"{self.matched} tensors match"]
        for kind in ("missing", "unexpected", "mismatched", "initialised", "ignored"):
            keys = getattr(self, kind)
            if keys:
                more = f", … ({len(keys)} in all)" if len(keys) > 6 else ""
                lines.append(f"{kind}: {', '.join(keys[:6])}{more}")
        return "\n".join(lines)


def read(filename: str | Path, map_location: Any = "cpu", discarded: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Parameters
    ----------
    filename
        What torch.save wrote.
    map_location
        Where the tensors are to be.
    discarded
        Full names of harmless globals that such files are known to hold; their objects become `Discarded`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    CheckpointError
        The file is truncated or no checkpoint, or names a global that is not allowed.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals([(Discarded, name) for name in discarded]):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0] or str(error)
        raise CheckpointError(f"{path} is refused, because reading it could run code: {reason}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (
            str(error)
            if isinstance(error, (RuntimeError, OSError))
            else "torch.save does not write such files"
        )
        raise CheckpointError(f"{path} is no complete PyTorch checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def write(content: Mapping[str, Any], final: Path) -> None:
    """Write a checkpoint beside `final` and rename it; OSError leaves nothing behind."""
    with results.replacing(final) as file:
        torch.save(dict(content), file)


def same_shape(key: str, own: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have one shape, whatever their name."""
    return own.shape == other.shape


def compare(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    fits: Callable[[str, Tensor, Tensor], bool] = same_shape,
) -> LoadReport:
    """Return how `weights` would load into a model's `own`; `fits` says whether two tensors of one name do."""
    both = own.keys() & weights.keys()
    mismatched = {key for key in both if not fits(key, own[key], weights[key])}
    return LoadReport(
        matched=len(both) - len(mismatched),
        missing=tuple(key for key in own if key not in weights),
        unexpected=tuple(key for key in weights if key not in own),
        mismatched=tuple(
            f"{key} {tuple(weights[key].shape)} -> {tuple(own[key].shape)}"
            for key in own
            if key in mismatched
        ),
    )
