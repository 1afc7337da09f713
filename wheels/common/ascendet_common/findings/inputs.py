"""Read an evaluation's detections and its ground truth as arrays: half a million detections are no rarity."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from ascendet_common import data
from ascendet_common.findings import masks
from ascendet_common.findings.masks import FindingsError, shorten
from ascendet_common.images import printable

Json = dict[str, Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# Of the detections of a class in a picture, COCO's evaluation counts that many, the best ones.
MOST = 100


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Objects or detections, in the order of their file.

    image, category
        Shape (n,): indices into the evaluated pictures and the classes.
    box
        Shape (n, 4): left, top, width and height in pixels.
    masks
        n compressed RLEs; None where the file has no masks.
    """

    image: Ints
    category: Ints
    box: Floats
    masks: list[Json] | None

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, kw_only=True)
class Truth(Objects):
    """The ground truth; `crowd`, shape (n,), marks regions that hold any number of objects."""

    crowd: Flags


@dataclass(frozen=True, kw_only=True)
class Found(Objects):
    """The detections; `score`, shape (n,), is what a detection is sorted by."""

    score: Floats


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was evaluated.

    images
        COCO's entries of the evaluated pictures by rising id, as pycocotools goes through them.
    classes
        The names of the classes in the annotation file's order.
    kinds
        What overlaps are measured between: "bbox" and, if detections and ground truth have masks, "segm".
    split
        The annotation file's split, such as "val2017"; empty if the file's name does not say it.
    lost
        How many objects and how many detections are left out because their category is not listed.
    other_size
        How many detections have a mask of another size than their picture.
    """

    images: list[Json]
    classes: list[str]
    truth: Truth
    found: Found
    kinds: tuple[str, ...]
    annotations: Path
    lost: tuple[int, int]
    other_size: int

    def pictures(self) -> Path:
        """Return the folder of the pictures, in the layout that all data sets of Ascendet have."""
        split = self.annotations.stem.removeprefix("instances_")
        return self.annotations.parent.parent / split


def read(predictions: Path, images: Path) -> Evaluation:
    """Read an evaluation.

    Parameters
    ----------
    predictions
        COCO's results: `image_id`, `category_id`, `score`, and `bbox` [left, top, width, height] in pixels,
        `segmentation` (RLE or polygons), or both.
    images
        `annotations`, a COCO instances file's name, and `images`, the ids of the evaluated pictures.

    Raises
    ------
    FindingsError
        A file cannot be read or has another form, or there are detections in pictures that were not evaluated.
    """
    evaluated = _load(images)
    try:
        file, ids = Path(evaluated["annotations"]), set(evaluated["images"])
    except (KeyError, TypeError) as error:
        raise FindingsError(f"{images} does not name an annotation file and ids of images") from error
    try:
        content = data.read(file)
    except data.DataError as error:
        raise FindingsError(str(error)) from error
    try:
        entries = {entry["id"]: entry for entry in content["images"] if entry["id"] in ids}
        classes = {category["id"]: at for at, category in enumerate(content["categories"])}
        names = [printable(name) for name in data.classes_of(content)]
        annotated = [item for item in content["annotations"] if item["image_id"] in entries]
        objects = [item for item in annotated if item["category_id"] in classes]
    except (KeyError, TypeError) as error:
        raise FindingsError(f"{file} is no COCO instances file: {error!r}") from error
    del content
    if absent := len(ids - entries.keys()):
        raise FindingsError(f"{file} lacks {absent} of the {len(ids)} evaluated images")
    # Numbers before text, as `coco.number` has them.
    pictures = [entries[one] for one in sorted(entries, key=lambda one: (isinstance(one, str), one))]
    index = {entry["id"]: at for at, entry in enumerate(pictures)}
    truth = _truth(objects, index, classes, pictures, file)
    rows = _rows(_load(predictions), predictions, index)
    known = [row for row in rows if row["category_id"] in classes]
    lost = (len(annotated) - len(objects), len(rows) - len(known))
    del rows
    found = _found(known, index, classes, pictures, predictions)
    masked = truth.masks is not None and (found.masks is not None or not known)
    boxed = not known or "bbox" in known[0] or not masked
    kinds = tuple(kind for kind, there in (("bbox", boxed), ("segm", masked)) if there)
    return Evaluation(
        images=pictures,
        classes=names,
        truth=truth,
        found=found,
        kinds=kinds,
        annotations=file,
        lost=lost,
        other_size=_count_other_sizes(found, pictures),
    )


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise FindingsError(f"{file} cannot be read: {error}") from error


def _rows(content: Any, file: Path, index: dict[Any, int]) -> list[Json]:
    """Return the detections after checking each one's form."""
    if not isinstance(content, list):
        raise FindingsError(f"{file} is no list of COCO results")
    form = None
    for at, row in enumerate(content):
        try:
            masked, boxed = "segmentation" in row, "bbox" in row
            fine = isinstance(row, dict) and math.isfinite(row["score"]) and (masked or boxed)
            fine = fine and all(
                isinstance(row[key], int | float | str) for key in ("image_id", "category_id")
            )
            fine = fine and (not boxed or (len(row["bbox"]) == 4 and all(map(math.isfinite, row["bbox"]))))
            form = form or (masked, boxed)
        except (KeyError, TypeError):
            fine = False
        if not fine or form != (masked, boxed):
            shown = shorten(json.dumps(row))
            raise FindingsError(
                f"{file}: result {at} is none of COCO's, or has another form than the first: {shown}"
            )
    strange = {row["image_id"] for row in content} - index.keys()
    if strange:
        raise FindingsError(
            f"{file}: there are results for {len(strange)} images that were not evaluated, such as image "
            f"{json.dumps(min(strange, key=str))}"
        )
    return content


def _truth(
    items: list[Json], index: dict[Any, int], classes: dict[Any, int], images: Sequence[Json], file: Path
) -> Truth:
    try:
        box = _boxes(items)
    except (KeyError, TypeError, ValueError) as error:
        raise FindingsError(f"{file}: an object's box is none of COCO's: {error!r}") from error
    image = _ints(index[item["image_id"]] for item in items)
    # An empty list is what tools write that know boxes only.
    masked = all(item.get("segmentation") for item in items)
    return Truth(
        image=image,
        category=_ints(classes[item["category_id"]] for item in items),
        box=box,
        masks=masks.compress(items, (images[at] for at in image), file) if masked else None,
        crowd=np.array([bool(item.get("iscrowd")) for item in items], bool),
    )


def _found(
    items: list[Json], index: dict[Any, int], classes: dict[Any, int], images: Sequence[Json], file: Path
) -> Found:
    image = _ints(index[item["image_id"]] for item in items)
    rles = None
    if items and "segmentation" in items[0]:
        rles = masks.compress(items, (images[at] for at in image), file)
    boxed = not items or "bbox" in items[0]
    return Found(
        image=image,
        category=_ints(classes[item["category_id"]] for item in items),
        box=_boxes(items) if boxed else np.asarray(coco_mask.toBbox(rles), np.float64),
        masks=rles,
        score=np.array([item["score"] for item in items], np.float64),
    )


def _count_other_sizes(found: Found, images: Sequence[Json]) -> int:
    sizes = [[image.get("height"), image.get("width")] for image in images]
    rows = zip(found.image.tolist(), found.masks or (), strict=False)
    return sum(list(mask["size"]) != sizes[image] for image, mask in rows if None not in sizes[image])


def _ints(values: Any) -> Ints:
    return np.fromiter(values, np.int64)


def _boxes(items: Sequence[Json]) -> Floats:
    return np.array([item["bbox"] for item in items], np.float64).reshape(-1, 4)
