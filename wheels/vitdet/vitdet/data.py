"""Fit a model's configuration to a data set on the disk.

Every data set has COCO's layout: `annotations/instances_<split>.json` and the pictures in `<split>/`, where the names
of the splits begin with train and val. A configuration belongs to one model; where it says `split="train"` or
`split="val"`, `fill` sets the files, the classes and their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascendet_common.data import (
    DataError,
    classes_of,
    describe_difference,
    find_split,
    known_classes,
    read,
    shorten,
)
from mmengine.config import Config

__all__ = [
    "DataError",
    "classes_of",
    "count_pictures",
    "describe_difference",
    "fill",
    "find_split",
    "known_classes",
    "meta_classes",
    "read",
    "set_classes",
    "shorten",
]

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_EVALUATORS = ("val_evaluator", "test_evaluator")


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


def meta_classes(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names that a checkpoint's `meta` states; an empty tuple for a file of bare weights.

    >>> meta_classes({"dataset_meta": {"CLASSES": ["cat"]}})
    ('cat',)
    """
    info = meta.get("dataset_meta") or {}
    return tuple(info.get("classes") or info.get("CLASSES") or ())
