"""The evaluator for all frameworks: compute COCO's 12 numbers for boxes and 12 for masks from result files.

It is a separate program because it runs where faster-coco-eval is installed. It scores a folder with the files IMAGES
and PREDICTIONS, prints the numbers, and stores them there as METRICS and CLASSES:

    python -m ascendet.run.score FOLDER

The numbers do not depend on ids. faster-coco-eval treats an object with the id 0 as not found, keeps only one of
several objects with the same id, and converts an image's id to a whole number; therefore it gets new ids.
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

# Holds `annotations`, the annotation file, and `images`, the ids of the images that were predicted.
IMAGES = "images.json"
# COCO's result format: image_id, category_id, score, bbox [x, y, width, height] and segmentation of every detection.
PREDICTIONS = "predictions.json"
METRICS = "metrics.json"
CLASSES = "classes.json"

# In pycocotools' order. A number is in [0, 1], or -1 if the annotations have no object to measure it on.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ROWS: dict[Literal["bbox", "segm"], str] = {"bbox": "boxes", "segm": "masks"}


class ScoreError(ValueError):
    """Predictions and annotations do not belong together."""


def score(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """Return COCO's 12 numbers; see `evaluate`."""
    return evaluate(annotations, results, kind)[0]


def evaluate(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return COCO's 12 numbers, and the AP of each class by its name.

    Warns of everything that cannot be counted: objects and results whose category or image is not listed, and masks of
    another size than their image.

    Parameters
    ----------
    annotations
        A COCO instances file's content; ids may be numbers of any size or text.
    results
        COCO results: `image_id`, `category_id`, `score` and `bbox` [x, y, width, height] in pixels or
        `segmentation` (compressed RLE).
    kind
        Whether overlaps are measured between boxes ("bbox") or masks ("segm").

    Raises
    ------
    ScoreError
        There are results for images that the annotations do not have.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth_by_number, found = number(annotations, results)
    if kind == "segm":
        _warn_of_sizes(truth_by_number["images"], truth_by_number["annotations"], "objects")
        _warn_of_sizes(truth_by_number["images"], found, "results")
        # If a result has a box, COCO's API uses the box's area instead of the mask's for the size classes.
        found = [{key: value for key, value in result.items() if key != "bbox"} for result in found]
    truth = COCO(truth_by_number)
    evaluation = COCOeval_faster(truth, truth.loadRes(found), kind)
    evaluation.run()
    numbers = {name: float(value) for name, value in zip(NAMES, evaluation.stats[: len(NAMES)], strict=True)}
    names = {category["id"]: category["name"] for category in truth_by_number["categories"]}
    # Precision by (threshold, recall, class, area, detections per image); here for all areas and most detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = {}
    for index, category in enumerate(evaluation.params.catIds):
        measured = precision[:, :, index][precision[:, :, index] > -1]
        classes[names[category]] = float(measured.mean()) if measured.size else -1.0
    return numbers, classes


def number(
    annotations: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and results with new ids 1, 2, …; images and categories keep the order of their ids.

    That order decides which of two results with equal scores comes first, so it must be the same as with pycocotools.
    """
    images = _numbers(image["id"] for image in annotations["images"])
    categories = _numbers(category["id"] for category in annotations["categories"])
    if strange := {result["image_id"] for result in results} - images.keys():
        raise ScoreError(
            f"there are results for {len(strange)} images that the annotations do not have, such as image "
            f"{json.dumps(min(strange, key=_order))}"
        )

    def renumber(items: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
        known = [item for item in items if item["image_id"] in images and item["category_id"] in categories]
        if len(known) < len(items):
            warnings.warn(
                f"{len(items) - len(known)} of {len(items)} {what} are not counted: the annotations list no such "
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
        "annotations": renumber(annotations["annotations"], "objects"),
    }, renumber(results, "results")


def _numbers(ids: Iterable[Any]) -> dict[Any, int]:
    return {one: number for number, one in enumerate(sorted(set(ids), key=_order), 1)}


def _order(one: Any) -> tuple[bool, Any]:
    """Return a sorting key that puts numbers before text."""
    return isinstance(one, str), one


def _warn_of_sizes(images: list[dict[str, Any]], items: list[dict[str, Any]], what: str) -> None:
    """Warn of masks of another size than their image, which the evaluator silently treats as not overlapping."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    masks = [item for item in items if isinstance(item["segmentation"], dict)]
    if strange := sum(list(item["segmentation"]["size"]) != sizes[item["image_id"]] for item in masks):
        warnings.warn(
            f"{strange} of {len(items)} {what} have a mask of another size than their image", stacklevel=3
        )


def restrict(annotations: dict[str, Any], images: list[int]) -> dict[str, Any]:
    """Return the content of an instances file, restricted to these images."""
    kept = set(images)
    return annotations | {
        "images": [image for image in annotations["images"] if image["id"] in kept],
        "annotations": [item for item in annotations["annotations"] if item["image_id"] in kept],
    }


def class_table(classes: dict[str, dict[str, float]]) -> str:
    """Return a table of each class's number of objects and AP of boxes and masks.

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
    """Return a table of the 12 numbers of boxes and the 12 of masks; `-` if there is no object to measure on.

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
    """Score a folder; return the numbers of boxes and masks, and each class's AP and number of objects.

    Raises
    ------
    ScoreError
        The annotations cannot be read, or are not those of the predicted images.
    """
    evaluated = json.loads((folder / IMAGES).read_text(encoding="utf-8"))
    file = Path(evaluated["annotations"])
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScoreError(f"{file} cannot be read: {error}") from error
    if absent := set(evaluated["images"]) - {image["id"] for image in whole["images"]}:
        raise ScoreError(f"{file} lacks {len(absent)} of the {len(evaluated['images'])} evaluated images")
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
    """Score the folder that the command line names; print warnings and errors to standard error."""
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
