"""Measure areas and bounds of COCO masks without drawing them: polygons many at a time, run lengths one by one.

Run lengths count pixels column by column, alternately outside and inside. Their compressed form is that of COCO's
maskApi.c (`rleFrString`): each character from "0" on holds 5 bits, a sixth bit says that more characters follow, and
from the fourth number on, the difference to the number two places before is stored.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ascendet.data.annotation_rules import Findings

Floats = npt.NDArray[np.float64]
_NUMBERS = {int, float}
_BLOCK = 20_000  # number of objects whose polygons are measured at the same time
# A polygon with a smaller mean width than this, in pixels, may cover no pixel's centre; it is drawn to find out.
_THIN = 2.0
# Coordinates farther away than this, in picture sizes, are refused: COCO's mask code would visit all pixels on the way.
_FAR = 1.0


def numbers(values: object) -> array[float] | None:
    """Return a list's numbers, or None if it is no list, is empty, or holds anything other than finite numbers."""
    if type(values) is not list or not values or not set(map(type, values)) <= _NUMBERS:
        return None
    try:
        result = array("d", values)
    except OverflowError:
        return None
    total = sum(result)  # not finite if one of the numbers is not
    return result if total - total == 0 or bool(np.isfinite(result).all()) else None


def measure_masks(
    objects: Sequence[dict[str, Any]], sizes: Floats, findings: Findings
) -> tuple[Floats, Floats, list[str]]:
    """Return areas in pixels, shape (n,), bounds x1, y1, x2, y2, shape (n, 4), and the rule each mask breaks, or "".

    The bounds of an object without a mask are NaN. Polygons that cannot be drawn are removed from the objects, and flat
    lists of coordinates become lists of polygons. `sizes` are width and height of each object's picture, shape (n, 2).
    """
    areas, bounds = np.zeros(len(objects)), np.full((len(objects), 4), np.nan)
    rules: list[str] = []
    for start in range(0, len(objects), _BLOCK):
        part = slice(start, start + _BLOCK)
        rules += _measure_block(objects[part], sizes[part], areas[part], bounds[part], findings)
    return areas, bounds, rules


def _measure_block(
    objects: Sequence[dict[str, Any]], sizes: Floats, areas: Floats, bounds: Floats, findings: Findings
) -> list[str]:
    rules = [""] * len(objects)
    polygons: list[array[float]] = []
    owners: list[int] = []
    for index, entry in enumerate(objects):
        mask = entry.get("segmentation")
        if not mask:
            rules[index] = "mask-absent"
        elif type(mask) is dict:
            measured = measure_runs(mask, *map(int, sizes[index]))
            if isinstance(measured, str):
                rules[index] = measured
            else:
                areas[index], bounds[index] = measured
        elif found := _read_polygons(entry, findings):
            polygons += found
            owners += [index] * len(found)
        else:
            rules[index] = "mask-invalid"
    if polygons:
        _join_polygons(objects, sizes, polygons, np.array(owners), areas, bounds, rules, findings)
    return rules


def _read_polygons(entry: dict[str, Any], findings: Findings) -> list[array[float]]:
    """Return the coordinates of an object's polygons, without invalid ones."""
    mask = entry["segmentation"]
    if type(mask) is not list:
        return []
    if type(mask[0]) in _NUMBERS:
        mask = entry["segmentation"] = [mask]
        findings.add("mask-flat", entry.get("id"))
    polygons = [numbers(one) for one in mask]
    good = [one for one in polygons if one and len(one) >= 6 and len(one) % 2 == 0]
    if good and len(good) < len(mask):
        findings.add("polygon-invalid", entry.get("id"))
        entry["segmentation"] = [one.tolist() for one in good]
    return good


