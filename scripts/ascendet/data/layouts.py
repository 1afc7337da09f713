"""Find the annotation files and picture folders in the layouts of users' COCO data sets.

COCO's own layout has `annotations/instances_<split>.json` and the pictures in `<split>/`. CVAT's has the same files and
the pictures in `images/<split>/` or `images/`. Roboflow's has `<split>/_annotations.coco.json` in the folder of the
pictures. Others have a single file beside a folder of pictures.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ascendet import paths
from ascendet.data.annotation_rules import shown
from ascendet.errors import AscendetError

_KINDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_ROBOFLOW = "_annotations.coco.json"
_DEPTH = 4  # levels of folders in which annotation files are searched
_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_SAMPLE = 200  # number of names to look up, to find out which folder holds the pictures


@dataclass(frozen=True, kw_only=True)
class Source:
    """An annotation file and the folder of its pictures; `kind` is train, val, test, or "" if the file states none."""

    kind: str
    annotations: Path
    pictures: Path


def find(root: Path) -> list[Source]:
    """Return the annotation files below a folder and the folders of their pictures.

    Raises
    ------
    AscendetError
        `data-invalid`: there is no annotation file, or it is ambiguous which files belong to the data set.
    """
    files = _annotation_files(root)
    if not files:
        raise _invalid(
            root,
            "no COCO annotation file is here",
            "annotations/instances_<split>.json and <split>/ (COCO), <split>/_annotations.coco.json (Roboflow),\n"
            "annotations/instances_default.json and images/ (CVAT), or one .json file and its pictures",
            _contents(root),
            "FROM=<the folder that holds these>",
        )
    kinds = [kind_of(file) for file in files]
    if len(set(kinds)) < len(kinds) or ("" in kinds and len(kinds) > 1):
        raise _invalid(
            root,
            "it is not clear which annotation files to take",
            "one file for each of train, val and test, or one file for all",
            "\n".join(shown(str(file.relative_to(root)), 200) for file in files[:10]),
            "FROM=<a folder with one data set in it>",
        )
    return [
        Source(kind=kind, annotations=file, pictures=_picture_folder(root, file))
        for kind, file in zip(kinds, files, strict=True)
    ]


def kind_of(file: Path) -> str:
    """Return the split that a file's name states, or else its folder's name: train, val, test, or "" if neither does.

    >>> kind_of(Path("annotations/instances_val2017.json")), kind_of(Path("valid/_annotations.coco.json"))
    ('val', 'val')
    >>> kind_of(Path("annotations/instances_default.json")), kind_of(Path("train/labels.json"))
    ('', 'train')
    """
    for text in (file.stem, file.parent.name):
        kinds = {_KINDS[word] for word in re.split(r"[^a-z]+", text.lower()) if word in _KINDS}
        if len(kinds) == 1:
            return kinds.pop()
    return ""


def _annotation_files(root: Path) -> list[Path]:
    """Return the COCO files below a folder, each once; from a folder with files called instances_…, only these.

    A file that is called like one is taken whatever it contains, and so is a folder's only JSON file: the annotation
    check says what is wrong with it.
    """
    by_folder: dict[Path, list[Path]] = {}
    once = {file.resolve(): file for file in sorted(_walk(root), key=lambda file: (-len(file.parts), file))}
    for file in sorted(once.values()):
        by_folder.setdefault(file.parent, []).append(file)
    found = []
    for files in by_folder.values():
        instances = [file for file in files if file.name.startswith("instances_")]
        found += instances or [file for file in files if file.name == _ROBOFLOW or _looks_like_coco(file)]
    return found or (list(once.values()) if len(once) == 1 else [])


def _walk(root: Path) -> Iterator[Path]:
    """Yield the .json files below a folder that are not hidden."""
    for folder, folders, names in os.walk(
        root, followlinks=True
    ):  # links may form a cycle, so the depth is limited
        depth = len(Path(folder).relative_to(root).parts)
        folders[:] = [
            name for name in folders if depth < _DEPTH and not name.startswith(".") and name != "__MACOSX"
        ]
        yield from (
            Path(folder, name)
            for name in names
            if name.lower().endswith(".json") and not name.startswith(".")
        )


def _looks_like_coco(file: Path) -> bool:
    """Return whether a file contains the keys of an instances file, without parsing it."""
    if not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16, which the annotation check handles
            return True
        return all(content.find(b'"%s"' % word) >= 0 for word in (b"images", b"annotations", b"categories"))


def _picture_folder(root: Path, file: Path) -> Path:
    """Return the folder that has most of a file's pictures; if no folder has any, the likeliest one."""
    names = _file_names(file)
    folders = [folder for folder in _candidates(root, file) if folder.is_dir()]
    return max(
        folders, key=lambda folder: (_count(folder, names), _has_pictures(folder))
    )  # if several are equal, the first


def _candidates(root: Path, file: Path) -> list[Path]:
    base = file.parent
    if base != root and base.name.lower() in ("annotations", "annotation", "labels"):
        base = base.parent
    split = file.stem.removeprefix("instances_")
    kind = kind_of(file)
    spellings = [word for word, meant in _KINDS.items() if meant == kind]
    subfolders = dict.fromkeys((split, *spellings))
    homes = [base, base / "images", base / "data"]
    return [file.parent, *(home / name for name in subfolders for home in homes), *reversed(homes), root]


def _file_names(file: Path) -> list[str]:
    """Return a sample of the file names in an annotation file; an empty list if it cannot be read."""
    try:
        images = json.loads(file.read_bytes().decode("utf-8-sig"))["images"]
        names = [str(image["file_name"]).replace("\\", "/") for image in images]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []  # the annotation check reports the reason
    inside = [name for name in names if name and "\0" not in name and ".." not in PurePosixPath(name).parts]
    return inside[:: max(1, len(inside) // _SAMPLE)]


def _count(folder: Path, names: list[str]) -> int:
    found = 0
    for name in names:
        try:
            found += not name.startswith("/") and (folder / name).is_file()
        except (OSError, ValueError):  # the name is too long, or not valid
            continue
    return found


def _has_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in _PICTURES for entry in entries)


def _contents(root: Path) -> str:
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    return (
        ", ".join(shown(name) for name in names[:8]) + (", …" if len(names) > 8 else "") or "an empty folder"
    )


def _invalid(root: Path, what: str, expected: str, found: str, hint: str) -> AscendetError:
    return AscendetError(
        "data-invalid",
        f"{shown(paths.shorten(root), 200)}: {what}",
        expected=expected,
        found=found,
        hint=hint,
    )
