"""Masks as compressed RLEs, from all forms that COCO's files have, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ascendet_common.errors import RunError

Json = dict[str, Any]

_BATCH = 20_000  # masks that are checked at a time


class FindingsError(RunError):
    """A file of an evaluation cannot be used; the message names it."""


def shorten(text: str) -> str:
    """Return a text that is short enough for a message."""
    return text if len(text) <= 120 else f"{text[:119]}…"


def compress(items: Sequence[Json], images: Iterator[Json], file: Path) -> list[Json]:
    """Return the masks of objects or detections as compressed RLEs.

    Parameters
    ----------
    items
        Their `segmentation` is polygons, an uncompressed RLE or a compressed one.
    images
        COCO's entry of each one's picture.
    file
        What messages name.

    Raises
    ------
    FindingsError
        A mask is none of COCO's, or its runs do not add up to its size.
    """
    masks = []
    for item, image in zip(items, images, strict=True):
        mask = item["segmentation"]
        try:
            if isinstance(mask, list):
                mask = coco_mask.merge(coco_mask.frPyObjects(mask, image["height"], image["width"]))
            elif isinstance(mask["counts"], list):
                mask = coco_mask.frPyObjects(mask, *mask["size"])
            height, width = mask["size"]
            fine = height * width > 0 and isinstance(mask["counts"], str | bytes)
        except (KeyError, TypeError, ValueError, IndexError):
            fine = False
        if not fine:
            raise FindingsError(
                f"{file}: a mask is none of COCO's: {shorten(json.dumps(item['segmentation']))}"
            )
        masks.append(mask)
    for start in range(0, len(masks), _BATCH):
        broken = np.flatnonzero(~are_whole(masks[start : start + _BATCH]))
        if broken.size:
            shown = shorten(json.dumps(items[start + int(broken[0])]["segmentation"]))
            raise FindingsError(f"{file}: a mask's runs do not add up to its size: {shown}")
    return masks


def are_whole(masks: Sequence[Json]) -> npt.NDArray[np.bool_]:
    """Return which compressed RLEs' runs add up to their size, shape (n,): pycocotools reads beyond the end of others.

    The text is a row of numbers, five bits in a character (ASCII 48 to 111), the lowest first; the sixth bit says that
    the number goes on, the fifth of its last character that it is negative. From the fourth number on they are
    differences from the run before the previous one, so that each counts again in every second run after it.

    >>> are_whole([{"size": [2, 3], "counts": "132"}, {"size": [2, 3], "counts": "13"}]).tolist()
    [True, False]
    """
    texts = [mask["counts"].encode() if isinstance(mask["counts"], str) else mask["counts"] for mask in masks]
    lengths = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return lengths > 0
    owner = np.repeat(np.arange(len(masks)), lengths)
    wrong = (codes < 0) | (codes > 63)
    final = np.cumsum(lengths[lengths > 0]) - 1
    wrong[final] |= codes[final] & 32 > 0  # a number that goes on where its text ends
    # Numbers: where they begin and end, and each character's place in its own.
    ends = np.flatnonzero((codes & 32 == 0) | (np.diff(owner, append=-1) != 0))
    begins = np.append(0, ends[:-1] + 1)
    place = np.minimum(np.arange(len(codes)) - np.repeat(begins, ends - begins + 1), 11)
    numbers = np.add.reduceat((codes & 31) << (5 * place), begins)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * place[ends] + 5), 0)
    # How many runs each number counts in.
    owns = owner[begins]
    count = np.bincount(owns, minlength=len(masks))
    at = np.arange(len(owns)) - np.repeat(np.cumsum(count) - count, count)
    times = np.where(at == 0, 1, (count[owns] - 1 - at) // 2 + 1)
    total = np.zeros(len(masks), np.int64)
    np.add.at(total, owns, numbers * times)
    fine = total == np.array([mask["size"][0] * mask["size"][1] for mask in masks])
    fine[owner[wrong]] = False
    return np.asarray(fine & (lengths > 0))
