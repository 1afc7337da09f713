"""A data set on the disk, and a configuration that is made to fit it.

Every data set has COCO's layout: `annotations/instances_<split>.json` with the pictures of `<split>/`, where the names
of the splits begin with train and val. A configuration is one model's; where it says `split="train"` or
`split="val"`, `fill` puts in the files, the classes and their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ascendet_common.data import DataError, classes_of, differing, few, find_split, known_classes, read
from mmengine.config import Config

__all__ = [
    "DataError",
    "classes_of",
    "count_pictures",
    "differing",
    "few",
    "fill",
    "find_split",
    "known_classes",
    "meta_classes",
    "read",
    "set_classes",
]

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_EVALUATORS = ("val_evaluator", "test_evaluator")


def count_pictures(content: Mapping[str, Any], rule: Mapping[str, Any]) -> int:
    """Return how many of the pictures a training takes; `rule` is the `filter_cfg` of mmdet's data sets.

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
    """Put the data set of `cfg.data_root` into a configuration, which changes: files, classes, the heads' sizes.

    The classes are those of the training's split, or of the split that is evaluated; `CheckedCocoDataset` holds the
    other one to them. A configuration that names its files itself is left alone.

    Returns
    -------
    How many pictures the training takes; 0 where it is an evaluation.

    Raises
    ------
    DataError
        A split is missing or there twice, or its annotations cannot be read.
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
    """Give both heads of the model as many classes."""
    for head in ("bbox_head", "mask_head"):
        cfg.model.roi_head[head].num_classes = len(classes)


def meta_classes(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes that a checkpoint's `meta` states; none in a file of bare weights.

    >>> meta_classes({"dataset_meta": {"CLASSES": ["cat"]}})
    ('cat',)
    """
    info = meta.get("dataset_meta") or {}
    return tuple(info.get("classes") or info.get("CLASSES") or ())
