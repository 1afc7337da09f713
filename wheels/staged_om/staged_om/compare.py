"""Compare the detections of two paths: the port report's JSON, pairs by overlap, and the difference in AP.

The report counts detections and looks at their scores, so an object that moved, or was replaced by another one, is not
seen. Therefore pairs stand beside its JSON: each detection of the OM and the one of PyTorch that it overlaps.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from ascendet_common import coco
from pycocotools import mask as coco_mask

from staged_om.host import Detections
from staged_om.meta import Meta

SAME_OBJECT = 0.5  # IoU of boxes from which on two detections of a class are a pair, as in COCO's AP50
TOP = 10  # how many of PyTorch's final detections the report lists
KINDS = ("bbox", "segm")


# -- the report's JSON --


def report(
    om: Sequence[Detections], pytorch: Sequence[Detections], *, score_thr: float, device: str = "cpu"
) -> dict[str, Any]:
    """Return the report's `compare_with_pytorch`, with its keys in its order.

    Parameters
    ----------
    om, pytorch
        The detections of both paths in the same pictures. The report has one picture; of several, counts are sums, and
        the best detection of each label is kept in each picture.
    score_thr
        What remains after it is counted last; statistics and `final_detections_topk` are of these.
    device
        Where PyTorch computed.
    """
    mine, theirs = _count(om, score_thr), _count(pytorch, score_thr)
    final = sorted(
        (
            (float(one.scores[index]), number, index)
            for number, one in enumerate(pytorch)
            for index in _final(one, score_thr)
        ),
        key=lambda found: (-found[0], found[1:]),
    )
    return {
        "enabled": True,
        "pytorch_device": device,
        "dedup_policy": "keep_top1_per_label",
        "score_thr": score_thr,
        "om": mine,
        "pytorch": {
            **theirs,
            "final_detections_topk": [
                {
                    "bbox": [float(value) for value in pytorch[number].boxes[index]],
                    "score": score,
                    "label": int(pytorch[number].labels[index]),
                }
                for score, number, index in final[:TOP]
            ],
        },
        "delta": {key: mine[key] - theirs[key] for key in ("raw_count", "after_dedup", "after_score_thr")},
    }


def keep_top1_per_label(one: Detections) -> list[int]:
    """Return the indices of the best detection of each label, best first; of equal scores the first one is kept."""
    best: dict[int, int] = {}
    for index in np.argsort(-one.scores, kind="stable"):
        best.setdefault(int(one.labels[index]), int(index))
    return list(best.values())


def _final(one: Detections, score_thr: float) -> list[int]:
    return [index for index in keep_top1_per_label(one) if one.scores[index] >= score_thr]


def _count(all_found: Sequence[Detections], score_thr: float) -> dict[str, Any]:
    raw = sum(len(one.scores) for one in all_found)
    kept = sum(len(keep_top1_per_label(one)) for one in all_found)
    scores = [float(one.scores[index]) for one in all_found for index in _final(one, score_thr)]
    return {
        "raw_count": raw,
        "after_dedup": kept,
        "after_score_thr": len(scores),
        "dropped_by_dedup": raw - kept,
        "dropped_by_score_thr": kept - len(scores),
        "score_stats": {
            "max": max(scores, default=None),
            "mean": sum(scores) / len(scores) if scores else None,
        },
    }


# -- pairs --


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
    """

    count: int
    only_om: int
    only_pytorch: int
    unmatched: float
    box: float
    box_mean: float
    score: float
    score_mean: float
    mask: float
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
        box_mean=float(boxes.mean()),
        score=float(scores.max()),
        score_mean=float(scores.mean()),
        mask=float(masks.min()),
        mask_mean=float(masks.mean()),
    )


# -- AP --


