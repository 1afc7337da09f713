r"""Detect objects in pictures with OMs on one device: draw them, write COCO-like results, and measure.

    python -m staged_om.infer --om build/om/<model>-<dataset>-<size>-b1/<soc>-<precision> --images list.json

`--om` is repeated for other sizes and batches of the same model; each picture goes to the size whose shape it fills
best. WORK_DIR gets `pictures/` and `results.json`, as a family's `infer` writes them, without its framework. The first
batches run one after another, which gives the latency by step; the others overlap, which gives the throughput. After a
failure `results.json` holds what was done, and the error says how many pictures these are.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ascendet_common import progress, results
from ascendet_common.detect import draw
from ascendet_common.errors import RunError, forget, reporting
from ascendet_common.images import ImageError, printable, read
from ascendet_common.options import add_infer_options
from ascendet_common.watch import distribution, with_total
from PIL import ExifTags, Image

from staged_om.device import Device
from staged_om.host import Batch, Detections, Step
from staged_om.meta import Meta
from staged_om.schedule import LANES, Finished, overlapped, run_batch
from staged_om.session import Session

_ALONE = 5  # batches that run one after another, for the latency


@dataclass(frozen=True, kw_only=True)
class Export:
    """An exported model: its metadata, its family's pipeline, and the folder of its OMs."""

    meta: Meta
    steps: tuple[Step, ...]
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Export:
        """Return the exported model whose OMs are in `folder`; export_meta.json is beside it."""
        meta = Meta.read(folder.parent)
        family = importlib.import_module(f"{meta.family}.om")
        return cls(meta=meta, steps=tuple(family.pipeline(meta)), folder=folder)


def filled(height: int, width: int, meta: Meta) -> float:
    """Return the part of a model's input that a picture fills, scaled to fit and with its aspect kept.

    >>> class Square: height = width = 1024
    >>> filled(512, 512, Square), filled(600, 1200, Square)
    (1.0, 0.5)
    """
    scale = min(meta.height / height, meta.width / width)
    return height * width * scale * scale / (meta.height * meta.width)


def size_of(file: str) -> tuple[int, int]:
    """Return a picture's height and width, turned as its EXIF orientation says; (1, 1) if its header says none."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except (OSError, SyntaxError, ValueError):
        return 1, 1
    return (width, height) if turned else (height, width)


def assign(sizes: Sequence[tuple[int, int]], exports: Sequence[Export]) -> list[tuple[Export, list[int]]]:
    """Return the batches to run: an export and the numbers of the pictures, all of a size together.

    Of the exports that a picture fills equally, the largest is taken. Batches are as full as exports allow: with
    batches of 1 and 4, nine pictures are 4 + 4 + 1.

    Parameters
    ----------
    sizes
        Height and width of each picture.
    exports
        At least one.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (height, width) in enumerate(sizes):
        best = max(
            exports,
            key=lambda one: (
                round(filled(height, width, one.meta), 6),
                one.meta.height * one.meta.width,
            ),
        )
        groups.setdefault((best.meta.height, best.meta.width), []).append(number)
    batches = []
    for size, group in groups.items():
        numbers = list(group)
        known = sorted(
            (one for one in exports if (one.meta.height, one.meta.width) == size),
            key=lambda one: -one.meta.batch,
        )
        while numbers:
            chosen = next((one for one in known if one.meta.batch <= len(numbers)), known[-1])
            batches.append((chosen, numbers[: chosen.meta.batch]))
            del numbers[: chosen.meta.batch]
    # One export after another, so that each is loaded once.
    return sorted(batches, key=lambda pair: exports.index(pair[0]))


