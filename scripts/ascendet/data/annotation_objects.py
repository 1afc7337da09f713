"""Check the objects of an annotation file: references, boxes, masks, areas, with each other and the picture's size."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from ascendet.data.annotation_masks import Floats, measure_masks, numbers
from ascendet.data.annotation_pictures import Entry, Id, as_id, renumber
from ascendet.data.annotation_rules import Findings

Bools = npt.NDArray[np.bool_]
# A box or a polygon may reach this many pixels beyond its picture without a finding; COCO's own do, by rounding.
_BEYOND = 1.0
# The largest accepted distance between the edges of a box and of its mask, in pixels and as a part of the longer side.
_APART, _APART_PART = 3.0, 0.25
# Areas by the shoelace formula, by pixels and of boxes differ. A difference above both this factor and this number of
# pixels is a finding.
_AREA_FACTOR, _AREA_PIXELS = 2.0, 16.0
# If there are no masks to compare with, this part of the boxes must leave its picture before they count as corners.
_LEAVING = 0.1


def check_objects(
    entries: list[Any],
    images: dict[Id, Entry | None],
    categories: dict[Id, Entry],
    findings: Findings,
) -> list[Entry]:
    """Check and repair objects in place, and return those that are kept, with all keys that are needed later.

    Parameters
    ----------
    entries
        The list `annotations`.
    images, categories
        Entries by the id that objects refer to (None for an image that was dropped). Objects get the entries' new ids.
    findings
        Findings are added here.
    """
    objects: list[Entry] = []
    boxes = array("d")
    sizes: list[tuple[int, int]] = []
    for position, entry in enumerate(entries):
        if type(entry) is not dict:
            findings.add("object-invalid", f"annotations[{position}]")
            continue
        image = _check_references(entry, images, categories, findings)
        box = _read_box(entry, findings) if image else None
        if image and box:
            objects.append(entry)
            boxes.extend(box)
            sizes.append((image["width"], image["height"]))
    if not objects:
        return []
    kept = _check_geometry(
        objects, np.array(boxes).reshape(-1, 4), np.array(sizes, dtype=np.float64), findings
    )
    renumber(kept, [as_id(entry.get("id")) for entry in kept], "object-ids", findings)
    return kept


# -- one object --


def _check_references(
    entry: Entry, images: dict[Id, Entry | None], categories: dict[Id, Entry], findings: Findings
) -> Entry | None:
    """Set an object's image_id, category_id and iscrowd, and return its image, or None if the object is dropped."""
    reference = as_id(entry.get("image_id"))
    image = images.get(reference) if reference is not None else None
    if image is None:
        known = reference is not None and reference in images
        findings.add("object-image-dropped" if known else "object-image-unknown", _label(entry))
        return None
    reference = as_id(entry.get("category_id"))
    category = categories.get(reference) if reference is not None else None
    if category is None:
        findings.add("object-category-unknown", _label(entry))
        return None
    crowd = entry.get("iscrowd")
    if type(crowd) is not int or not 0 <= crowd <= 1:
        rule, value = _read_crowd(crowd)
        findings.add(rule, _label(entry))
        if value is None:
            return None
        entry["iscrowd"] = value
    entry["image_id"], entry["category_id"] = image["id"], category["id"]
    return image


def _read_crowd(value: object) -> tuple[str, int | None]:
    if value is None:
        return "crowd-absent", 0
    if type(value) in (bool, float, str) and str(value).lower() in ("true", "false", "1", "0", "1.0", "0.0"):
        return "crowd-form", int(str(value).lower() in ("true", "1", "1.0"))
    return "crowd-invalid", None


def _read_box(entry: Entry, findings: Findings) -> array[float] | None:
    """Return a box's x, y, width, height: four NaN if there is no box, None if it is invalid."""
    given = entry.get("bbox")
    if given is None or given == []:
        return array("d", [np.nan] * 4)
    box = numbers(given)
    if box is None or len(box) != 4:
        findings.add("box-invalid", _label(entry))
        return None
    return box


def _label(entry: Entry) -> object:
    return entry.get("id", "one without id")


# -- all objects --


def _check_geometry(objects: list[Entry], boxes: Floats, sizes: Floats, findings: Findings) -> list[Entry]:
    """Check and repair boxes, masks and areas in place, and return the objects whose box and mask can be used.

    Parameters
    ----------
    objects
        Entries of the list `annotations`.
    boxes
        x, y, width, height in pixels, shape (n, 4); NaN for an object without a box.
    sizes
        Width and height of each object's picture, shape (n, 2).
    findings
        Findings are added here.
    """
    areas, bounds, mask_rules = measure_masks(objects, sizes, findings)
    masked = ~np.isnan(bounds[:, 0])
    if set(mask_rules) == {"mask-absent"}:
        findings.extend("masks-absent", map(_label, objects))
    _fill_boxes(objects, boxes, bounds, findings)
    differing = masked & (boxes[:, 2:] > 0).all(1) & ~_agree(_corners(boxes), bounds, sizes)
    if systematic := _suspect(boxes, bounds, sizes, masked, differing):
        findings.extend(systematic, map(_label, objects))
    if findings.refused:
        return []
    rules = _first_rules(_box_rules(boxes, sizes), mask_rules, {"box-contradicts-mask": differing})
    for entry, rule in zip(objects, rules, strict=True):
        if rule:
            findings.add(rule, _label(entry))
    kept = np.flatnonzero([not rule for rule in rules])
    objects = [objects[index] for index in kept]
    boxes, bounds, areas, sizes = boxes[kept], bounds[kept], areas[kept], sizes[kept]
    _clip(objects, boxes, sizes, findings)
    beyond = (bounds[:, :2] < -_BEYOND).any(1) | (bounds[:, 2:] > sizes + _BEYOND).any(1)
    for rule, hit in (("mask-outside", beyond), ("box-thin", (boxes[:, 2:] < 1).any(1))):
        findings.extend(rule, (_label(objects[index]) for index in np.flatnonzero(hit)))
    for entry, area in zip(objects, areas.tolist(), strict=True):
        _check_area(entry, area, findings)
    return objects