def coco_results(found: Iterable[Detections], image_ids: Iterable[Any], meta: Meta) -> list[dict[str, Any]]:
    """Return detections as COCO results: `image_id`, `category_id`, `score`, `bbox` and, with masks, `segmentation`."""
    results = []
    for one, image in zip(found, image_ids, strict=True):
        for index, (x0, y0, x1, y1) in enumerate(one.boxes.tolist()):
            row: dict[str, Any] = {
                "image_id": image,
                "category_id": meta.category_ids[int(one.labels[index])],
                "score": float(one.scores[index]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            if one.masks:
                row["segmentation"] = {
                    "size": list(one.masks[index]["size"]),
                    "counts": one.masks[index]["counts"].decode(),
                }
            results.append(row)
    return results


def average_precision(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Sequence[Any]
) -> dict[str, float]:
    """Return the AP of boxes and, where there are masks, of masks; -1 if there is no object to measure on.

    Parameters
    ----------
    annotations, image_ids
        The content of a COCO instances file, and those of its images that count.
    results
        Of `coco_results`; as in `make eval`, the sizes of masks are the masks' own.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    kept = set(image_ids)
    truth, numbers, _ = coco.number(
        {
            **annotations,
            "images": [one for one in annotations["images"] if one["id"] in kept],
            "annotations": [one for one in annotations["annotations"] if one["image_id"] in kept],
        }
    )
    order = sorted(
        {one["id"] for one in annotations["categories"]}, key=lambda one: (isinstance(one, str), one)
    )
    categories = {one: number for number, one in enumerate(order, 1)}
    made = {}
    for kind in KINDS:
        mine = [
            {
                "image_id": numbers[one["image_id"]],
                "category_id": categories[one["category_id"]],
                "score": one["score"],
                **({"bbox": one["bbox"]} if kind == "bbox" else {"segmentation": one["segmentation"]}),
            }
            for one in results
            if kind == "bbox" or "segmentation" in one
        ]
        if not mine:
            # Without any result it is not known whether there would be masks.
            if kind == "bbox" or not results:
                made[kind] = 0.0 if truth["annotations"] else -1.0
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            objects = COCO(truth)
            evaluation = COCOeval_faster(objects, objects.loadRes(mine), kind)
            evaluation.run()
        made[kind] = float(evaluation.stats[0])
    return made


# -- all of it --


@dataclass(kw_only=True)
class Truth:
    """What AP is measured against: a COCO instances file's content, and the id of each compared picture in it."""

    annotations: dict[str, Any]
    image_ids: list[Any] = field(default_factory=list)

    def score(self, found: Sequence[Detections], meta: Meta) -> dict[str, float]:
        """Return the AP of detections in the compared pictures."""
        return average_precision(self.annotations, coco_results(found, self.image_ids, meta), self.image_ids)


def compare(
    om: Sequence[Detections],
    pytorch: Sequence[Detections],
    *,
    names: Sequence[str],
    meta: Meta,
    score_thr: float,
    truth: Truth | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the whole comparison as JSON values.

    Beside the report's `compare_with_pytorch` there are `pairs` (all detections, and those from `score_thr` on),
    `AP` where there is a truth (`om`, `pytorch` and `difference`), and `pictures`: the same for each one, with its
    pairs and what has no partner.
    """
    matches = [match(mine, theirs) for mine, theirs in zip(om, pytorch, strict=True)]
    content: dict[str, Any] = {
        "compare_with_pytorch": report(om, pytorch, score_thr=score_thr, device=device),
        "pairs": {
            "all": asdict(summarize(om, pytorch, matches, 0.0)),
            "from_score_thr": asdict(summarize(om, pytorch, matches, score_thr)),
        },
    }
    if truth:
        mine, theirs = truth.score(om, meta), truth.score(pytorch, meta)
        content["AP"] = {
            "om": mine,
            "pytorch": theirs,
            "difference": {kind: mine[kind] - theirs[kind] for kind in mine.keys() & theirs.keys()},
        }
    content["pictures"] = [
        {
            "file": name,
            "compare_with_pytorch": report([mine], [theirs], score_thr=score_thr, device=device),
            "pairs": [
                asdict(pair)
                | {"label": meta.classes[int(mine.labels[pair.om])], "om_score": float(mine.scores[pair.om])}
                for pair in found.pairs
            ],
            "only_om": [_describe(mine, index, meta) for index in found.only_om],
            "only_pytorch": [_describe(theirs, index, meta) for index in found.only_pytorch],
        }
        for name, mine, theirs, found in zip(names, om, pytorch, matches, strict=True)
    ]
    return content


def _describe(one: Detections, index: int, meta: Meta) -> dict[str, Any]:
    return {
        "label": meta.classes[int(one.labels[index])],
        "score": float(one.scores[index]),
        "bbox": [float(value) for value in one.boxes[index]],
    }


def lost_pictures(om: Sequence[Detections], pytorch: Sequence[Detections], score_thr: float) -> list[int]:
    """Return the pictures in which the OM found nothing at all, but PyTorch something from the score on."""
    return [
        number
        for number, (mine, theirs) in enumerate(zip(om, pytorch, strict=True))
        if not len(mine.scores) and (theirs.scores >= score_thr).any()
    ]


def dump(content: Mapping[str, Any]) -> str:
    """Return a comparison as the text of its file."""
    return json.dumps(content, indent=1) + "\n"
