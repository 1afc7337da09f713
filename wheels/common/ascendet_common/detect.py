"""Going through pictures one by one: what a family's `infer` does, whatever its framework."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet_common import drawing, progress
from ascendet_common.images import ImageError, Pixels, printable, read
from ascendet_common.watch import Watch, summarize

Detections = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """What a family can do with a picture.

    classes
        Their names.
    detect
        Takes pixels, the picture's name and a watch, which gets the milliseconds of all stages but `read`. Returns per
        object `category`, `score`, `bbox` [x, y, width, height] in pixels and `segmentation` (compressed RLE), by
        falling score. Raises ImageError.
    synchronize
        Waits until the device has finished what it was given.
    """

    classes: Sequence[str]
    detect: Callable[[Pixels, str, Watch], Detections]
    synchronize: Callable[[], object]


def draw(pixels: Pixels, found: Detections, classes: Sequence[str], file: Path) -> None:
    """Write a picture with masks, boxes, classes and scores of its detections, the best ones on top."""
    labels = {name: label for label, name in enumerate(classes)}
    things = [
        drawing.Thing(
            label=labels[one["category"]],
            text=f"{one['category']} {one['score']:.2f}",
            box=one["bbox"],
            mask=one.get("segmentation"),
        )
        for one in sorted(found, key=lambda one: float(one["score"]))
    ]
    drawing.write(drawing.draw(pixels, things), file)


def detect_all(detector: Detector, files: Sequence[str], out: Path, score: float, bad: str) -> dict[str, Any]:
    """Detect objects in all files, draw into `out`/pictures, write `out`/results.json, and return its content.

    Raises
    ------
    ImageError
        A picture is damaged and `bad` is "refuse", or all pictures are damaged.
    """
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    results, skipped = [], []
    calls: list[dict[str, float]] = []
    for number, file in enumerate(files):
        shown = printable(file)
        try:
            # The first picture is read twice, so that even a single picture gives a measurement after the first call.
            for _ in range(1 if calls else 2):
                watch = Watch(detector.synchronize)
                with watch("read"):
                    pixels = read(file)
                found = detector.detect(pixels, shown, watch)
                calls.append(watch.spent)
        except ImageError as error:
            if bad == "refuse":
                raise
            skipped.append({"file": file, "reason": str(error).removeprefix(f"{shown}: ")})
            progress.write("note", text=f"skipped: {error}")
            continue
        picture = f"pictures/{number:04d}-{Path(shown).stem}.jpg"
        kept = [item for item in found if item["score"] >= score]
        draw(pixels, kept, detector.classes, out / picture)
        height, width = pixels.shape[:2]
        results.append(
            {
                "file": file,
                "picture": picture,
                "width": width,
                "height": height,
                "detections": kept,
                "milliseconds": calls[-1],
            }
        )
        text = f"{shown}: {len(kept)} objects, {sum(calls[-1].values()):.0f} ms"
        progress.write("infer", step=number + 1, of=len(files), text=text)
    if not results:
        raise ImageError(
            f"none of the {len(files)} pictures can be read; {printable(skipped[0]['file'])}: {skipped[0]['reason']}"
        )
    content = {
        "categories": list(detector.classes),
        "score_threshold": score,
        "images": results,
        "skipped": skipped,
        "latency": summarize(calls),
    }
    (out / "results.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content
