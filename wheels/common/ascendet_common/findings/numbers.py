"""Count what an evaluation's detections are: precision and recall, kinds of errors, confusion of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ascendet_common.findings import matching
from ascendet_common.findings.inputs import Evaluation, Flags, Floats, Ints
from ascendet_common.findings.matching import BACKGROUND, IOU, Matches, Pairs

# COCO's ten thresholds, and the 101 recalls that precision is given at.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
ERRORS = ("class", "place", "both", "duplicate", "background")


def precision(evaluation: Evaluation, pairs: Pairs) -> Floats:
    """Return precision as pycocotools' `eval["precision"]` for objects of all sizes and 100 detections.

    Returns
    -------
    Shape (10, 101, classes): by `THRESHOLDS`, `RECALLS` and class; -1 for a class without objects.
    """
    truth, found = evaluation.truth, evaluation.found
    count = len(evaluation.classes)
    objects = np.bincount(truth.category[~truth.crowd], minlength=count)
    result = np.full((len(THRESHOLDS), len(RECALLS), count), -1.0)
    result[:, :, objects > 0] = 0.0
    out = matching.beyond(evaluation)
    # By class, the best score first; of equal scores the first picture, then the first in the file.
    order = np.lexsort((found.image, -found.score, found.category))
    order = order[~out[order]]
    starts = np.searchsorted(found.category[order], np.arange(count + 1))
    for at, threshold in enumerate(THRESHOLDS):
        matches = matching.match(evaluation, pairs, threshold, out)
        right, counted = (matches.truth >= 0)[order], ~matches.ignored[order]
        for one in np.flatnonzero(objects):
            rows = slice(starts[one], starts[one + 1])
            result[at, :, one] = _at_recalls(right[rows], counted[rows], int(objects[one]))
    return result


def _at_recalls(right: Flags, counted: Flags, objects: int) -> Floats:
    """Return the precision of one class at `RECALLS`, with the arithmetic of pycocotools."""
    hits = np.cumsum(right & counted).astype(float)
    misses = np.cumsum(~right & counted).astype(float)
    recall = hits / objects
    share = hits / (misses + hits + np.spacing(1))
    share = np.maximum.accumulate(share[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    values = np.zeros(len(RECALLS))
    values[at < len(share)] = share[at[at < len(share)]]
    return values


def curves(values: Floats) -> dict[str, list[list[float]]]:
    """Return [recall, precision] at IoU 0.5, at 0.75 and over all thresholds: the mean of the classes with objects."""
    measured = values[:, :, (values > -1).all((0, 1))]
    if not measured.shape[2]:
        return {"0.5": [], "0.75": [], "mean": []}
    lines = {"0.5": measured[0].mean(1), "0.75": measured[5].mean(1), "mean": measured.mean((0, 2))}
    return {
        name: [[round(float(x), 2), round(float(y), 6)] for x, y in zip(RECALLS, line, strict=True)]
        for name, line in lines.items()
    }


def classify(
    evaluation: Evaluation, pairs: Pairs, matches: Matches, shown: Flags
) -> tuple[npt.NDArray[np.str_], Flags]:
    """Return what each shown detection is, and which objects are missed, as TIDE defines it.

    TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020, section 2.2) asks of a
    wrong detection, in this order: does it overlap an object of its class by 0.1 to 0.5 (`place`); one of another class
    by 0.5 or more (`class`); one of its class by 0.5 or more, which a better detection has (`duplicate`); none by 0.1
    or more (`background`)? What remains overlaps one of another class by 0.1 to 0.5 (`both`). An object is `missed` if
    no detection finds it and none would if its class or place were right.

    Returns
    -------
    kinds, missed
        Shape (detections,): "correct", one of `ERRORS`, or "" for those that are not shown or ignored; and shape
        (objects,).
    """
    count, truth = len(evaluation.found), evaluation.truth
    wrong = shown & (matches.truth < 0) & ~matches.ignored
    real = pairs.where(~pairs.crowd & wrong[pairs.found])
    same, same_at = _best(real.where(real.same), count)
    other, other_at = _best(real.where(~real.same), count)
    kinds = np.select(
        [
            shown & (matches.truth >= 0),
            wrong & (same >= BACKGROUND) & (same < IOU),
            wrong & (other >= IOU),
            wrong & (same >= IOU),
            wrong & (other >= BACKGROUND),
            wrong,
        ],
        ["correct", "place", "class", "duplicate", "both", "background"],
        "",
    )
    missed = ~truth.crowd
    missed[matches.truth[kinds == "correct"]] = False
    missed[same_at[kinds == "place"]] = False
    missed[other_at[kinds == "class"]] = False
    return kinds, missed


def _best(pairs: Pairs, count: int) -> tuple[Floats, Ints]:
    """Return the largest overlap of each of `count` detections and the object's index; 0 and -1 for none."""
    first = np.flatnonzero(np.diff(pairs.found, prepend=-1))  # they are sorted by detection, then by overlap
    iou, truth = np.zeros(count), np.full(count, -1, np.int64)
    iou[pairs.found[first]], truth[pairs.found[first]] = pairs.iou[first], pairs.truth[first]
    return iou, truth


