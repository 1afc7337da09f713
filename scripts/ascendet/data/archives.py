"""Fetch data sets as archives, unpack and check them."""

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

# The folder with the names, sizes and CRC-32 of the files in each unpacked folder, for `make data-check`.
CHECKLISTS = ".members"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The user's options for fetching.

    `keep` is "0" to remove archives after unpacking, "1" to keep them and to fetch again those that were removed.
    """

    mirror: str = ""
    accept_new: bool = False
    keep: str = ""


def ensure_archives(one: Dataset, splits: Sequence[str], choices: Choices) -> Path:
    """Fetch and unpack the missing parts of a data set with these splits, and return its folder.

    Raises
    ------
    AscendetError
        The errors of `assets.ensure` and `archive.unpack`. `data-invalid`: pictures and annotations disagree.
    """
    wanted = [ANNOTATIONS, *splits]
    if choices.keep == "1":
        names = [one.archives[part] for part in wanted]
        assets.ensure(names, mirror=choices.mirror, accept_new=choices.accept_new)
    with contextlib.suppress(AscendetError):
        return datasets.check(one, splits)
    folder = assets.ensure_folder(one.name)
    with files.disk_errors(folder), assets.reporting_unwritable(folder):
        lock = files.holding_lock(folder.resolve() / ".lock", one.name)
        with lock:
            missing = [part for part in wanted if not is_whole(one, part)]
            for part in missing:
                if (
                    folder / part
                ).exists():  # the user made it: our parts get their name when they are complete
                    shown = paths.shorten(folder / part)
                    raise datasets.invalid(
                        folder / part,
                        "no such folder, or a complete one",
                        "an incomplete folder",
                        f"mv '{shown}' <elsewhere>",
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
    """Unpack one archive into `folder`/`part`, which gets its name when it is complete and checked."""
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
    os.sync()  # flush a hundred thousand files at once, before the folder gets its name
    temp.rename(folder / part)
    parts = {name: (manifest.read(folder / CHECKLISTS / name) or {}).get("archive") for name in one.archives}
    manifest.write(
        folder, {"stage": f"data/{one.name}", "key": manifest.digest_inputs(parts), "archives": parts}
    )


def is_whole(one: Dataset, part: str) -> bool:
    """Return whether a part looks complete: all annotation files exist, or the number of pictures is right."""
    if part == ANNOTATIONS:
        return all((one.folder / part / f"instances_{split}.json").is_file() for split in one.splits)
    return datasets.count_pictures(one.folder / part) == one.splits[part]


def check_images(folder: Path, annotations: Path) -> None:
    """Check that a folder has exactly the pictures in the list of its annotations, with the same widths and heights.

    Raises
    ------
    AscendetError
        `data-invalid`, with the first pictures that differ.
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
            with Image.open(folder / name) as image:  # this reads only the header
                size = image.size
        except OSError:
            problems.append(f"{name} is no picture")
            continue
        if size != listed[name]:
            problems.append(f"{name} is {size[0]} x {size[1]}, not {listed[name][0]} x {listed[name][1]}")
    if problems:
        raise datasets.invalid(
            folder,
            f"the {len(listed)} pictures of {annotations.name}",
            shorten(problems),
            f"rm -r '{paths.shorten(folder)}' && make data",
        )


def list_images(annotations: Path) -> list[dict[str, object]]:
    """Return the list `images` of a COCO file, without parsing its polygons."""
    text = annotations.read_text(encoding="utf-8")
    try:
        start = text.index('"images"') + len('"images"')
        start = text.index("[", text.index(":", start))
        images: list[dict[str, object]] = json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError as error:
        raise datasets.invalid(
            annotations,
            "COCO annotations",
            f"no list `images` ({error})",
            f"rm '{annotations}' && make data",
        ) from error
    return images


def shorten(lines: Sequence[str]) -> str:
    """Return the first ten lines as one text, with the number of further ones."""
    return "\n".join([*lines[:10], *([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])])
