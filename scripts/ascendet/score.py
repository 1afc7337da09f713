"""The one evaluator: COCO's 12 numbers for boxes and 12 for masks, from result files of any framework.

A program of its own, because it runs where faster-coco-eval is installed:

    python -m ascendet.score --images p.images.json --results p.json --out metrics.json --classes classes.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal, cast

# In pycocotools' order. A number is in [0, 1], or -1 where the annotations hold nothing to measure it on.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ROWS: dict[Literal["bbox", "segm"], str] = {"bbox": "boxes", "segm": "masks"}


def score(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """COCO's 12 numbers; see `evaluate`."""
    return evaluate(annotations, results, kind)[0]


def evaluate(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's 12 numbers, and the AP of every class by its name.

    Parameters
    ----------
    annotations
        A COCO instances file's content.
    results
        COCO results: `image_id`, `category_id`, `score` and `bbox` [x, y, width, height] in pixels or
        `segmentation` (compressed RLE).
    kind
        What overlaps are measured between.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if kind == "segm":
        # With a box present, COCO's API takes the box's area for the mask's and sorts small from large by it.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    truth = COCO(annotations)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), kind, print_function=_silent)
    evaluation.run()
    numbers = {name: float(value) for name, value in zip(NAMES, evaluation.stats[: len(NAMES)], strict=True)}
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    # Precision by (threshold, recall, class, area, most detections per image): all areas, most detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = {}
    for index, category in enumerate(evaluation.params.catIds):
        measured = precision[:, :, index][precision[:, :, index] > -1]
        classes[names[category]] = float(measured.mean()) if measured.size else -1.0
    return numbers, classes


def restrict(annotations: dict[str, Any], images: list[int]) -> dict[str, Any]:
    """The part of an instances file's content that is about these images."""
    kept = set(images)
    return annotations | {
        "images": [image for image in annotations["images"] if image["id"] in kept],
        "annotations": [item for item in annotations["annotations"] if item["image_id"] in kept],
    }


def class_table(classes: dict[str, dict[str, float]]) -> str:
    """AP of boxes and masks and the number of objects, class by class.

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
    """The 12 + 12 numbers in two rows; `-` where there is nothing to measure.

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


def main() -> None:
    """Score the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--images", type=Path, required=True, help="JSON: `annotations` file, ids of `images`"
    )
    parser.add_argument("--results", type=Path, required=True, help="COCO results with boxes and masks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the numbers")
    parser.add_argument("--classes", type=Path, required=True, help="JSON file for the classes' AP")
    args = parser.parse_args()
    evaluated = json.loads(args.images.read_text(encoding="utf-8"))
    whole = json.loads(Path(evaluated["annotations"]).read_text(encoding="utf-8"))
    annotations = restrict(whole, evaluated["images"])
    results = json.loads(args.results.read_text(encoding="utf-8"))
    objects = Counter(item["category_id"] for item in annotations["annotations"] if not item.get("iscrowd"))
    classes: dict[str, dict[str, float]] = {
        category["name"]: {"objects": objects[category["id"]]} for category in annotations["categories"]
    }
    numbers = {}
    for kind in _ROWS:
        numbers[kind], by_class = evaluate(annotations, results, kind)
        for name, value in by_class.items():
            classes[name][kind] = value
    args.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    args.classes.write_text(json.dumps(classes, indent=2) + "\n", encoding="utf-8")


def _silent(*_: object) -> None:
    pass


if __name__ == "__main__":
    main()
