"""The first rung: PyTorch's model on the CPU, exactly as the family's `infer` program runs it."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from ascendet_common.watch import Watch

from staged_om.host import Detections
from staged_om.meta import Meta


def open_detector(meta: Meta) -> Callable[[np.ndarray], Detections]:
    """Return the detector of CHECKPOINT; MODEL, DATASET and WORK_DIR are read as `make infer` reads them.

    A family whose `infer` pads pictures otherwise than its export, which changes results, has the model itself at the
    exported size as `export.open_detector(meta, checkpoint)`.
    """
    _stay_on_the_cpu()
    labels = {name: label for label, name in enumerate(meta.classes)}
    export = _module(meta, "export")
    if hasattr(export, "open_detector"):
        at_size = export.open_detector(meta, os.environ["CHECKPOINT"])
        return lambda picture: from_results(at_size(picture), labels)
    launch, infer = _module(meta, "launch"), _module(meta, "infer")
    detector = infer.build_detector(launch.load_config(launch.parser("").parse_args([])))

    def detect(picture: np.ndarray) -> Detections:
        found = detector.detect(picture, "picture", Watch(detector.synchronize))
        return from_results(found, labels)

    return detect


def has_model(meta: Meta) -> bool:
    """Return whether there is a model at the exported size: a ViT has positions of one size, which others resize.

    A family whose models do not take every size says so by `export.has_model(meta)`.
    """
    export = _module(meta, "export")
    return bool(export.has_model(meta)) if hasattr(export, "has_model") else True


def torch_modules(meta: Meta) -> dict[str, Callable[..., Any]]:
    """Return the modules that were exported, by stage, with the weights of CHECKPOINT."""
    _stay_on_the_cpu()
    modules: dict[str, Callable[..., Any]] = _module(meta, "export").torch_stages(
        meta, os.environ["CHECKPOINT"]
    )
    return modules


def from_results(found: list[dict[str, Any]], labels: dict[str, int]) -> Detections:
    """Return what a family's `detect` returns for a picture, best first, in the form of the pipeline's detections."""
    boxes = np.array([one["bbox"] for one in found], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes=boxes.astype(np.float32),
        scores=np.array([one["score"] for one in found], dtype=np.float32),
        labels=np.array([labels[one["category"]] for one in found], dtype=np.int64),
        masks=[
            {
                "size": list(one["segmentation"]["size"]),
                "counts": one["segmentation"]["counts"].encode(),
            }
            for one in found
            if "segmentation" in one
        ],
    )


def _stay_on_the_cpu() -> None:
    """Hide the NPUs from PyTorch in this process: frameworks take them as soon as they are available.

    torch_npu itself must be there, because operators that were compiled against it do not load without its libraries.
    """
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    import torch

    with contextlib.suppress(ImportError):
        import torch_npu  # noqa: F401

        torch.npu.is_available = lambda: False


def _module(meta: Meta, name: str) -> ModuleType:
    return importlib.import_module(f"{meta.family}.{name}")
