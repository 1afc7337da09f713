"""Make `shapes`, a small instance-segmentation data set in COCO's format, from a seed.

Runs in a stack's environment (numpy, OpenCV, shapely, pycocotools), as a program:

    python shapes.py --out FOLDER --seed 0 --train 600 --val 120

Triangles, rectangles and stars of many sizes overlap on a textured background; they are rotated, and the picture's edge
cuts some of them. As in photographs, each class has its own surface (stripes, blotches, dots) and a typical range of
colours, and the background is paler than the objects. An annotation covers the visible part of an object, in several
pieces if other objects divide it. Some pictures hold a swarm of tiny objects, annotated as one crowd region (RLE,
`iscrowd` 1). As in COCO, some pictures have no object or only a crowd, some objects are about 4 px wide, and masks are
polygons or RLE. Equal arguments and library versions give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from shapely import MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry

Points = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]  # (height, width, 3), 0…255

IMAGE_SIZES = ((256, 256), (256, 208), (208, 256))  # (height, width) in pixels
RADIUS = (18.0, 90.0)  # range of the radius of the circle around an object, in pixels; sampled log-uniformly
TINY_RADIUS = (2.0, 3.0)
TINY_AREA = 5**2  # below this an object counts as tiny, in pixels
MIN_VISIBLE = 0.7  # share of an object's area that other objects must leave visible
HUE_SPREAD = 1 / 6  # largest deviation from a class's hue, to both sides, in turns of the colour wheel
EMPTY_SHARE = 0.05  # share of the pictures that have no object
CROWD_SHARE = 0.12  # share of the pictures that have a crowd
ALONE_SHARE = 0.15  # share of the crowds that are alone in their picture
TINY_SHARE = 0.05  # share of the pictures that have one tiny object
RLE_SHARE = 0.1  # share of the objects whose mask is stored as RLE, not as polygons
SUPERSAMPLE = 4


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of objects: name, hue, and functions that sample an outline in the unit circle and a surface.

    `surface` returns a relief of (height, width), values of about -1 to 1, which is then coloured. `hue` is the middle
    of the class's range on the colour wheel, in turns; neighbouring ranges touch.
    """

    name: str
    hue: float
    outline: Callable[[np.random.Generator], Points]
    surface: Callable[[np.random.Generator, int, int], Image]


def _triangle(rng: np.random.Generator) -> Points:
    return _on_circle(np.arange(3) * 2 * math.pi / 3 + rng.uniform(-0.35, 0.35, 3))


def _rectangle(rng: np.random.Generator) -> Points:
    half = math.atan(rng.uniform(0.45, 1.0))
    return _on_circle(np.array([half, math.pi - half, math.pi + half, -half]))


def _star(rng: np.random.Generator) -> Points:
    points = _on_circle(np.arange(10) * math.pi / 5)
    points[1::2] *= rng.uniform(0.38, 0.5)
    return points


def _waves(rng: np.random.Generator, height: int, width: int, angle: float) -> Image:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turns = (x * math.cos(angle) + y * math.sin(angle)) / rng.uniform(8, 14)  # a period is that many pixels
    return np.asarray(np.sin((turns + rng.uniform(0, 1)) * np.float32(2 * math.pi)), np.float32)


def _stripes(rng: np.random.Generator, height: int, width: int) -> Image:
    return _waves(rng, height, width, rng.uniform(0, math.pi))


def _dots(rng: np.random.Generator, height: int, width: int) -> Image:
    angle = rng.uniform(0, math.pi)
    across = _waves(rng, height, width, angle) * _waves(rng, height, width, angle + math.pi / 2)
    return np.asarray(np.where(across > 0, 1, -1), np.float32)


def _blotches(rng: np.random.Generator, height: int, width: int) -> Image:
    cells = int(rng.integers(5, 10))
    noise = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _on_circle(angles: Points) -> Points:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


