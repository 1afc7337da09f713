"""Choose pictures by their detections' quality, and draw ground truth and detections side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ascendet_common import drawing
from ascendet_common.drawing import Thing
from ascendet_common.findings.inputs import Evaluation, Flags, Ints, Json
from ascendet_common.findings.matching import Matches
from ascendet_common.findings.words import Language, say
from ascendet_common.images import ImageError, Pixels, printable, read

EACH = 3  # pictures by role
WIDTH = 900  # of a picture with both sides, in pixels
_GAP = 6  # between the sides
_HIGHEST = 600  # pixels
_BYTES = 1_500_000 // (3 * EACH)  # of a JPEG: a page holds all of them


@dataclass(kw_only=True)
class Gallery:
    """What pictures are drawn from.

    rows
        The numbers of every picture, as `numbers.of_images` returns them.
    write
        Takes a file's name and content.
    """

    evaluation: Evaluation
    matches: Matches
    shown: Flags
    rows: dict[str, Any]
    folder: Path
    language: Language
    write: Callable[[str, bytes], None]

    def draw(self) -> tuple[list[Json], list[str]]:
        """Draw `EACH` pictures of each role; return their entries, and the names of those that cannot be read."""
        done: set[int] = set()
        damaged: dict[int, str] = {}
        entries = []
        for role, order in choose(self.rows):
            count = 0
            for at in order:
                if count == EACH:
                    break
                if at in done or at in damaged:
                    continue
                try:
                    pixels = self._read(at)
                except ImageError:
                    damaged[at] = printable(self._name(at))
                    continue
                count += 1
                done.add(at)
                name = f"picture-{role}-{count}.jpg"
                self.write(name, encode(beside(pixels, self._truth(at), self._found(at))))
                entries.append(self._describe(at, role, name))
        return entries, list(damaged.values())

    def _read(self, at: int) -> Pixels:
        entry = self.evaluation.images[at]
        size = (entry["height"], entry["width"]) if "height" in entry and "width" in entry else None
        return read(self.folder / self._name(at), size)

    def _name(self, at: int) -> str:
        entry = self.evaluation.images[at]
        return str(entry.get("file_name", entry["id"]))

    def _truth(self, at: int) -> list[Thing]:
        truth, names = self.evaluation.truth, self.evaluation.classes
        hit = set(self.matches.truth[self.shown & (self.evaluation.found.image == at)].tolist())
        crowd = say("crowd", self.language)
        order = sorted(np.flatnonzero(truth.image == at).tolist(), key=lambda one: -_area(truth.box[one]))
        return [
            Thing(
                label=int(truth.category[one]),
                text=f"{names[truth.category[one]]} ({crowd})"
                if truth.crowd[one]
                else names[truth.category[one]],
                box=truth.box[one].tolist(),
                mask=truth.masks[one] if truth.masks else None,
                doubtful=not truth.crowd[one] and one not in hit,
            )
            for one in order
        ]

    def _found(self, at: int) -> list[Thing]:
        found, names = self.evaluation.found, self.evaluation.classes
        chosen = np.flatnonzero((found.image == at) & self.shown)
        wrong = (self.matches.truth < 0) & ~self.matches.ignored
        order = chosen[np.lexsort((found.score[chosen], ~wrong[chosen]))]  # what is wrong lies below
        return [
            Thing(
                label=int(found.category[one]),
                text=f"{names[found.category[one]]} {found.score[one]:.2f}",
                box=found.box[one].tolist(),
                mask=found.masks[one] if found.masks else None,
                doubtful=bool(wrong[one]),
            )
            for one in order.tolist()
        ]

    def _describe(self, at: int, role: str, name: str) -> Json:
        entry = self.evaluation.images[at]
        return {
            "role": role,
            "image_id": entry["id"],
            "file_name": printable(str(entry.get("file_name", entry["id"]))),
            "file": name,
            **{key: int(self.rows[key][at]) for key in ("correct", "missed", "wrong")},
            **{key: round(float(self.rows[key][at]), 4) for key in ("mean_iou", "quality")},
        }


def _area(box: Any) -> float:
    return float(box[2] * box[3])


def choose(rows: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield each role with the pictures that can have it, the first choice first.

    - best: something is correct there; by falling quality, of equal ones the picture with more objects.
    - worst: something is wrong or missed there; by rising quality, of equal ones the picture with more that is.
    - example: any, spread evenly over the evaluation; those with objects first.
    """
    every = np.arange(len(rows["quality"]))
    amiss = rows["wrong"] + rows["missed"]
    best = every[np.lexsort((every, -rows["objects"], -rows["quality"]))]
    worst = every[np.lexsort((every, -amiss, rows["quality"]))]
    yield "best", best[rows["correct"][best] > 0].tolist()
    yield "worst", worst[amiss[worst] > 0].tolist()
    some = rows["objects"] > 0
    yield "example", [*_spread(every[some]), *_spread(every[~some])]


def _spread(items: Ints) -> list[int]:
    """Return the items in an order whose beginnings are spread evenly: by multiples of the golden ratio."""
    at = (np.arange(len(items)) * 0.6180339887498949 % 1 * len(items)).astype(int)
    return list(dict.fromkeys([*items[at].tolist(), *items.tolist()]))


def beside(pixels: Pixels, truth: list[Thing], found: list[Thing]) -> Pixels:
    """Return a picture with the ground truth on its left half and the detections on the right one."""
    height, width = pixels.shape[:2]
    scale = min((WIDTH - _GAP) / 2 / width, _HIGHEST / height)
    size = max(1, int(height * scale)), max(1, int(width * scale))
    gap = np.full((size[0], _GAP, 3), 255, np.uint8)
    return np.hstack([drawing.draw(pixels, truth, size), gap, drawing.draw(pixels, found, size)])


def encode(pixels: Pixels) -> bytes:
    """Return a JPEG of at most a ninth of 1.5 MB: of the best quality that fits, and smaller if none does."""
    while True:
        for quality in (88, 80, 70, 55, 40):
            done, content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
            if not done:
                raise RuntimeError("OpenCV cannot write a JPEG")
            if len(content) <= _BYTES:
                return bytes(content.tobytes())
        half = max(1, pixels.shape[1] // 2), max(1, pixels.shape[0] // 2)
        pixels = np.asarray(cv2.resize(pixels, half, interpolation=cv2.INTER_AREA), np.uint8)