@dataclass(kw_only=True)
class Report:
    """What was found and measured so far; `write` makes results.json of it."""

    classes: Sequence[str]
    score: float
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[int, dict[str, str]] = field(default_factory=dict)
    first: dict[str, float] | None = None
    alone: dict[str, list[tuple[int, dict[str, float]]]] = field(
        default_factory=dict
    )  # pictures, ms by export
    together: int = 0
    seconds: float = 0.0
    device_seconds: float = 0.0
    batches: int = 0
    copies: dict[str, dict[str, int]] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Write results.json."""
        rate = self.together / self.seconds if self.seconds else None
        limit = self.together / self.device_seconds if self.device_seconds else None
        content = {
            "categories": list(self.classes),
            "score_threshold": self.score,
            "images": [self.images[number] for number in sorted(self.images)],
            "skipped": [self.skipped[number] for number in sorted(self.skipped)],
            "latency": {
                "first_call": with_total(self.first or {}),
                "steady": {label: steady(calls) for label, calls in self.alone.items()},
            },
            "overlap": {
                "pictures": self.together,
                "lanes": LANES,
                "images_per_second": rate,
                "device_limit": limit,
            },
            "copies": {"batches": self.batches, "bytes": self.copies, "stay_on_device": self.resident},
            "summary": self.summary(rate, limit),
        }
        results.write(out / "results.json", content)

    def summary(self, rate: float | None, limit: float | None) -> str:
        """Return the lines about throughput and copies."""
        lines = []
        if rate and limit:
            lines.append(
                f"overlapped, {LANES} batches at once: {rate:.2f} img/s of {self.together} pictures; "
                f"the device's limit: {limit:.2f} img/s"
            )
        for direction, sizes in self.copies.items():
            each = ", ".join(f"{name} {size / self.batches / 1e6:.2f} MB" for name, size in sizes.items())
            lines.append(f"copies {direction}, mean of {self.batches} batches: {each or 'none'}")
        names = " ".join(self.resident)
        total = sum(self.resident.values()) / self.batches / 1e6
        copied = sum(name in sizes for sizes in self.copies.values() for name in self.resident)
        if self.resident:
            lines.append(
                f"stay on the device: {names}, {total:.1f} MB per batch, {copied} copies to the host"
            )
        return "\n".join(lines)


def steady(calls: Sequence[tuple[int, dict[str, float]]]) -> dict[str, Any]:
    """Return the distribution of batches' milliseconds, with the rate in pictures: each call has their number first.

    >>> found = steady([(4, {"read": 100.0, "backbone": 900.0}), (2, {"read": 100.0, "backbone": 900.0})])
    >>> found["calls"], found["p50"]["total"], found["images_per_second"]
    (2, 1000.0, 3.0)
    """
    found = distribution([times for _, times in calls])
    pictures = sum(number for number, _ in calls)
    return found | {"images_per_second": found["images_per_second"] * pictures / len(calls)}


class Run:
    """Going through pictures: reading, detecting, drawing, and keeping count."""

    def __init__(self, files: Sequence[str], out: Path, report: Report, bad: str) -> None:
        self.files, self.out, self.report, self.bad = files, out, report, bad
        self.loaded: dict[
            int, tuple[list[int], float]
        ] = {}  # by a batch's first number: its pictures, milliseconds
        (out / "pictures").mkdir(parents=True, exist_ok=True)

    def load(self, numbers: Sequence[int]) -> Batch:
        """Read the pictures of a batch; damaged ones are left out or refused. `loaded` tells which are in it."""
        clock = time.perf_counter()
        pictures, there = [], []
        for number in numbers:
            file = self.files[number]
            try:
                pictures.append(read(file))
                there.append(number)
            except ImageError as error:
                if self.bad == "refuse":
                    raise
                reason = str(error).removeprefix(f"{printable(file)}: ")
                self.report.skipped[number] = {"file": file, "reason": reason}
                progress.write("note", text=f"skipped: {error}")
        self.loaded[numbers[0]] = (there, 1e3 * (time.perf_counter() - clock))
        return Batch(pictures=pictures)

    def keep(self, first: int, finished: Finished) -> dict[str, float]:
        """Draw and note what was found in the batch whose first number is given; return its milliseconds by step."""
        there, spent = self.loaded[first]
        times = {"read": spent, **finished.milliseconds}
        for number, pixels, found in zip(
            there, finished.batch.pictures, finished.batch.detections, strict=True
        ):
            file = self.files[number]
            picture = f"pictures/{number:04d}-{Path(printable(file)).stem}.jpg"
            rows = describe(found, self.report.classes, self.report.score)
            draw(pixels, rows, self.report.classes, self.out / picture)
            height, width = pixels.shape[:2]
            again = number in self.report.images  # of the first batch, which runs twice
            self.report.images[number] = {
                "file": file,
                "picture": picture,
                "width": width,
                "height": height,
                "detections": rows,
                "milliseconds": times,
            }
            if not again:
                text = f"{printable(file)}: {len(rows)} objects"
                progress.write("infer", step=len(self.report.images), of=len(self.files), text=text)
        return times


def describe(found: Detections, classes: Sequence[str], score: float) -> list[dict[str, Any]]:
    """Return the detections of a picture from a score on as JSON values, as `ascendet_common.detect` has them."""
    rows = []
    for at in range(len(found.scores)):
        if found.scores[at] < score:
            continue
        left, top, right, bottom = (float(edge) for edge in found.boxes[at])
        row: dict[str, Any] = {
            "category": classes[int(found.labels[at])],
            "score": float(found.scores[at]),
            "bbox": [left, top, right - left, bottom - top],
        }
        if found.masks:
            mask = found.masks[at]
            row["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
        rows.append(row)
    return rows


def detect_all(device: Device, exports: Sequence[Export], run: Run) -> None:
    """Detect objects in all pictures of a run, and write its report, also after a failure.

    Raises
    ------
    ImageError
        A picture is damaged and is to be refused, or all are.
    RunError
        See `Session` and `AclError`; it says how many pictures are done.
    """
    batches = assign([size_of(file) for file in run.files], exports)
    try:
        for export in exports:
            group = [numbers for one, numbers in batches if one is export]
            if group:
                with Session(device, export.meta, export.steps, export.folder, lanes=LANES) as session:
                    _run(session, run, group)
    except RunError as error:
        if run.report.images:
            run.report.write(run.out)
            error.what += f"; {len(run.report.images)} of {len(run.files)} pictures are done and kept"
        raise
    if not run.report.images:
        bad = run.report.skipped[0]
        raise ImageError(
            f"none of the {len(run.files)} pictures can be read; {printable(bad['file'])}: {bad['reason']}"
        )
    run.report.write(run.out)


def _run(session: Session, run: Run, group: Sequence[Sequence[int]]) -> None:
    """Run the batches of one export: the first ones alone, the others overlapped."""
    report = run.report
    try:
        for numbers in group[:_ALONE]:
            # The very first batch runs twice: even a single picture gives a measurement after the first call.
            for _ in range(1 if report.first else 2):
                finished = run_batch(session, session.lanes[0], run.load(numbers))
                times = run.keep(numbers[0], finished)
                if not finished.milliseconds:
                    break
                if report.first is None:
                    report.first = times
                else:
                    meta = session.meta
                    label = f"{meta.height}x{meta.width}, batch {meta.batch}"
                    call = (len(finished.batch.pictures), times)
                    report.alone.setdefault(label, []).append(call)
        rest = group[_ALONE:]
        before = session.device_seconds
        clock = time.perf_counter()
        for finished in overlapped(session, (partial(run.load, numbers) for numbers in rest)):
            run.keep(rest[finished.number][0], finished)
            report.together += len(finished.batch.pictures)
            report.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
        report.device_seconds += session.device_seconds - before
    finally:
        report.batches += session.batches
        for direction, sizes in session.copies.items():
            known = report.copies.setdefault(direction, {})
            for name, size in sizes.items():
                known[name] = known.get(name, 0) + size
        for name, size in session.resident().items():
            report.resident[name] = report.resident.get(name, 0) + size * session.batches


def main() -> None:
    """Detect objects in the pictures that the command line names."""
    parser = argparse.ArgumentParser(description="Detect objects in pictures with OMs.")
    parser.add_argument("--om", required=True, action="append", type=Path, help="a folder that make om made")
    add_infer_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        exports = [Export.open(folder) for folder in args.om]
        files = json.loads(args.images.read_text(encoding="utf-8"))
        report = Report(classes=exports[0].meta.classes, score=args.score)
        with Device() as device:
            detect_all(device, exports, Run(files, Path(os.environ["WORK_DIR"]), report, args.bad))


if __name__ == "__main__":
    main()
