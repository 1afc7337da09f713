"""Masks in boxes as RLE of the whole picture, without painting the picture."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


def encode(
    masks: Floats, boxes: Floats, height: int, width: int, threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Return the RLE of a picture for each mask, pasted into its box as mmdet's and detectron2's `paste` do.

    A pixel belongs to the object if the mask, interpolated bilinearly at the pixel's centre and 0 outside of the mask,
    is at least `threshold`. Along a column of pixels the interpolated mask is a polyline over the mask's rows, so the
    runs of a column follow from where that crosses the threshold: the work is columns times the mask's rows, whatever
    the height of the boxes is. Where a side of a box is 0, both projects read the middle of the mask, in the pixels up
    to one beside the box.

    Parameters
    ----------
    masks
        float32 [n, side, side]: probabilities.
    boxes
        float32 [n, 4]: x0 y0 x1 y1 in the picture.
    height, width
        Of the picture, px.
    threshold
        Above 0: the polyline begins and ends outside.
    """
    count, side = len(masks), masks.shape[-1]
    if not count:
        return []
    x0, y0, x1, y1 = boxes.astype(np.float64).T
    flat, narrow = y1 == y0, x1 == x0
    # The columns of pixels that both projects compute: at most one beside the box.
    first = (np.floor(x0) - 1).clip(0, width).astype(np.int64)
    columns = ((np.ceil(x1) + 1).clip(0, width).astype(np.int64) - first).clip(0)
    owner = np.repeat(np.arange(count), columns)
    x = np.arange(len(owner)) + np.repeat(first - (np.cumsum(columns) - columns), columns)
    span = np.where(narrow, 1, x1 - x0)
    at = (x + 0.5 - x0[owner]) * (side / span)[owner] - 0.5
    if narrow.any():
        # A pixel's centre exactly on the box is 0 / 0 there, and no number is outside.
        middle = np.where(x + 0.5 == x0[owner], -1.0, (side - 1) / 2)
        at = np.where(narrow[owner], middle, at)
    at = at.clip(-1, side)
    before = np.floor(at).clip(-1, side - 1)
    weight = (at - before).astype(np.float32)[:, None]
    # Columns of the masks as rows, with a border of zeros; what is no number is 0, too.
    padded = np.zeros((count, side + 2, side + 2), np.float32)
    np.fmax(masks.transpose(0, 2, 1), 0, out=padded[:, 1:-1, 1:-1])
    padded = padded.reshape(-1, side + 2)
    line = before.astype(np.int64) + 1 + owner * (side + 2)
    profile = padded[line]
    profile += (padded[line + 1] - profile) * weight

    inside = profile >= np.float32(threshold)
    crossings = np.flatnonzero((inside[:, 1:] != inside[:, :-1]).reshape(-1))
    line, segment = np.divmod(crossings, side + 1)
    low, high = profile[line, segment].astype(np.float64), profile[line, segment + 1].astype(np.float64)
    of = owner[line]
    # The border of zeros is row 0: the mask's first row, 1, is half a row below the box's upper edge.
    y = (segment - 0.5 + (threshold - low) / (high - low)) * ((y1 - y0) / side)[of] + y0[of] - 0.5
    # Every column begins and ends outside, so crossings alternate: into the object, out of it.
    begin = np.ceil(y[0::2]).clip(0, height).astype(np.int64)
    end = (np.floor(y[1::2]) + 1).clip(0, height).astype(np.int64)
    of, column = of[0::2], x[line[0::2]]
    if flat.any():
        begin, end, of, column = _with_flat(
            (begin, end, of, column), (flat, y0, owner, x), profile, threshold, height
        )
    there = end > begin
    begin, end = (begin + column * height)[there], (end + column * height)[there]
    return _runs(begin, end, np.searchsorted(of[there], np.arange(count + 1)), (height, width))


def _with_flat(
    runs: tuple[Integers, ...], places: tuple[Any, ...], profile: Floats, threshold: float, height: int
) -> tuple[Integers, ...]:
    """Return the runs (begin, end, mask, column) with those of boxes without height in the place of their crossings."""
    flat, y0, owner, x = places
    side = profile.shape[1] - 2
    middle = (profile[:, (side + 1) // 2] + profile[:, side // 2 + 1]) / 2
    chosen = np.flatnonzero(flat[owner] & (middle >= np.float32(threshold)))
    of = owner[chosen]
    top, bottom = (np.floor(y0) - 1).clip(0, height), (np.ceil(y0) + 1).clip(0, height)
    # Two runs, around the row whose centre is exactly on the box: 0 / 0 there, and no number is outside.
    hole = np.where(y0 % 1 == 0.5, np.floor(y0), bottom).clip(top, bottom)
    parts = [
        [top[of], hole[of], of, x[chosen]],
        [(hole + 1).clip(top, bottom)[of], bottom[of], of, x[chosen]],
    ]
    others = ~flat[runs[2]]
    joined = [
        np.concatenate([run[others], *(part[index] for part in parts)]).astype(np.int64)
        for index, run in enumerate(runs)
    ]
    order = np.lexsort((joined[0], joined[3], joined[2]))
    begin, end, of, column = (one[order] for one in joined)
    return begin, end, of, column


def _runs(begin: Integers, end: Integers, parts: Integers, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return COCO's RLE for runs of pixels, column by column; mask k has the runs `parts[k]` to `parts[k + 1]`."""
    pixels = size[0] * size[1]
    counts = []
    for first, last in itertools.pairwise(parts.tolist()):
        starts, stops = begin[first:last], end[first:last]
        if len(starts):
            # A run to the bottom and one from the top of the next column are one.
            apart = starts[1:] > stops[:-1]
            starts, stops = starts[np.r_[True, apart]], stops[np.r_[apart, True]]
        edges = np.zeros(2 * len(starts) + 2, np.int64)
        edges[1:-1:2], edges[2:-1:2], edges[-1] = starts, stops, pixels
        lengths = np.diff(edges)
        counts.append(lengths if lengths[-1] or len(lengths) == 1 else lengths[:-1])
    return list(coco_mask.frPyObjects([{"size": list(size), "counts": one} for one in counts], *size))
