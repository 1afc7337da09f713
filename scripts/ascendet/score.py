"""The one evaluator: COCO's 12 numbers for boxes and 12 for masks, from result files of any framework.

A program of its own, because it runs where faster-coco-eval is installed:

    python -m ascendet.score --annotations val.json --boxes p.bbox.json --masks p.segm.json --out metrics.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Literal

# In pycocotools' order. A number is in [0, 1], or -1 where the annotations hold nothing to measure it on.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_ROWS = {"bbox": "boxes", "segm": "masks"}


def score(
    annotations: dict[str, Any], results: list[dict[str, Any]], kind: Literal["bbox", "segm"]
) -> dict[str, float]:
    """COCO's 12 numbers.

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
    return {name: float(value) for name, value in zip(NAMES, evaluation.stats[: len(NAMES)], strict=True)}


def table(numbers: dict[str, dict[str, float]]) -> str:
    """The 12 + 12 numbers in two rows; `-` where there is nothing to measure.

    >>> print(table({"bbox": {"AP": 0.5}}).splitlines()[1][:21])
    boxes    0.500      -
    """
    head = f"{'':7}" + "".join(f"{name:>7}" for name in NAMES)
    rows = [
        f"{_ROWS[kind]:<7}" + "".join(f"{_cell(values.get(name, -1.0)):>7}" for name in NAMES)
        for kind, values in numbers.items()
    ]
    return "\n".join([head, *rows])


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def main() -> None:
    """Score the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO instances file")
    parser.add_argument("--boxes", type=Path, required=True, help="COCO results with boxes")
    parser.add_argument("--masks", type=Path, required=True, help="COCO results with masks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the numbers")
    args = parser.parse_args()
    annotations = json.loads(args.annotations.read_text(encoding="utf-8"))
    files: dict[Literal["bbox", "segm"], Path] = {"bbox": args.boxes, "segm": args.masks}
    numbers = {
        kind: score(annotations, json.loads(path.read_text(encoding="utf-8")), kind)
        for kind, path in files.items()
    }
    args.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _silent(*_: object) -> None:
    pass


if __name__ == "__main__":
    main()
