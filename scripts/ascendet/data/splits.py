"""Divide a data set that is taken in into splits, give these the same classes, and write them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ascendet.core import manifest
from ascendet.data.datasets import ANNOTATIONS
from ascendet.errors import AscendetError
from ascendet.supply import archive

MEMBERS = ".members"  # the folder with each split's names, sizes and CRC-32, for `make data-check`
_THREADS = min(16, 2 * (os.cpu_count() or 1))

Content = dict[str, Any]


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def split(content: Content, part: float, seed: int) -> tuple[Content, Content]:
    """Divide a file's content into a training and a validation part, by the hash of each picture's name and the seed.

    A picture that is added later therefore moves only few others. Each part has at least one picture.

    Raises
    ------
    AscendetError
        `data-invalid`: there is only one picture.
    """

    def key(image: Content) -> bytes:
        return hashlib.sha256(f"{seed} {image['file_name']}".encode("utf-8", "surrogateescape")).digest()

    images = sorted(content["images"], key=key)
    if len(images) < 2:
        raise AscendetError(
            "data-invalid",
            "one picture cannot be divided into two splits",
            expected="two or more pictures",
            hint="add pictures, then run the command again",
        )
    count = min(max(1, round(part * len(images))), len(images) - 1)
    chosen = {image["id"] for image in images[:count]}

    def only(inside: bool) -> Content:
        return content | {
            "images": [image for image in content["images"] if (image["id"] in chosen) == inside],
            "annotations": [one for one in content["annotations"] if (one["image_id"] in chosen) == inside],
        }

    return only(False), only(True)


def join_classes(contents: Mapping[str, Content]) -> list[str]:
    """Give all splits the same categories, in place, and return the categories' names.

    Categories with the same name are the same. If all splits have the same names and ids, nothing changes; otherwise
    the categories of the training split come first, then the others, numbered from 1.
    """
    lists = {kind: content["categories"] for kind, content in contents.items()}
    ordered = [lists[kind] for kind in ("train", "val", "test") if kind in lists]
    joined: dict[str, Content] = {}
    for categories in ordered:
        for category in categories:
            joined.setdefault(category["name"], category)
    pairs = [[(category["id"], category["name"]) for category in categories] for categories in ordered]
    if all(one == pairs[0] for one in pairs):
        return list(joined)
    say("the splits have different classes or class ids; classes are joined by name and numbered from 1")
    ids = {name: number for number, name in enumerate(joined, 1)}
    for content in contents.values():
        own = {category["id"]: ids[category["name"]] for category in content["categories"]}
        content["categories"] = [category | {"id": ids[name]} for name, category in joined.items()]
        for one in content["annotations"]:
            one["category_id"] = own[one["category_id"]]
    return list(joined)


def count(content: Content) -> dict[str, int]:
    """Return the numbers of pictures, of pictures with objects, and of objects in a split; crowds do not count."""
    real = [one for one in content["annotations"] if not one["iscrowd"]]
    usable = {one["image_id"] for one in real}
    return {"images": len(content["images"]), "with_objects": len(usable), "objects": len(real)}


def write(work: Path, kind: str, content: Content, pictures: Path) -> dict[str, archive.Content]:
    """Write a split's annotations, link or copy its pictures, and return their size and CRC-32 by name."""
    (work / ANNOTATIONS).mkdir(exist_ok=True)
    file = work / ANNOTATIONS / f"instances_{kind}.json"
    file.write_text(json.dumps(content), encoding="ascii")  # JSON escapes names that are not UTF-8
    names = [image["file_name"] for image in content["images"]]
    for folder in {(work / kind / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)
    members = link_files({work / kind / name: pictures / name for name in names}, f"{work.name}: {kind}")
    found = dict(zip(names, members, strict=True))
    (work / MEMBERS / kind).mkdir(parents=True)
    manifest.write(work / MEMBERS / kind, {"members": found})
    return found


def link_files(files: Mapping[Path, Path], label: str) -> list[archive.Content]:
    """Link or copy files (source by target), and return the size and CRC-32 of each."""
    from ascendet.core.progress import Meter

    total = sum(source.stat().st_size for source in files.values())
    found, done = [], 0
    with Meter(label) as meter, ThreadPoolExecutor(_THREADS) as threads:
        for member in threads.map(lambda target: _link_file(files[target], target), files):
            found.append(member)
            done += member[0]
            meter.show(done, total)
    return found


def _link_file(source: Path, target: Path) -> archive.Content:
    source = source.resolve()  # a link's target, not the link
    try:
        os.link(source, target)
    except OSError:  # another file system, no hard links, another user's file, too many links
        shutil.copyfile(source, target)
    return archive.content(target)
