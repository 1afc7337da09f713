"""A data set on the disk, in COCO's layout, which every family reads.

That is `annotations/instances_<split>.json` with the pictures of `<split>/`; the names of the splits begin with train
and val.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ascendet_common.errors import RunError


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
    return dict(content)


def find_missing(folder: Path, files: Iterable[str]) -> list[str]:
    """Return which of the files below `folder` do not exist, by their names there; the folder is listed only once."""
    here = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    names = [Path(file).relative_to(folder) for file in files]
    return [
        str(name)
        for name in names
        if (name.name not in here if len(name.parts) == 1 else not (folder / name).is_file())
    ]


def classes_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in the order in which models number them: that of the file.

    >>> classes_of({"categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]})
    ('cat', 'dog')
    """
    return tuple(str(category["name"]) for category in content["categories"])


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


def describe_difference(stated: tuple[str, ...], here: tuple[str, ...]) -> str:
    """Return a message that a checkpoint has other classes than the data set.

    >>> describe_difference(("cat", "dog"), ("dog",))
    'it has 2 classes (cat, dog), the data set has 1 (dog)'
    """
    return f"it has {len(stated)} classes ({shorten(stated)}), the data set has {len(here)} ({shorten(here)})"


def shorten(names: tuple[str, ...]) -> str:
    """Return the first six names, for a message."""
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
