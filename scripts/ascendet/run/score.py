"""The one evaluator: COCO's 12 numbers for boxes and 12 for masks, from result files of any framework.

A program of its own, because it runs where faster-coco-eval is installed. It scores a folder that holds the files
IMAGES and PREDICTIONS, prints the numbers and stores them there as METRICS and CLASSES:

    python -m ascendet.run.score FOLDER

The numbers depend on no id: faster-coco-eval takes an object with the id 0 for one that was not found, loses all but
one of several that have the same id, and turns an image's id into a whole number. So it gets ids of ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

# `annotations`, the file that the images are from, and `images`, their ids.
IMAGES = "images.json"
# COCO's result format: image_id, category_id, score, bbox [x, y, width, height] and segmentation of every detection.
PREDICTIONS = "predictions.json"
METRICS = "metrics.json"
CLASSES = "classes.json"

# In pycocotools' order. A number is in [0, 1], or -1 where the annotations hold nothing to measure it on.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ROWS: dict[Literal["bbox", "segm"], str] = {"bbox": "boxes", "segm": "masks"}


class ScoreError(ValueError):
    """Predictions and annotations that do not belong together."""


def score(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """Return COCO's 12 numbers; see `evaluate`."""
    return evaluate(annotations, results, kind)[0]


def evaluate(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return COCO's 12 numbers, and the AP of every class by its name.

    What cannot count is said as a warning: objects and results of categories or images that are not listed, masks
    whose size is not their image's.

    Parameters
    ----------
    annotations
        A COCO instances file's content; ids may be numbers of any size or text.
    results
        COCO results: `image_id`, `category_id`, `score` and `bbox` [x, y, width, height] in pixels or
        `segmentation` (compressed RLE).
    kind
        What overlaps are measured between.

    Raises
    ------
    ScoreError
        There are results of images that the annotations do not have.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth_by_number, found = number(annotations, results)
    if kind == "segm":
        _warn_of_sizes(truth_by_number["images"], truth_by_number["annotations"], "objects")
        _warn_of_sizes(truth_by_number["images"], found, "results")
        # With a box present, COCO's API takes the box's area for the mask's and sorts small from large by it.
        found = [{key: value for key, value in result.items() if key != "bbox"} for result in found]
    truth = COCO(truth_by_number)
    evaluation = COCOeval_faster(truth, truth.loadRes(found), kind)
    evaluation.run()
    numbers = {name: float(value) for name, value in zip(NAMES, evaluation.stats[: len(NAMES)], strict=True)}
    names = {category["id"]: category["name"] for category in truth_by_number["categories"]}
    # Precision by (threshold, recall, class, area, most detections per image): all areas, most detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = {}
    for index, category in enumerate(evaluation.params.catIds):
        measured = precision[:, :, index][precision[:, :, index] > -1]
        classes[names[category]] = float(measured.mean()) if measured.size else -1.0
    return numbers, classes


def number(
    annotations: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and results with ids 1, 2, …; images and categories keep the order of their ids.

    That order decides which of two results of equal score comes first, so it stays what pycocotools has.
    """
    images = _numbers(image["id"] for image in annotations["images"])
    categories = _numbers(category["id"] for category in annotations["categories"])
    if strange := {result["image_id"] for result in results} - images.keys():
        raise ScoreError(
            f"there are results of {len(strange)} images that the annotations do not have, such as image "
            f"{json.dumps(min(strange, key=_order))}"
        )

    def renamed(items: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        known = [item for item in items if item["image_id"] in images and item["category_id"] in categories]
        if len(known) < len(items):
            warnings.warn(
                f"{len(items) - len(known)} of {len(items)} {what} do not count: the annotations list no such "
                "category or image",
                stacklevel=4,
            )
        return [
            item
            | {
                "id": one,
                "image_id": images[item["image_id"]],
                "category_id": categories[item["category_id"]],
            }
            for one, item in enumerate(known, 1)
        ]

    return annotations | {
        "images": [image | {"id": images[image["id"]]} for image in annotations["images"]],
        "categories": [one | {"id": categories[one["id"]]} for one in annotations["categories"]],
        "annotations": renamed(annotations["annotations"], "objects"),
    }, renamed(results, "results")


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    return {one: number for number, one in enumerate(sorted(set(ids), key=_order), 1)}


def _order(one: Any) -> tuple[bool, Any]:
    """Sort numbers before text."""
    return isinstance(one, str), one


def _warn_of_sizes(images: list[dict[str, Any]], items: list[dict[str, Any]], what: str) -> None:
    """Say what the evaluator counts as not overlapping, silently: masks of another size than their image."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    masks = [item for item in items if isinstance(item["segmentation"], dict)]
    if strange := sum(list(item["segmentation"]["size"]) != sizes[item["image_id"]] for item in masks):
        warnings.warn(
            f"{strange} of {len(items)} {what} have a mask of another size than their image", stacklevel=3
        )


def restrict(annotations: dict[str, Any], images: list[int]) -> dict[str, Any]:
    """Return the part of an instances file's content that is about these images."""
    kept = set(images)
    return annotations | {
        "images": [image for image in annotations["images"] if image["id"] in kept],
        "annotations": [item for item in annotations["annotations"] if item["image_id"] in kept],
    }


def class_table(classes: dict[str, dict[str, float]]) -> str:
    """Return AP of boxes and masks and the number of objects, class by class.

    >>> print(class_table({"star": {"objects": 7, "bbox": 0.5, "segm": -1.0}}))
    class    objects   boxes   masks
    star           7   0.500       -
    """
    width = max(len("class"), *map(len, classes)) + 2
    lines = [f"{'class':<{width}}{'objects':>9}{'boxes':>8}{'masks':>8}"]
    for name, row in classes.items():
        lines.append(f"{name:<{width}}{row['objects']:>9}{_cell(row['bbox']):>8}{_cell(row['segm']):>8}")
    return "\n".join(lines)


def table(numbers: dict[str, dict[str, float]]) -> str:
    """Return the 12 + 12 numbers in two rows; `-` where there is nothing to measure.

    >>> print(table({"bbox": {"AP": 0.5}}).splitlines()[1][:21])
    boxes    0.500      -
    """
    head = f"{'':7}" + "".join(f"{name:>7}" for name in NAMES)
    rows = [
        f"{_ROWS[cast(Literal['bbox', 'segm'], kind)]:<7}"
        + "".join(f"{_cell(values.get(name, -1.0)):>7}" for name in NAMES)
        for kind, values in numbers.items()
    ]
    return "\n".join([head, *rows])


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def score_folder(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return the numbers of boxes and masks, and those of every class with its number of objects.

    Raises
    ------
    ScoreError
        The annotations cannot be read, or are not those that the predictions were made for.
    """
    evaluated = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
    file = Path(evaluated["annotations"])
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScoreError(f"{file} cannot be read: {error}") from error
    if absent := set(evaluated["images"]) - {image["id"] for image in whole["images"]}:
        raise ScoreError(f"{file} has not {len(absent)} of the {len(evaluated['images'])} evaluated images")
    annotations = restrict(whole, evaluated["images"])
    results = json.loads((folder / PREDICTIONS).read_text(encoding="utf-8"))
    objects = Counter(item["category_id"] for item in annotations["annotations"] if not item.get("iscrowd"))
    classes: dict[str, dict[str, float]] = {
        category["name"]: {"objects": objects[category["id"]]} for category in annotations["categories"]
    }
    numbers: dict[str, dict[str, float]] = {}
    for kind in _ROWS:
        numbers[kind], by_class = evaluate(annotations, results, kind)
        for name, value in by_class.items():
            classes[name][kind] = value
    return numbers, classes


def main() -> None:
    """Score the folder that the command line names; warnings and what is wrong go to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help=f"holds {IMAGES} and {PREDICTIONS}")
    folder = parser.parse_args().folder
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        numbers, classes = score_folder(folder)
    except ScoreError as error:
        sys.exit(f"error: {error}")
    for name, content in ((METRICS, numbers), (CLASSES, classes)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\n{class_table(classes)}\n\n{table(numbers)}\n")


if __name__ == "__main__":
    main()
