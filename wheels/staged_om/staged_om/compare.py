"""Compare the detections of two paths: the port report's JSON, pairs by overlap, and the difference in AP.

The report counts detections and looks at their scores, so an object that moved, or was replaced by another one, is not
seen. Therefore pairs stand beside its JSON: each detection of the OM and the one of PyTorch that it overlaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from staged_om.ap import Truth
from staged_om.host import Detections
from staged_om.meta import Meta
from staged_om.pairs import match, summarize

TOP = 10  # how many of PyTorch's final detections the report lists


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