def confusion(evaluation: Evaluation, pairs: Pairs, matches: Matches, shown: Flags) -> Ints:
    """Return how often an object of a class was detected as which class.

    Objects are first given to the detections of their own class that find them (COCO's matching at `IOU`), so that the
    diagonal holds what is correct; then those that are left to the detections that are left, the best one first, each
    the one that it overlaps most, by `IOU` or more. What still is left stands in the row or column of the background.

    Returns
    -------
    Shape (classes + 1, classes + 1): rows for objects, columns for detections, the background last. A row's sum is the
    number of the class's objects; crowd regions and what lies in them are not counted.
    """
    truth, found = evaluation.truth, evaluation.found
    count = len(evaluation.classes)
    counted = shown & ~matches.ignored
    right = np.where(counted, matches.truth, -1)
    left = pairs.where(
        (pairs.iou >= min(IOU, 1 - 1e-10)) & ~pairs.crowd & (counted & (right < 0))[pairs.found]
    )
    taken = set(right[right >= 0].tolist())
    crossed, _ = matching.greedy(left, len(found), taken)
    given = np.where(right >= 0, right, crossed)
    rows = np.where(given >= 0, np.append(truth.category, count)[given], count)[counted]
    matrix = np.zeros((count + 1, count + 1), np.int64)
    np.add.at(matrix, (rows, found.category[counted]), 1)
    alone = ~truth.crowd
    alone[given[given >= 0]] = False
    matrix[:-1, -1] = np.bincount(truth.category[alone], minlength=count)
    return matrix


def of_images(evaluation: Evaluation, matches: Matches, shown: Flags) -> dict[str, Any]:
    """Return `correct`, `wrong`, `missed`, `mean_iou` and `quality` of every picture, shape (images,) each.

    A picture's quality is its detections' F1 at IoU 0.5, each correct one weighted by its overlap: 2 * sum(IoU of the
    correct ones) / (objects + detections), which is Panoptic Quality (Kirillov et al. 2019) over all classes. It is 1
    for a picture with neither objects nor detections. `missed` counts all objects that no detection finds.
    """
    count = len(evaluation.images)

    def total(of: Ints, weights: Floats | None = None) -> Any:
        return np.bincount(of, weights, minlength=count)

    truth, found = evaluation.truth, evaluation.found
    right, counted = shown & (matches.truth >= 0), shown & ~matches.ignored
    objects, detections = total(truth.image[~truth.crowd]), total(found.image[counted])
    correct, overlap = total(found.image[right]), total(found.image[right], matches.iou[right])
    both = objects + detections
    return {
        "objects": objects,
        "correct": correct,
        "wrong": detections - correct,
        "missed": objects - correct,
        "mean_iou": overlap / np.maximum(correct, 1),
        "quality": np.where(both, 2 * overlap / np.maximum(both, 1), 1.0),
    }
