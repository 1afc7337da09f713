"""Draw detections on a picture with OpenCV: no framework's visualizer is there where OMs run."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from ascendet_common.images import Pixels
from pycocotools import mask as coco_mask

from staged_om.host import Detections

_OPACITY = 0.45  # of a mask


def colour(label: int) -> tuple[int, int, int]:
    """Return a class's colour, BGR: neighbours in the list of classes get hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618 % 1.0, 0.85, 0.95)  # the golden ratio's part
    return round(255 * blue), round(255 * green), round(255 * red)


def draw(pixels: Pixels, found: Detections, classes: Sequence[str], score: float, file: Path) -> None:
    """Write a picture with masks, boxes, classes and scores of the objects from a score on, the best ones on top.

    Parameters
    ----------
    pixels
        Shape (height, width, 3), BGR; stays as it is.
    found
        The detections in this picture.
    classes
        Their names by label.
    score
        The lowest score to draw.
    file
        What to write; the suffix says the format.
    """
    canvas = pixels.copy()
    scale = max(0.4, max(pixels.shape[:2]) / 1600)
    thickness = max(1, round(1.5 * scale))
    for at in reversed(range(len(found.scores))):
        if found.scores[at] < score:
            continue
        shade = colour(int(found.labels[at]))
        if found.masks:
            _blend(canvas, coco_mask.decode(found.masks[at]).astype(np.uint8), shade, thickness)
        left, top, right, bottom = (round(float(edge)) for edge in found.boxes[at])
        cv2.rectangle(canvas, (left, top), (right, bottom), shade, thickness)
        text = f"{classes[int(found.labels[at])]} {found.scores[at]:.2f}"
        (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        line = max(top, height + below)
        cv2.rectangle(canvas, (left, line - height - below), (left + width, line), shade, cv2.FILLED)
        cv2.putText(
            canvas,
            text,
            (left, line - below // 2),
            cv2.FONT_HERSHEY_SIMPLEX,
            scale,
            (255, 255, 255),
            thickness,
            cv2.LINE_AA,
        )
    done, content = cv2.imencode(file.suffix, canvas)
    if not done:
        raise RuntimeError(f"OpenCV cannot write {file.suffix}")
    file.write_bytes(content.tobytes())  # also where a name is not UTF-8


def _blend(canvas: Pixels, mask: np.ndarray, shade: tuple[int, int, int], thickness: int) -> None:
    """Lay a mask, uint8 (height, width), over the canvas, with its outline."""
    inside = mask.astype(bool)
    canvas[inside] = ((1 - _OPACITY) * canvas[inside] + _OPACITY * np.array(shade)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(canvas, outlines, -1, shade, thickness)
