"""Which detections of two paths are the same object, and how far they are from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from staged_om.host import Detections

SAME_OBJECT = 0.5  # IoU of boxes from which on two detections of a class are a pair, as in COCO's AP50


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two detections of one object.

    Attributes
    ----------
    om, pytorch
        Their indices.
    iou
        Overlap of the boxes.
    box
        The largest difference of a coordinate, in pixels.
    score
        The OM's score minus PyTorch's.
    mask
        Overlap (IoU) of the masks; None without masks.
    """

    om: int
    pytorch: int
    iou: float
    box: float
    score: float
    mask: float | None


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The pairs of one picture, and the indices of what has no partner."""

    pairs: tuple[Pair, ...] = ()
    only_om: tuple[int, ...] = ()
    only_pytorch: tuple[int, ...] = ()


def match(om: Detections, pytorch: Detections) -> Matched:
    """Return which detections of the two paths are the same object.

    Greedy by score: the OM's best detection first takes the free one of PyTorch with its label that it overlaps most,
    if the overlap is at least SAME_OBJECT.
    """
    overlaps = box_iou(om.boxes, pytorch.boxes)
    free = np.ones(len(pytorch.scores), dtype=bool)
    pairs, alone = [], []
    for index in map(int, np.argsort(-om.scores, kind="stable")):
        candidates = np.where(free & (pytorch.labels == om.labels[index]), overlaps[index], -1.0)
        if not candidates.size or (best := int(candidates.argmax()), candidates.max())[1] < SAME_OBJECT:
            alone.append(index)
            continue
        free[best] = False
        pairs.append(
            Pair(
                om=index,
                pytorch=best,
                iou=float(overlaps[index, best]),
                box=float(np.abs(om.boxes[index] - pytorch.boxes[best]).max()),
                score=float(om.scores[index]) - float(pytorch.scores[best]),
                mask=_mask_iou(om, pytorch, index, best),
            )
        )
    return Matched(
        pairs=tuple(pairs), only_om=tuple(alone), only_pytorch=tuple(map(int, np.flatnonzero(free)))
    )


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the overlaps (intersection over union) [N, M] of boxes [N, 4] and [M, 4]; 0 where both are empty."""
    first, second = (one.reshape(-1, 4).astype(np.float64) for one in (first, second))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(one[:, 2:] - one[:, :2], 0, None).prod(axis=1) for one in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    ratio: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio


def _mask_iou(om: Detections, pytorch: Detections, mine: int, theirs: int) -> float | None:
    if not (om.masks and pytorch.masks):
        return None
    pair = [om.masks[mine], pytorch.masks[theirs]]
    if not any(coco_mask.area(pair)):
        return 1.0  # two empty masks are equal
    return float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0])


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """Pairs of all pictures from a score on: how many, and the largest differences.

    A detection counts if its score, or its partner's, is at least the lowest score. `unmatched` is the share of those
    without a partner among all of both paths. `box` is in pixels; `mask` is the smallest overlap, 1 without masks.
    `box_99`, `score_99` and `mask_99` leave out the worst pair of each hundred: where two boxes of an object are nearly
    equal, a last bit decides which of them suppression keeps.
    """

    count: int
    only_om: int
    only_pytorch: int
    unmatched: float
    box: float
    box_99: float
    box_mean: float
    score: float
    score_99: float
    score_mean: float
    mask: float
    mask_99: float
    mask_mean: float


def summarize(
    om: Sequence[Detections], pytorch: Sequence[Detections], found: Sequence[Matched], lowest: float
) -> PairSummary:
    """Return the largest differences of the pairs in all pictures."""
    pairs: list[Pair] = []
    alone = [0, 0]
    for mine, theirs, one in zip(om, pytorch, found, strict=True):
        pairs += [
            pair for pair in one.pairs if max(mine.scores[pair.om], theirs.scores[pair.pytorch]) >= lowest
        ]
        alone[0] += sum(mine.scores[index] >= lowest for index in one.only_om)
        alone[1] += sum(theirs.scores[index] >= lowest for index in one.only_pytorch)
    everything = 2 * len(pairs) + sum(alone)
    boxes = np.array([pair.box for pair in pairs] or [0.0])
    scores = np.abs([pair.score for pair in pairs] or [0.0])
    masks = np.array([pair.mask for pair in pairs if pair.mask is not None] or [1.0])
    return PairSummary(
        count=len(pairs),
        only_om=int(alone[0]),
        only_pytorch=int(alone[1]),
        unmatched=sum(alone) / everything if everything else 0.0,
        box=float(boxes.max()),
        box_99=float(np.quantile(boxes, 0.99, method="higher")),
        box_mean=float(boxes.mean()),
        score=float(scores.max()),
        score_99=float(np.quantile(scores, 0.99, method="higher")),
        score_mean=float(scores.mean()),
        mask=float(masks.min()),
        mask_99=float(np.quantile(masks, 0.01, method="lower")),
        mask_mean=float(masks.mean()),
    )
