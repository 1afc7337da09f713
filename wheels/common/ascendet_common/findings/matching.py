"""Match detections with objects exactly as pycocotools does, but over arrays, at any overlap.

pycocotools loops over the pictures, classes, thresholds, detections and objects. Nearly all pairs of a detection and an
object of the same picture do not overlap; here only the others are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ascendet_common.findings.inputs import MOST, Evaluation, Flags, Floats, Ints

# TIDE's two thresholds: an object counts as found from IOU on; below BACKGROUND a detection has nothing to do with it.
IOU = 0.5
BACKGROUND = 0.1


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The pairs of a detection and an object in the same picture that overlap by `BACKGROUND` or more.

    They are sorted by detection (the best score of a picture first), then by overlap, the best one first. All arrays
    have shape (n,).

    found, truth
        Indices of detections and objects.
    iou
        Intersection over union; for a crowd region the share of the detection that lies within it, as in COCO.
    same
        Whether both are of the same class.
    crowd
        Whether the object is a crowd region.
    """

    found: Ints
    truth: Ints
    iou: Floats
    same: Flags
    crowd: Flags

    def where(self, chosen: Flags) -> Pairs:
        """Return a part of the pairs."""
        parts = {name: getattr(self, name)[chosen] for name in ("found", "truth", "iou", "same", "crowd")}
        return Pairs(**parts)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """What each detection is at one threshold.

    truth
        Shape (detections,): the object that it finds, -1 for none.
    iou
        Shape (detections,): the overlap with that object, 0 for none.
    ignored
        Shape (detections,): whether it counts neither as right nor as wrong: it lies in a crowd region of its class, or
        is beyond the `MOST` best ones of its class in its picture.
    """

    truth: Ints
    iou: Floats
    ignored: Flags


def beyond(evaluation: Evaluation) -> Flags:
    """Return which detections COCO's evaluation does not look at: all but the `MOST` best of a class in a picture."""
    found = evaluation.found
    group = found.image * len(evaluation.classes) + found.category
    order = np.lexsort((-found.score, group))  # stable: of equal scores the first one in the file
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    rank = np.empty(len(found), np.int64)
    rank[order] = np.arange(len(found)) - np.repeat(starts, np.diff(starts, append=len(found)))
    return rank >= MOST


def pair(evaluation: Evaluation, kind: str) -> Pairs:
    """Return the pairs that overlap, between boxes ("bbox") or masks ("segm")."""
    truth, found = evaluation.truth, evaluation.found
    count = len(evaluation.images)
    objects = _rows_of(truth.image, count, np.arange(len(truth)))
    detections = _rows_of(found.image, count, -found.score)
    parts: list[tuple[Ints, Ints, Floats]] = []
    for image in range(count):
        there, here = objects[image], detections[image]
        if not len(there) or not len(here):
            continue
        crowd = truth.crowd[there].astype(np.uint8).tolist()
        if kind == "bbox":
            iou = coco_mask.iou(found.box[here], truth.box[there], crowd)
        else:
            assert found.masks is not None
            assert truth.masks is not None
            iou = coco_mask.iou([found.masks[at] for at in here], [truth.masks[at] for at in there], crowd)
        rows, columns = np.nonzero(iou >= BACKGROUND)
        parts.append((here[rows], there[columns], iou[rows, columns]))
    if not parts:
        none = np.zeros(0, np.int64)
        return Pairs(found=none, truth=none, iou=none.astype(float), same=none > 0, crowd=none > 0)
    left, right, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
    place = np.empty(len(found), np.int64)  # of each detection in the order of matching
    place[np.concatenate(detections)] = np.arange(len(found))
    # Of equal overlaps pycocotools takes the object that comes last.
    order = np.lexsort((-right, -overlap, place[left]))
    left, right, overlap = left[order], right[order], overlap[order]
    same = found.category[left] == truth.category[right]
    return Pairs(found=left, truth=right, iou=overlap, same=same, crowd=truth.crowd[right])


def _rows_of(image: Ints, count: int, key: npt.NDArray[np.number]) -> list[Ints]:
    """Return the indices of each of `count` pictures, sorted by a key."""
    order = np.lexsort((key, image))
    return np.split(order, np.searchsorted(image[order], np.arange(1, count)))


def match(evaluation: Evaluation, pairs: Pairs, iou: float, out: Flags | None = None) -> Matches:
    """Match as COCO's evaluation does: the best detection first, each with the object of its class it overlaps most.

    Parameters
    ----------
    evaluation, pairs
        What was evaluated, and `pair` of it.
    iou
        The lowest overlap that counts.
    out
        Shape (detections,): `beyond(evaluation)`, where the caller has it.
    """
    out = beyond(evaluation) if out is None else out
    close = pairs.where(pairs.same & (pairs.iou >= min(iou, 1 - 1e-10)) & ~out[pairs.found])
    count = len(evaluation.found)
    truth, best = greedy(close.where(~close.crowd), count)
    crowded = np.zeros(count, bool)
    crowded[close.found[close.crowd]] = True
    return Matches(truth=truth, iou=best, ignored=out | (crowded & (truth < 0)))


def greedy(pairs: Pairs, count: int, taken: set[int] | None = None) -> tuple[Ints, Floats]:
    """Give each of `count` detections, in the order of the pairs, the first of its objects that no other one has.

    Returns
    -------
    truth, iou
        Shape (count,) each: the object or -1, and the overlap or 0.
    """
    truth, best = np.full(count, -1, np.int64), np.zeros(count)
    taken = set() if taken is None else taken
    last = -1
    for one, other, overlap in zip(
        pairs.found.tolist(), pairs.truth.tolist(), pairs.iou.tolist(), strict=True
    ):
        if one != last and other not in taken:
            truth[one], best[one] = other, overlap
            taken.add(other)
            last = one
    return truth, best
