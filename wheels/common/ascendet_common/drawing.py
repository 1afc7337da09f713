"""Draw objects on a picture: boxes, masks, and labels in any language that the machine has a font for."""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from ascendet_common.images import Pixels, printable

_OPACITY = 0.4  # of a mask
_DASH, _SPACE = 6, 4  # pixels of a dashed line, per pixel of its width
# Where distributions keep fonts, and how those with Chinese characters are called there.
_FONTS = Path("/usr/share/fonts")
_CHINESE = ("NotoSansCJK", "NotoSansSC", "SourceHanSans", "wqy-", "DroidSansFallback")

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Something to draw.

    label
        The number of its class, which decides its colour.
    text
        What stands at its box.
    box
        Left, top, width and height in pixels of the picture.
    mask
        Compressed RLE of the picture's size, or None. One of another size is left out.
    doubtful
        Whether its outline is dashed.
    """

    label: int
    text: str
    box: Sequence[float]
    mask: dict[str, Any] | None = None
    doubtful: bool = False


def colour(label: int) -> tuple[int, int, int]:
    """Return a class's colour, BGR: neighbours in the list of classes get hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1.0, 0.85, 0.95)  # the golden ratio's part
    return round(255 * blue), round(255 * green), round(255 * red)


def draw(pixels: Pixels, things: Sequence[Thing], size: tuple[int, int] | None = None) -> Pixels:
    """Return the picture with things on it, the last one on top.

    Parameters
    ----------
    pixels
        Shape (height, width, 3), BGR; stays as it is.
    things
        In pixels of this picture.
    size
        (height, width) of what is returned, which the picture is scaled to first; None: its own. Lines and labels are
        as large as this size asks for.
    """
    height, width = size or pixels.shape[:2]
    across, down = width / pixels.shape[1], height / pixels.shape[0]
    smaller = width < pixels.shape[1]
    canvas = pixels.copy()
    if (height, width) != pixels.shape[:2]:
        canvas = cv2.resize(
            pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        )
    line = max(1, round(max(height, width) / 320))
    for thing in things:
        if thing.mask is not None and tuple(thing.mask["size"]) == pixels.shape[:2]:
            _lay(canvas, thing.mask, colour(thing.label), line)
    image = Image.fromarray(canvas[..., ::-1])
    pen = ImageDraw.Draw(image)
    boxes = []
    for thing in things:
        left, top, wide, high = thing.box
        x, y = left * across, top * down
        box = (x, y, max(x, x + wide * across - 1), max(y, y + high * down - 1))
        boxes.append(box)
        _frame(pen, box, _shade(thing.label), line, dashed=thing.doubtful)
    taken: list[_Box] = []
    for thing, box in reversed(
        list(zip(things, boxes, strict=True))
    ):  # those on top choose their labels' places
        _label(pen, thing, box, taken, line)
    return np.ascontiguousarray(np.asarray(image)[..., ::-1])


def write(pixels: Pixels, file: Path) -> None:
    """Write a picture in the format that the file's suffix names, also where the file's name is not UTF-8."""
    done, content = cv2.imencode(file.suffix, pixels)
    if not done:
        raise RuntimeError(f"OpenCV cannot write {file.suffix}")
    file.write_bytes(content.tobytes())


def _shade(label: int) -> tuple[int, int, int]:
    blue, green, red = colour(label)
    return red, green, blue


def _lay(canvas: Pixels, rle: dict[str, Any], shade: tuple[int, int, int], line: int) -> None:
    """Lay a mask over the canvas, scaled to it, with its outline."""
    mask = coco_mask.decode([rle])[..., 0]
    size = canvas.shape[1], canvas.shape[0]
    if mask.shape != canvas.shape[:2]:
        mask = (cv2.resize(mask * 255, size, interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    inside = mask.astype(bool)
    canvas[inside] = ((1 - _OPACITY) * canvas[inside] + _OPACITY * np.array(shade)).astype(np.uint8)
    outlines, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, outlines, -1, shade, max(1, line - 1), cv2.LINE_AA)


def _frame(
    pen: ImageDraw.ImageDraw, box: _Box, shade: tuple[int, int, int], line: int, *, dashed: bool
) -> None:
    """Draw a box's outline; a dashed one has white in between, so that it can be told from a solid one anywhere."""
    pen.rectangle(box, outline=(255, 255, 255) if dashed else shade, width=line + dashed)
    if not dashed:
        return
    x0, y0, x1, y1 = box
    step, dash = (_DASH + _SPACE) * line, _DASH * line
    for y in (y0, y1 - line):
        for x in np.arange(x0, x1, step):
            pen.rectangle((x, y, min(x + dash, x1), y + line), fill=shade)
    for x in (x0, x1 - line):
        for y in np.arange(y0, y1, step):
            pen.rectangle((x, y, x + line, min(y + dash, y1)), fill=shade)


def _label(pen: ImageDraw.ImageDraw, thing: Thing, box: _Box, taken: list[_Box], line: int) -> None:
    """Write a thing's text at its box, where no other label is; a doubtful one's is left out if there is no place."""
    width, height = pen.im.size
    font = _font(thing.text, max(11, round(max(width, height) / 40)))
    text = printable(thing.text) if font[1] else f"#{thing.label + 1}"
    _, _, right, bottom = pen.textbbox((0, 0), text, font=font[0])
    wide, high = right + 6, bottom + 4
    x0, y0, x1, y1 = box
    # Above the box, below its upper edge, below it, above its lower edge; on the left and then on the right.
    places = [(x, y) for x in (x0, x1 - wide) for y in (y0 - high, y0 + line, y1 + line, y1 - high)]
    spots: list[_Box] = []
    for x, y in places:
        x, y = min(max(0, x), max(0, width - wide)), min(max(0, y), max(0, height - high))
        spots.append((x, y, x + wide, y + high))
    free = [spot for spot in spots if not any(_overlap(spot, other) for other in taken)]
    if not free and thing.doubtful:
        return
    spot = (free or spots)[0]
    taken.append(spot)
    shade = _shade(thing.label)
    pen.rectangle(spot, fill=shade)
    bright = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 140  # luma, ITU-R BT.601
    pen.text((spot[0] + 3, spot[1] + 1), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font[0])


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@functools.cache
def _font(text: str, size: int) -> tuple[Any, bool]:
    """Return a font and whether it has the text's characters: Pillow's own for Latin ones, else one of the machine."""
    if all(ord(one) < 0x250 for one in text):
        return ImageFont.load_default(size), True
    file = _chinese()
    return (ImageFont.truetype(file, size), True) if file else (ImageFont.load_default(size), False)


@functools.cache
def _chinese() -> str | None:
    """Return a font file with Chinese characters, of regular weight if there is one; None if there is none."""
    files = sorted(_FONTS.rglob("*.tt[cf]")) + sorted(_FONTS.rglob("*.otf"))
    found = [file for name in _CHINESE for file in files if file.name.startswith(name)]
    return next((str(file) for file in sorted(found, key=lambda file: "Regular" not in file.name)), None)
