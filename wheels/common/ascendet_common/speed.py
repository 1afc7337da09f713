"""Measure how fast a model detects: what a family's `speed` does, whatever its framework.

`measure` writes `speed.json`. Times are milliseconds by stage (`ascendet_common.watch.STAGES`) and in all (`total`),
each stage with the device's work that it started; memory is bytes of the device. Batch size 1, as in the port reports.

fixed
    One picture, scaled to `width` x `height`: `first_call`, in which a device compiles; `steady`, the distribution of
    the calls after two more that are not counted; `objects`, how many the last call found; `memory`.
pictures
    All pictures, each once, in their own sizes, after `fixed`: `times`, the distribution of all of them, with what a
    device compiles for new sizes; `memory`; and `calls`, for each its `width`, `height`, `objects` and `milliseconds`.

A distribution has `calls`, `p50` and `p90` of the milliseconds, and `images_per_second`. `memory` is null without an
NPU, else the most that was `allocated` for tensors, and `reserved` by the allocator, since `fixed` or `pictures` began.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from ascendet_common import progress
from ascendet_common.data import DataError, find_split, read
from ascendet_common.detect import Detector
from ascendet_common.device import has_npu
from ascendet_common.images import Pixels, decode, printable
from ascendet_common.images import read as read_picture
from ascendet_common.watch import Watch, distribution, with_total

FILE = "speed.json"
SIZE = (640, 427)  # width and height in pixels of the picture that the port reports measure with
# `fixed` is measured until ten seconds are over, at least ten and at most a hundred times.
_SECONDS, _LEAST, _MOST = 10.0, 10, 100
_WARM_UP = 2  # calls after the first one that are not counted
_EVERY = 5.0  # seconds between two rows of progress


def first_pictures(root: Path, count: int) -> list[str]:
    """Return the files of the first pictures of a data set's validation split, in the order of its annotations.

    Raises
    ------
    DataError
        The split is missing, cannot be read, or has no pictures.
    """
    split = find_split(root, "val")
    file = root / "annotations" / f"instances_{split}.json"
    try:
        names = [image["file_name"] for image in read(file)["images"][:count]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is no COCO instances file: {error!r}") from error
    if not names:
        raise DataError(f"{file} has no images")
    return [str(root / split / name) for name in names]


def measure(detector: Detector, files: Sequence[str], out: Path) -> dict[str, Any]:
    """Measure a model that has not detected anything yet, write `out`/speed.json, and return its content.

    Parameters
    ----------
    detector
        Only `detect` and `synchronize` are used.
    files
        Pictures; the first one is also that of `fixed`.
    out
        A folder.

    Raises
    ------
    ImageError
        A picture is damaged or missing.
    """
    content = {"fixed": _measure_fixed(detector, files[0]), "pictures": _measure_pictures(detector, files)}
    (out / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _measure_fixed(detector: Detector, file: str) -> dict[str, Any]:
    width, height = SIZE
    scaled = cv2.resize(read_picture(file), SIZE, interpolation=cv2.INTER_LINEAR)
    encoded = cv2.imencode(".jpg", scaled)[1].tobytes()  # `read` decodes it, as it does a file

    _forget_peak()
    calls: list[dict[str, float]] = []
    start = shown = time.monotonic()
    while len(calls) < 1 + _WARM_UP + _LEAST or (
        len(calls) < 1 + _WARM_UP + _MOST and time.monotonic() - start < _SECONDS
    ):
        _, milliseconds, objects = _detect(detector, functools.partial(decode, encoded), file)
        calls.append(milliseconds)
        if len(calls) <= 1 + _WARM_UP:
            start = time.monotonic()
        if len(calls) == 1 or time.monotonic() - shown > _EVERY:
            shown = time.monotonic()
            text = f"{width} x {height}: {sum(milliseconds.values()):.0f} ms"
            progress.write("speed", step=len(calls), text=text)
    return {
        "width": width,
        "height": height,
        "first_call": with_total(calls[0]),
        "steady": distribution(calls[1 + _WARM_UP :]),
        "objects": objects,
        "memory": _peak(),
    }


def _measure_pictures(detector: Detector, files: Sequence[str]) -> dict[str, Any]:
    _forget_peak()
    calls: list[dict[str, Any]] = []
    shown = time.monotonic()
    for file in files:
        pixels, milliseconds, objects = _detect(detector, read_picture, file)
        height, width = pixels.shape[:2]
        calls.append(
            {"width": width, "height": height, "objects": objects, "milliseconds": with_total(milliseconds)}
        )
        if time.monotonic() - shown > _EVERY or len(calls) == len(files):
            shown = time.monotonic()
            text = f"{width} x {height}: {calls[-1]['milliseconds']['total']:.0f} ms"
            progress.write("speed", step=len(calls), of=len(files), text=text)
    return {
        "times": distribution([call["milliseconds"] for call in calls]),
        "memory": _peak(),
        "calls": calls,
    }


def _detect(
    detector: Detector, read_pixels: Callable[[str], Pixels], file: str
) -> tuple[Pixels, dict[str, float], int]:
    """Return a picture's pixels, the milliseconds of all stages, and how many objects were found."""
    watch = Watch(detector.synchronize)
    with watch("read"):
        pixels = read_pixels(file)
    found = detector.detect(pixels, printable(file), watch)
    return pixels, watch.spent, len(found)


# -- the device's memory --


def _forget_peak() -> None:
    if has_npu():
        torch.npu.reset_peak_memory_stats()


def _peak() -> dict[str, int] | None:
    """Return the most bytes that tensors had and that the allocator held since `_forget_peak`."""
    if not has_npu():
        return None
    return {"allocated": torch.npu.max_memory_allocated(), "reserved": torch.npu.max_memory_reserved()}
