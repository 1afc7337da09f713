"""The pipeline of an exported model: device stages and the family's host steps between them.

A family's `om` module has `pipeline(meta) -> tuple[Step, ...]`. Inference (`staged_om.session`) and the rungs of
`make om-compare` (PyTorch's wrappers, ONNX Runtime) run the same steps; only who runs a device stage differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(kw_only=True)
class Detections:
    """What was found in one picture, best first.

    Attributes
    ----------
    boxes
        float32 [N, 4]: x1, y1, x2, y2 in the picture's pixels.
    scores
        float32 [N].
    labels
        int64 [N]: indices into `Meta.classes`.
    masks
        N masks of the whole picture as COCO RLE (`{"size": [height, width], "counts": bytes}`); empty without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class Batch:
    """The pictures of one pass through the pipeline.

    Attributes
    ----------
    pictures
        uint8 [height, width, 3], BGR as OpenCV reads them; at most `Meta.batch`; the rest of the batch is padding.
    values
        What steps hand to each other by name: inputs of device stages, outputs that a host step reads (float32), and
        whatever host steps keep for a later one.
    detections
        One for each picture, after the last step.
    """

    pictures: list[np.ndarray]
    values: dict[str, Any] = field(default_factory=dict)
    detections: list[Detections] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DeviceStep:
    """Run the stage of this name: one execution of its OM."""

    stage: str


@dataclass(frozen=True, kw_only=True)
class HostStep:
    """Run a function of the family on the host.

    Attributes
    ----------
    name
        Such as `preprocess`, `proposals`, `select`, `paste`: the row in tables of times.
    run
        Reads and writes `Batch.values`, in numpy; the last step of a pipeline writes `Batch.detections`.
    reads
        Device outputs that must be in `Batch.values` before it: only these are copied to the host.
    writes
        Device inputs that it leaves in `Batch.values`: these are copied to the device.
    """

    name: str
    run: Callable[[Batch], None]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


Step = DeviceStep | HostStep
