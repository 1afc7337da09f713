"""Fit a model's configuration to a data set on the disk.

Every data set has COCO's layout: `annotations/instances_<split>.json` and the pictures in `<split>/`, where the names
of the splits begin with train and val. A configuration belongs to one model; where it says `split="train"` or
`split="val"`, `fill` sets the files, the classes and their number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascendet_common.errors import RunError
from mmengine.config import Config

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_EVALUATORS = ("val_evaluator", "test_evaluator")


class DataError(RunError):
    """A training or an evaluation cannot use the annotations or images."""

    default_name = "data-invalid"


def find_split(root: Path, kind: str) -> str:
    """Return the name of the data set's split that begins with `kind`, such as "train2017" for "train".

    Raises
    ------
    DataError
        The data set has no such split, or several.
    """
    files = sorted(root.glob(f"annotations/instances_{kind}*.json"))
    names = [file.stem.removeprefix("instances_") for file in files]
    if len(names) == 1:
        return names[0]
    if names:
        raise DataError(f"{root} has several splits for {kind}: {', '.join(names)}")
    raise DataError(f"{root} has no split for {kind}: there is no annotations/instances_{kind}*.json")


def read(file: Path) -> dict[str, Any]:
    """Return the content of a COCO instances file.

    Raises
    ------
    DataError
        The file is no COCO instances file.
    """
    try:
        content = json.loads(file.read_bytes())
        lists = [content[name] for name in ("images", "annotations", "categories")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no COCO instances file: {error!r}") from error
    if not all(isinstance(entries, list) for entries in lists):
        raise DataError(f"{file} is no COCO instances file: images, annotations and categories must be lists")
    return content


def classes_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the order in which mmdet numbers them: that of the file.

    >>> classes_of({"categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]})
    ('cat', 'dog')
    """
    return tuple(str(category["name"]) for category in content["categories"])


def count_pictures(content: Mapping[str, Any], rule: Mapping[str, Any]) -> int:
    """Return how many pictures a training uses; `rule` is the `filter_cfg` of mmdet's data sets.

    >>> images = [dict(id=1, width=9, height=9), dict(id=2, width=9, height=9)]
    >>> count_pictures({"images": images, "annotations": [dict(image_id=2)]}, {"filter_empty_gt": True})
    1
    """
    with_objects = {annotation["image_id"] for annotation in content["annotations"]}
    return sum(
        (image["id"] in with_objects or not rule.get("filter_empty_gt", False))
        and min(image["width"], image["height"]) >= rule.get("min_size", 0)
        for image in content["images"]
    )


def fill(cfg: Config, *, training: bool = True) -> int:
    """Set files, classes and the heads' sizes of a configuration, in place, for the data set in `cfg.data_root`.

    The classes are those of the split for training, or of the evaluated split; `CheckedCocoDataset` checks that the
    other split has the same. A configuration that names its own files is not changed.

    Returns
    -------
    How many pictures the training uses; 0 for an evaluation.

    Raises
    ------
    DataError
        A split is missing or exists twice, or its annotations cannot be read.
    """
    names = (*(_LOADERS if training else _LOADERS[1:]), *_EVALUATORS)
    parts = {name: cfg[name] if name in _EVALUATORS else cfg[name].dataset for name in names if cfg.get(name)}
    kinds = {name: part.pop("split") for name, part in parts.items() if "split" in part}
    if not kinds:
        return 0
    root = Path(cfg.data_root)
    found = {kind: find_split(root, kind) for kind in set(kinds.values())}
    first = "train_dataloader" if training else "test_dataloader"
    content = read(root / "annotations" / f"instances_{found[kinds[first]]}.json")
    classes = classes_of(content)
    set_classes(cfg, classes)
    for name, kind in kinds.items():
        file = f"annotations/instances_{found[kind]}.json"
        if name in _EVALUATORS:
            parts[name].ann_file = str(root / file)
        else:
            parts[name].ann_file, parts[name].data_prefix = file, dict(img=f"{found[kind]}/")
            parts[name].metainfo = dict(classes=classes)
    if not training:
        return 0
    chosen = cfg.train_dataloader.dataset
    count = count_pictures(content, chosen.get("filter_cfg") or {})
    return min(count, chosen.get("indices") or count)


def set_classes(cfg: Config, classes: tuple[str, ...]) -> None:
    """Set the number of classes of the model's box head and mask head."""
    for head in ("bbox_head", "mask_head"):
        cfg.model.roi_head[head].num_classes = len(classes)


def known_classes(root: Path) -> tuple[str, ...]:
    """Return the classes of the data set in `root`; an empty tuple if there is no data set.

    Raises
    ------
    DataError
        The annotations cannot be read.
    """
    files = sorted(root.glob("annotations/instances_val*.json")) or sorted(
        root.glob("annotations/instances_*.json")
    )
    return classes_of(read(files[0])) if files else ()


def meta_classes(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names that a checkpoint's `meta` states; an empty tuple for a file of bare weights.

    >>> meta_classes({"dataset_meta": {"CLASSES": ["cat"]}})
    ('cat',)
    """
    info = meta.get("dataset_meta") or {}
    return tuple(info.get("classes") or info.get("CLASSES") or ())


def describe_difference(stated: tuple[str, ...], here: tuple[str, ...]) -> str:
    """Return a message that a checkpoint has other classes than the data set.

    >>> describe_difference(("cat", "dog"), ("dog",))
    'it has 2 classes (cat, dog), the data set has 1 (dog)'
    """
    return f"it has {len(stated)} classes ({shorten(stated)}), the data set has {len(here)} ({shorten(here)})"


def shorten(names: tuple[str, ...]) -> str:
    """Return the first six names, for a message."""
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