CATEGORIES = (
    Category(name="triangle", hue=0.0, outline=_triangle, surface=_stripes),
    Category(name="rectangle", hue=1 / 3, outline=_rectangle, surface=_blotches),
    Category(name="star", hue=2 / 3, outline=_star, surface=_dots),
)


@dataclass(kw_only=True)
class Thing:
    """An object or a crowd in a scene: category, outlines to paint, the part that is visible, and annotation form."""

    category: int
    outlines: list[Points]
    visible: BaseGeometry
    crowd: bool
    rle: bool


def make_scene(rng: np.random.Generator, height: int, width: int) -> list[Thing]:
    """Place things from the back to the front so that enough of each stays visible."""
    frame = box(0, 0, width, height)
    things: list[Thing] = []
    if rng.random() < EMPTY_SHARE:
        return things
    if rng.random() < CROWD_SHARE:
        things.append(_make_crowd(rng, frame))
        if rng.random() < ALONE_SHARE:
            return things
    if rng.random() < TINY_SHARE:
        _add_objects(rng, things, frame, 1, TINY_RADIUS)
    _add_objects(rng, things, frame, int(rng.integers(3, 7)) - len(things), RADIUS)
    return things


def _add_objects(
    rng: np.random.Generator, things: list[Thing], frame: BaseGeometry, count: int, radii: tuple[float, float]
) -> None:
    """Place up to `count` objects in front of those that are already in the scene."""
    _, _, width, height = frame.bounds
    wanted = len(things) + count
    for _ in range(8 * count):
        if len(things) >= wanted:
            break
        category = int(rng.integers(len(CATEGORIES)))
        radius = math.exp(rng.uniform(math.log(radii[0]), math.log(radii[1])))
        outline = _place(rng, CATEGORIES[category], radius, rng.uniform(0, 1, 2) * (width, height))
        new = Thing(
            category=category,
            outlines=[outline],
            visible=Polygon(outline).intersection(frame),
            crowd=False,
            rle=bool(rng.random() < RLE_SHARE),
        )
        remains = [thing.visible.difference(new.visible) for thing in things]
        seen = [(new, new.visible), *zip(things, remains, strict=True)]
        if all(_is_seen(thing, rest) for thing, rest in seen):
            for thing, rest in zip(things, remains, strict=True):
                thing.visible = rest
            things.append(new)


def _make_crowd(rng: np.random.Generator, frame: BaseGeometry) -> Thing:
    """Return a swarm of up to 24 tiny objects of one category that do not touch each other."""
    category = int(rng.integers(len(CATEGORIES)))
    _, _, width, height = frame.bounds
    centre = rng.uniform(0.25, 0.75, 2) * (width, height)
    swarm: BaseGeometry = Polygon()
    outlines: list[Points] = []
    for _ in range(int(rng.integers(12, 25))):
        outline = _place(rng, CATEGORIES[category], rng.uniform(4, 6), centre + rng.normal(0, 18, 2))
        shape = Polygon(outline).intersection(frame)
        if not shape.is_empty and swarm.disjoint(shape):
            outlines.append(outline)
            swarm = swarm.union(shape)
    return Thing(category=category, outlines=outlines, visible=swarm, crowd=True, rle=True)


def _place(rng: np.random.Generator, category: Category, radius: float, centre: Points) -> Points:
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # Coordinates are stored with two decimals; paint what is stored.
    points: Points = np.round(category.outline(rng) @ turn.T * radius + centre, 2)
    return points


def _area_of(thing: Thing) -> float:
    return float(sum(Polygon(outline).area for outline in thing.outlines))


def _is_seen(thing: Thing, rest: BaseGeometry) -> bool:
    """Return whether enough of a thing is visible, and COCO's polygons can express that part (areas without holes)."""
    parts = list(_polygons(rest))
    whole = sum(part.area for part in parts)
    return whole >= MIN_VISIBLE * _area_of(thing) and not any(part.interiors for part in parts)


