"""AP of detections, as `make eval` measures it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ascendet_common import coco

from staged_om.host import Detections
from staged_om.meta import Meta

KINDS = ("bbox", "segm")


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


@dataclass(kw_only=True)
class Truth:
    """What AP is measured against: a COCO instances file's content, and the id of each compared picture in it."""

    annotations: dict[str, Any]
    image_ids: list[Any] = field(default_factory=list)

    def score(self, found: Sequence[Detections], meta: Meta) -> dict[str, float]:
        """Return the AP of detections in the compared pictures."""
        return average_precision(self.annotations, coco_results(found, self.image_ids, meta), self.image_ids)
