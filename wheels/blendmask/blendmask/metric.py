"""AP of boxes and masks while training, on exactly the images that were looked at."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ascendet_common.coco import Json, number
from ascendet_common.data import DataError
from detectron2.structures import Instances
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask


def describe(instances: Instances, image: Any, categories: Sequence[Any]) -> list[Json]:
    """Return an image's detections as COCO results with boxes and masks (compressed RLE).

    Parameters
    ----------
    instances
        What the model gives, on the host.
    image
        The image's id.
    categories
        The ids of the classes, by their numbers in the model.
    """
    masks = instances.pred_masks.numpy()
    rows = zip(
        instances.pred_boxes.tensor.tolist(),
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        (coco_mask.encode(np.asfortranarray(mask)) for mask in masks.view(np.uint8)),
        strict=True,
    )
    return [
        {
            "image_id": image,
            "category_id": categories[kind],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
            "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
        }
        for (x0, y0, x1, y1), score, kind, mask in rows
    ]


def average_precision(annotations: Path, images: Iterable[Any], results: Sequence[Json]) -> dict[str, float]:
    """Return COCO's AP as {"bbox": ..., "segm": ...}, 0 to 1; 0 where nothing was found.

    Parameters
    ----------
    annotations
        A COCO instances file.
    images
        The ids of the images that were looked at; no others are scored.
    results
        As from `describe`.

    Raises
    ------
    DataError
        There are results of images that the annotations do not have.
    """
    content = json.loads(annotations.read_text(encoding="utf-8"))
    wanted = set(images)
    content["images"] = [image for image in content["images"] if image["id"] in wanted]
    if strange := {result["image_id"] for result in results} - {image["id"] for image in content["images"]}:
        raise DataError(
            f"the annotations to evaluate with lack {len(strange)} images, such as {strange.pop()!r}"
        )
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in wanted]
    categories = {category["id"]: place for place, category in enumerate(content["categories"])}
    numbered, places, _ = number(content)
    numbers = [category["id"] for category in numbered["categories"]]
    found = [
        result
        | {"image_id": places[result["image_id"]], "category_id": numbers[categories[result["category_id"]]]}
        for result in results
    ]
    if not found:
        return {"bbox": 0.0, "segm": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # its tables
        truth = COCO(numbered)
        ap = {}
        for kind in ("bbox", "segm"):
            # With a box present, COCO's API takes the box's area for the mask's and sorts small from large by it.
            mine = [
                {key: value for key, value in one.items() if kind == "bbox" or key != "bbox"} for one in found
            ]
            evaluation = COCOeval_faster(truth, truth.loadRes(mine), kind)
            evaluation.run()
            ap[kind] = max(0.0, float(evaluation.stats[0]))
    return ap