def _polygons(shape: BaseGeometry) -> Iterator[Polygon]:
    """Return the polygons of a geometry, without slivers of less than one pixel."""
    parts = shape.geoms if hasattr(shape, "geoms") else [shape]
    return (part for part in parts if isinstance(part, Polygon | MultiPolygon) and part.area >= 1.0)


def paint(rng: np.random.Generator, things: list[Thing], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return the scene as a picture, (height, width, 3), BGR."""
    image = _coloured(rng, _ground(rng, height, width), _colour(rng, rng.uniform(0, 1), (0.0, 0.35)))
    for thing in things:
        hue = CATEGORIES[thing.category].hue + rng.uniform(-1, 1) * HUE_SPREAD
        colour = _colour(rng, hue, (0.6, 1.0))
        cover = _coverage(thing.outlines, height, width)[..., None]
        relief = CATEGORIES[thing.category].surface(rng, height, width)
        image = image * (1 - cover) + _coloured(rng, relief, colour) * cover
    image += rng.normal(0, 2, (height, width, 1)).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, hue: float, saturation: tuple[float, float]) -> Points:
    """Return a colour (blue, green, red, 0…255) of a hue in turns, with a saturation from a range (0 is grey)."""
    value = rng.uniform(110, 245)
    wheel = np.abs((hue * 6 + np.array([2.0, 4.0, 0.0])) % 6 - 3) - 1  # HSV with value 1 and saturation 1
    colour: Points = value * (1 - rng.uniform(*saturation) * (1 - np.clip(wheel, 0, 1)))
    return colour


def _coverage(outlines: list[Points], height: int, width: int) -> Image:
    """Return the share of each pixel that lies within the outlines, (height, width), 0…1."""
    canvas = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    corners = [np.rint(outline * SUPERSAMPLE * 16 - 8).astype(np.int32) for outline in outlines]
    cv2.fillPoly(canvas, corners, 255, shift=4)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / np.float32(255)


def _ground(rng: np.random.Generator, height: int, width: int) -> Image:
    """Return a faint relief for the background, of the surface of any class."""
    kind = CATEGORIES[int(rng.integers(len(CATEGORIES)))].surface
    return kind(rng, height, width) * np.float32(0.3)


def _coloured(rng: np.random.Generator, relief: Image, colour: Points) -> Image:
    """Return a relief of (height, width) in a colour, as (height, width, 3)."""
    image: Image = (colour + relief[..., None] * rng.uniform(20, 45, 3)).astype(np.float32)
    return image


def annotate(thing: Thing, height: int, width: int) -> dict[str, Any] | None:
    """Return COCO's fields of one thing, with the mask's area and box, or None if no pixel of it is visible."""
    polygons = [
        [round(float(value), 2) for point in part.exterior.coords[:-1] for value in point]
        for part in _polygons(thing.visible)
    ]
    if not polygons:
        return None
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    area = int(coco_mask.area(rle))
    if area == 0:
        return None
    segmentation: Any = polygons
    if thing.crowd:
        segmentation = _uncompressed(coco_mask.decode(rle))
    elif thing.rle:  # compressed, as tools write it
        segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    return {
        "category_id": thing.category + 1,
        "iscrowd": int(thing.crowd),
        "area": area,
        "bbox": [float(value) for value in coco_mask.toBbox(rle)],
        "segmentation": segmentation,
    }


def _uncompressed(mask: npt.NDArray[np.uint8]) -> dict[str, list[int]]:
    """Return a mask as uncompressed RLE, as in COCO's annotation files: column by column, zeros first."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return {"counts": [0, *runs] if pixels[0] else runs, "size": list(mask.shape)}


def make_split(out: Path, split: str, count: int, seed: int) -> None:
    """Write `<out>/<split>/*.png` and `<out>/annotations/instances_<split>.json`."""
    (out / split).mkdir(parents=True)
    (out / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        # A picture depends on its own seed only, so a larger split begins with the smaller one's images.
        rng = np.random.default_rng([seed, int.from_bytes(split.encode(), "big"), index])
        height, width = IMAGE_SIZES[int(rng.integers(len(IMAGE_SIZES)))]
        things = make_scene(rng, height, width)
        name = f"{index + 1:06d}.png"
        ok, png = cv2.imencode(".png", paint(rng, things, height, width), [cv2.IMWRITE_PNG_COMPRESSION, 3])
        if not ok:
            raise OSError(f"{name} could not be encoded")
        (out / split / name).write_bytes(png.tobytes())
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for entry in filter(None, (annotate(thing, height, width) for thing in things)):
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **entry})
    content = {
        "info": {"description": "shapes: generated by Ascendet", "version": "2", "seed": seed},
        "categories": [
            {"id": number, "name": category.name, "supercategory": "shape"}
            for number, category in enumerate(CATEGORIES, 1)
        ],
        "images": images,
        "annotations": annotations,
    }
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    (out / "annotations" / f"instances_{split}.json").write_text(text + "\n", encoding="utf-8")


