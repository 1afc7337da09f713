"""Non-maximum suppression in numpy, with the decisions of mmcv's and torchvision's kernels on a CPU, bit by bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# Boxes per step: so many that numpy's calls cost little, so few that little is compared for nothing at the end.
_STEP = 256


def suppress(boxes: Floats, overlap: float, limit: int, groups: Integers | None = None) -> Integers:
    """Return which boxes stay, the best first, at most `limit`.

    A box goes if its IoU with a better one that stays is above `overlap`. The boxes are taken in steps, best first,
    and the work ends when `limit` is reached.

    Parameters
    ----------
    boxes
        float32 [n, 4], x0 y0 x1 y1, by falling score; boxes that must not meet are shifted apart, as mmdet and
        torchvision do, because float32 rounds an IoU differently elsewhere.
    overlap
        mmcv compares with a float32, which numpy makes of a float; torchvision with a double: give a np.float64.
    groups
        int64 [n]: boxes of different groups never overlap; they are not compared. This saves time and changes nothing.
    """
    if groups is None:
        groups = np.zeros(len(boxes), np.int64)
    sides = np.concatenate([boxes.T, [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])]])
    kept: dict[int, Integers] = {}
    count = 0
    for start in range(0, len(boxes), _STEP):
        if count >= limit:
            break
        step = groups[start : start + _STEP]
        for group in np.unique(step).tolist():
            new = np.flatnonzero(step == group) + start
            before = kept.get(group, new[:0])
            stay = new[_staying(sides, before, new, overlap)]
            kept[group] = np.concatenate([before, stay])
            count += len(stay)
    found = np.sort(np.concatenate(list(kept.values()))) if kept else np.zeros(0, np.int64)
    return found[:limit]


def _staying(sides: Floats, before: Integers, new: Integers, overlap: float) -> npt.NDArray[np.bool_]:
    """Return which of the `new` boxes stay beside those that stayed `before`."""
    first = sides[:, np.concatenate([before, new])][:, :, None]
    second = sides[:, new][:, None]
    across = np.minimum(first[2], second[2])
    across -= np.maximum(first[0], second[0])
    np.maximum(across, 0, out=across)
    down = np.minimum(first[3], second[3])
    down -= np.maximum(first[1], second[1])
    np.maximum(down, 0, out=down)
    across *= down
    union = first[4] + second[4]
    union -= across
    with np.errstate(invalid="ignore"):  # two boxes without area: no number, which is above nothing
        across /= union
    over = across > overlap
    stay: npt.NDArray[np.bool_] = ~over[: len(before)].any(axis=0)
    among = np.triu(over[len(before) :], 1)
    among[~stay] = False
    for row in np.flatnonzero(among.any(axis=1)).tolist():
        if stay[row]:
            stay &= ~among[row]
    return stay
