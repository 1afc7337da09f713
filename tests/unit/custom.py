"""Small COCO data sets in the layouts that people's come in, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE = 64
COLOURS = ("red", "lime", "blue", "yellow", "cyan")


def draw(folder: Path, names: Sequence[str], classes: Sequence[str], first: int = 1) -> dict[str, Any]:
    """Draw a square of each class into every picture; return the annotations."""
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": first + number, "name": name} for number, name in enumerate(classes)]
    for number, name in enumerate(names, 1):
        picture = Image.new("RGB", (SIZE, SIZE))
        for index in range(len(classes)):
            left, top, side = (3 * number + 12 * index) % 40, (5 * number + 9 * index) % 40, 16 + number % 4
            ImageDraw.Draw(picture).rectangle([left, top, left + side, top + side], fill=COLOURS[index])
            right, bottom = left + side, top + side
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": first + index,
                    "bbox": [left, top, side, side],
                    "area": side * side,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "iscrowd": 0,
                }
            )
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        content["images"].append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
    return content


def write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def coco(root: Path, classes: Sequence[str] = ("cat", "dog"), train: int = 4, val: int = 2) -> Path:
    """COCO's own layout; ids of classes that are neither from 1 nor without gaps would be COCO's too."""
    for split, count in (("train2017", train), ("val2017", val)):
        content = draw(root / split, [f"{n:012d}.jpg" for n in range(count)], classes, first=7)
        write(root / "annotations" / f"instances_{split}.json", content)
    return root


def roboflow(root: Path, classes: Sequence[str] = COLOURS) -> Path:
    """Roboflow's export: pictures and annotations in one folder, the project's name as the category 0, ids from 0."""
    for split, count in (("train", 5), ("valid", 2), ("test", 1)):
        content = draw(root / split, [f"{split}_{n}.rf.png" for n in range(count)], classes)
        for category in content["categories"]:
            category["supercategory"] = "colours"
        content["categories"].insert(0, {"id": 0, "name": "colours", "supercategory": "none"})
        write(root / split / "_annotations.coco.json", content)
    return root


def cvat(
    root: Path, pictures: str = "images/default", classes: Sequence[str] = ("cell",), count: int = 10
) -> Path:
    """CVAT's export: everything in one file, names with folders in them."""
    names = [f"{'b' if n % 2 else 'a'}/{n}.png" for n in range(count)]
    write(root / "annotations" / "instances_default.json", draw(root / pictures, names, classes))
    return root


def single(root: Path, count: int = 10) -> Path:
    """One file beside a folder of pictures."""
    write(root / "labels.json", draw(root / "images", [f"{n}.png" for n in range(count)], ("nut", "bolt")))
    return root