def _box_rules(boxes: Floats, sizes: Floats) -> dict[str, Bools]:
    """Return, for each rule about boxes, which boxes break it, in the order in which the rules apply."""
    corners = _corners(boxes)
    return {
        "box-invalid": np.isnan(boxes).any(1),
        "box-negative": (boxes[:, 2:] < 0).any(1),
        "box-empty": (boxes[:, 2:] == 0).any(1),
        "box-outside": (corners[:, :2] >= sizes).any(1) | (corners[:, 2:] <= 0).any(1),
    }


def _first_rules(before: dict[str, Bools], rules: list[str], after: dict[str, Bools]) -> list[str]:
    """Return the first rule that each object breaks, or "": first those in `before`, then `rules`, then `after`."""
    result = np.array(rules, dtype=object)
    for name, hit in after.items():
        result[hit & (result == "")] = name
    for name, hit in reversed(before.items()):
        result[hit] = name
    return list(result)


def _fill_boxes(objects: list[Entry], boxes: Floats, bounds: Floats, findings: Findings) -> None:
    """Give each object without a box the box around its mask."""
    for index in np.flatnonzero(np.isnan(boxes[:, 0]) & ~np.isnan(bounds[:, 0])):
        boxes[index, :2] = bounds[index, :2]
        boxes[index, 2:] = bounds[index, 2:] - bounds[index, :2]
        objects[index]["bbox"] = boxes[index].tolist()
        findings.add("box-absent", _label(objects[index]))


def _suspect(boxes: Floats, bounds: Floats, sizes: Floats, masked: Bools, differing: Bools) -> str:
    """Return the rule that the boxes of the whole file break, or ""."""
    given = boxes[~np.isnan(boxes[:, 0])]
    if len(given) and (given >= 0).all() and (given <= 1).all() and given[:, 2:].any() and (sizes > 2).all():
        return "boxes-in-fractions"
    nearer = _distance(boxes, bounds) + 1 < _distance(_corners(boxes), bounds)
    if 2 * (nearer & _agree(boxes, bounds, sizes)).sum() > masked.sum():
        return "boxes-corners"
    if 2 * differing.sum() > masked.sum():
        return "boxes-contradict-masks"
    if not masked.any() and len(given) == len(boxes):
        leaving = (_corners(boxes)[:, 2:] > sizes + _BEYOND).any(1).mean() >= _LEAVING
        fitting = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes + _BEYOND).all()
        return "boxes-corners" if leaving and fitting else ""
    return ""


def _corners(boxes: Floats) -> Floats:
    """Return boxes x, y, width, height as x1, y1, x2, y2."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def _agree(corners: Floats, bounds: Floats, sizes: Floats) -> Bools:
    """Return whether boxes are close to the bounds of masks, within the picture; False if either is NaN."""
    limits = np.concatenate([sizes, sizes], 1)
    one, other = np.clip(corners, 0, limits), np.clip(bounds, 0, limits)
    longer = np.maximum(one[:, 2:] - one[:, :2], other[:, 2:] - other[:, :2]).max(1)
    agree: Bools = (np.abs(one - other) <= np.maximum(_APART, _APART_PART * longer)[:, None]).all(1)
    return agree


def _distance(corners: Floats, bounds: Floats) -> Floats:
    """Return the largest distance between the edges of boxes and masks, in pixels; NaN if either is missing."""
    distance: Floats = np.abs(corners - bounds).max(1)
    return distance


def _clip(objects: list[Entry], boxes: Floats, sizes: Floats, findings: Findings) -> None:
    """Clip boxes to their pictures."""
    corners = _corners(boxes)
    beyond = (corners[:, :2] < -_BEYOND).any(1) | (corners[:, 2:] > sizes + _BEYOND).any(1)
    for index in np.flatnonzero(beyond):
        low = np.maximum(corners[index, :2], 0)
        boxes[index] = *low, *(np.minimum(corners[index, 2:], sizes[index]) - low)
        objects[index]["bbox"] = boxes[index].tolist()
        findings.add("box-clipped", _label(objects[index]))


def _check_area(entry: Entry, mask_area: float, findings: Findings) -> None:
    stated = numbers([entry.get("area")])
    if stated is None or stated[0] <= 0:
        findings.add("area-absent" if entry.get("area") is None else "area-invalid", _label(entry))
        entry["area"] = mask_area
        return
    small, large = sorted((stated[0], mask_area))
    if large - small > _AREA_PIXELS and large > _AREA_FACTOR * small:
        findings.add("area-differs", _label(entry))