def check_split(out: Path, split: str) -> dict[str, int]:
    """Check a written split (all pictures exist, each area and box matches its mask) and return counts of its content.

    Raises
    ------
    ValueError
        A picture or annotation is wrong; the message names the first one.
    """
    content = json.loads((out / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
    images = {image["id"]: image for image in content["images"]}
    for image in images.values():
        pixels = cv2.imread(str(out / split / image["file_name"]))
        if pixels is None or pixels.shape != (image["height"], image["width"], 3):
            raise ValueError(f"{split}/{image['file_name']} is missing or of another size")
    objects: list[tuple[dict[str, Any], int]] = []  # (annotation, number of pieces)
    crowds: list[tuple[dict[str, Any], int]] = []
    for entry in content["annotations"]:
        image = images[entry["image_id"]]
        rle = as_rle(entry["segmentation"], image["height"], image["width"])
        if int(coco_mask.area(rle)) != entry["area"] or coco_mask.toBbox(rle).tolist() != entry["bbox"]:
            raise ValueError(f"{split}: annotation {entry['id']} has an area or box that is not its mask's")
        pieces = cv2.connectedComponents(coco_mask.decode(rle))[0] - 1
        (crowds if entry["iscrowd"] else objects).append((entry, pieces))
    with_object, with_crowd = ({entry["image_id"] for entry, _ in part} for part in (objects, crowds))
    return {
        "images": len(images),
        "with_objects": len(with_object),
        "empty": len(images.keys() - with_object - with_crowd),
        "only crowd": len(with_crowd - with_object),
        "objects": len(objects),
        "tiny": sum(entry["area"] < TINY_AREA for entry, _ in objects),
        "small": sum(entry["area"] < 32**2 for entry, _ in objects),
        "large": sum(entry["area"] > 96**2 for entry, _ in objects),
        "in pieces": sum(pieces > 1 for _, pieces in objects),
        "as RLE": sum(isinstance(entry["segmentation"], dict) for entry, _ in objects),
        "crowds": len(crowds),
    }


def as_rle(segmentation: Any, height: int, width: int) -> Any:
    """Convert an annotation's mask (polygons, uncompressed or compressed RLE) to pycocotools' compressed RLE.

    Raises
    ------
    ValueError
        The RLE has another size than the image.
    """
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if segmentation["size"] != [height, width]:
        raise ValueError(f"an RLE of size {segmentation['size']} in an image of {[height, width]}")
    compressed = isinstance(segmentation["counts"], str)
    return segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)


def main(argv: list[str] | None = None) -> int:
    """Generate both splits, check them, and print their counts as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=600, help="images in the train split")
    parser.add_argument("--val", type=int, default=120, help="images in the val split")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)  # pictures are small; threads only cost
    counts = {}
    for split, count in (("train", args.train), ("val", args.val)):
        make_split(args.out, split, count, args.seed)
        counts[split] = check_split(args.out, split)
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
