"""Data sets that are fetched as archives, unpacked and checked."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets
from ascendet.data.datasets import ANNOTATIONS, Dataset
from ascendet.errors import AscendetError
from ascendet.supply import archive, assets

# What each unpacked folder holds, for `make data-check`: names, sizes, CRC-32.
CHECKLISTS = ".members"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user may say about fetching."""

    mirror: str = ""
    accept_new: bool = False
    # The archives, once they are unpacked: "0" removes them, "1" fetches even those removed before.
    keep: str = ""


# -- archives --


def ensure_archives(one: Dataset, splits: Sequence[str], choices: Choices) -> Path:
    """Fetch and unpack what is missing of a data set with these splits, and return its folder.

    Raises
    ------
    AscendetError
        What `assets.ensure` and `archive.unpack` raise; `data-invalid` where images and annotations disagree.
    """
    wanted = [ANNOTATIONS, *splits]
    if choices.keep == "1":
        names = [one.archives[part] for part in wanted]
        assets.ensure(names, mirror=choices.mirror, accept_new=choices.accept_new)
    with contextlib.suppress(AscendetError):
        return datasets.check(one, splits)
    folder = assets.place(one.name)
    with files.disk_errors(folder), assets.unwritable_named(folder):
        lock = files.holding_lock(folder.resolve() / ".lock", one.name)
        with lock:
            missing = [part for part in wanted if not is_whole(one, part)]
            for part in missing:
                if (folder / part).exists():  # the user's: what we unpack appears whole
                    shown = paths.shorten(folder / part)
                    raise datasets.invalid(
                        folder / part, "nothing, or all of it", "a part of it", f"mv '{shown}' <elsewhere>"
                    )
            known = assets.load()
            archives = [known[one.archives[part]] for part in missing]
            files.check_space(folder, sum(asset.unpacked for asset in archives), "ASCENDET_DATA")
            assets.ensure(
                [asset.name for asset in archives], mirror=choices.mirror, accept_new=choices.accept_new
            )
            for part, asset in zip(missing, archives, strict=True):
                _unpack(one, folder, part, asset)
                if choices.keep == "0":
                    asset.path.unlink()
    return datasets.check(one, splits)


def _unpack(one: Dataset, folder: Path, part: str, asset: assets.Asset) -> None:
    """Unpack one archive into `folder`/`part`, which appears when it is whole and checked."""
    temp = folder / f".tmp-{part}"
    print(f"{paths.shorten(folder / part)}: unpacking {asset.name}", file=sys.stderr, flush=True)
    temp.mkdir(exist_ok=True)
    members = archive.unpack(asset.path, temp, top=part, limit=asset.unpacked)
    for name, expected in asset.members.items():
        found = files.digest(temp / name) if name in members else "no such member"
        if found != expected:
            raise datasets.invalid(
                temp / name, f"sha256:{expected}", f"sha256:{found}", f"rm '{asset.path}' && make data"
            )
    if part != ANNOTATIONS:
        check_images(temp, folder / ANNOTATIONS / f"instances_{part}.json")
    checklists = folder / CHECKLISTS / part
    checklists.mkdir(parents=True, exist_ok=True)
    manifest.write(checklists, {"archive": asset.sha256, "members": members})
    os.sync()  # a hundred thousand files at once, before the folder's name says that they are there
    temp.rename(folder / part)
    parts = {name: (manifest.read(folder / CHECKLISTS / name) or {}).get("archive") for name in one.archives}
    manifest.write(
        folder, {"stage": f"data/{one.name}", "key": manifest.digest_inputs(parts), "archives": parts}
    )


def is_whole(one: Dataset, part: str) -> bool:
    """A quick look: the annotations are there, or as many images as there should be."""
    if part == ANNOTATIONS:
        return all((one.folder / part / f"instances_{split}.json").is_file() for split in one.splits)
    return datasets.count_pictures(one.folder / part) == one.splits[part]


def check_images(folder: Path, annotations: Path) -> None:
    """Hold a folder of images to the list in its annotations: the same names, the same widths and heights.

    Raises
    ------
    AscendetError
        `data-invalid` names the first that differ.
    """
    from PIL import Image

    listed = {
        str(image["file_name"]): (image["width"], image["height"]) for image in list_images(annotations)
    }
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if not entry.name.startswith(".")}
    differing = sorted(found ^ listed.keys())
    problems = [f"{name} is {'not listed' if name in found else 'missing'}" for name in differing]
    for name in sorted(found & listed.keys()) if not problems else []:
        try:
            with Image.open(folder / name) as image:  # reads no more than the header
                size = image.size
        except OSError:
            problems.append(f"{name} is no image")
            continue
        if size != listed[name]:
            problems.append(f"{name} is {size[0]} x {size[1]}, not {listed[name][0]} x {listed[name][1]}")
    if problems:
        raise datasets.invalid(
            folder,
            f"the {len(listed)} images of {annotations.name}",
            few(problems),
            f"rm -r '{paths.shorten(folder)}' && make data",
        )


def list_images(annotations: Path) -> list[dict[str, object]]:
    """The list `images` of a COCO file, without making objects of its million polygons."""
    text = annotations.read_text(encoding="utf-8")
    try:
        start = text.index('"images"') + len('"images"')
        start = text.index("[", text.index(":", start))
        images: list[dict[str, object]] = json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError as error:
        raise datasets.invalid(
            annotations,
            "COCO annotations",
            f"no list of images ({error})",
            f"rm '{annotations}' && make data",
        ) from error
    return images


def few(lines: Sequence[str]) -> str:
    """Return the first ten lines as one text, and how many more there are."""
    return "\n".join([*lines[:10], *([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])])