def _join_polygons(
    objects: Sequence[dict[str, Any]],
    sizes: Floats,
    polygons: list[array[float]],
    owners: npt.NDArray[np.int64],
    areas: Floats,
    bounds: Floats,
    rules: list[str],
    findings: Findings,
) -> None:
    """Write each object's area and bounds from its polygons; `owners` is the index of each polygon's object."""
    extent = measure_polygons(polygons, sizes[owners])
    for owner in np.unique(owners[extent.far]):
        near = np.flatnonzero((owners == owner) & ~extent.far)
        if len(near):
            objects[owner]["segmentation"] = [polygons[index].tolist() for index in near]
            findings.add("polygon-invalid", objects[owner].get("id"))
        else:
            rules[owner] = "mask-far"
    near = np.flatnonzero(~extent.far)
    if not len(near):
        return
    owners = owners[near]
    np.add.at(areas, owners, extent.area[near])
    indices, starts = np.unique(owners, return_index=True)
    bounds[indices, :2] = np.minimum.reduceat(extent.bounds[near, :2], starts)
    bounds[indices, 2:] = np.maximum.reduceat(extent.bounds[near, 2:], starts)
    thin = np.logical_and.reduceat(extent.thin[near], starts)
    inside = (bounds[indices, :2] >= 0).all(1) & (bounds[indices, 2:] <= sizes[indices]).all(1)
    for index in indices[thin | ~inside]:
        if not covers_a_pixel(objects[index]["segmentation"], *map(int, sizes[index])):
            rules[index] = "mask-empty"


@dataclass
class Extent:
    """The extents of masks: `area` in pixels, shape (n,); `bounds` x1, y1, x2, y2 in pixels, shape (n, 4).

    `far` says whether a polygon has points far from its picture, `thin` whether it may cover no pixel; shape (n,).
    """

    area: Floats
    bounds: Floats
    far: npt.NDArray[np.bool_]
    thin: npt.NDArray[np.bool_]


def measure_polygons(polygons: Sequence[array[float]], sizes: Floats) -> Extent:
    """Return the extent of each polygon; its area is computed by the shoelace formula.

    Parameters
    ----------
    polygons
        The coordinates x1, y1, x2, y2, … of each polygon, at least three points.
    sizes
        Width and height of each polygon's picture, shape (n, 2).
    """
    points = np.frombuffer(b"".join(polygons)).reshape(-1, 2)
    lengths = np.array([len(one) // 2 for one in polygons])
    starts = np.cumsum(lengths) - lengths
    following = np.arange(1, len(points) + 1)
    following[starts + lengths - 1] = starts
    x, y = points.T
    next_x, next_y = points[following].T
    area = np.abs(np.add.reduceat(x * next_y - next_x * y, starts)) / 2
    around = np.add.reduceat(np.hypot(next_x - x, next_y - y), starts)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    far = ((low < -_FAR * sizes) | (high > (1 + _FAR) * sizes)).any(1)
    return Extent(area, np.concatenate([low, high], 1), np.asarray(far), area < _THIN * around / 2)


def covers_a_pixel(polygons: list[list[float]], width: int, height: int) -> bool:
    """Return whether polygons cover a pixel of their picture when the evaluator draws them."""
    from faster_coco_eval import mask

    return bool(mask.area(mask.merge(mask.frPyObjects(polygons, height, width))))


def measure_runs(rle: dict[str, Any], width: int, height: int) -> str | tuple[float, list[float]]:
    """Return area and bounds of a mask of run lengths, or the rule that it breaks."""
    size = rle.get("size")
    if type(size) is not list or size != [height, width]:
        return "mask-size"
    counts = _runs(rle.get("counts"))
    if counts is None or (counts < 0).any() or int(counts.sum()) != width * height:
        return "mask-counts"
    ends = np.cumsum(counts)
    first, last = (ends - counts)[1::2], ends[1::2] - 1
    inside = last >= first
    first, last = first[inside], last[inside]
    if not len(first):
        return "mask-empty"
    # A run that continues in the next column touches top and bottom.
    tall = bool((first // height != last // height).any())
    top = 0 if tall else int((first % height).min())
    bottom = height if tall else int((last % height).max()) + 1
    left, right = int(first[0]) // height, int(last[-1]) // height + 1
    return float((last - first + 1).sum()), [left, top, right, bottom]


def _runs(counts: object) -> npt.NDArray[np.int64] | None:
    if isinstance(counts, str):
        return _decompress(counts)
    if type(counts) is not list or not counts or set(map(type, counts)) != {int}:
        return None
    try:
        runs = np.array(counts, dtype=np.int64)
    except OverflowError:
        return None
    return runs if runs.max() < 2**31 else None


def _decompress(text: str) -> npt.NDArray[np.int64] | None:
    """Return the run lengths that a compressed string holds, or None if it is invalid."""
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # a run length has at most 32 bits
        return None
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
