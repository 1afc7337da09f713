"""`make infer`: detect objects in pictures with a checkpoint, draw them, store the results and measure latency."""

from __future__ import annotations

import argparse
import glob
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets
from ascendet.errors import AscendetError
from ascendet.run import folders, program, target
from ascendet.supply import assets

RESULTS = "results.json"
_LOG = "infer.log"
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    parser.add_argument("--checkpoint", default="", help="the file; empty: the latest training's last one")
    parser.add_argument("--images", required=True, help="files, folders and glob patterns, as in a shell")
    parser.add_argument("--score", default="0.3", help="draw and list objects from this score on")
    parser.add_argument("--bad", default="skip", help="damaged pictures: skip or refuse")


def execute(args: argparse.Namespace) -> None:
    """Find objects, draw the pictures, and print the latency."""
    score, pictures = check_options(args.score, args.bad), find_images(args.images)
    aim = target.check(args, "infer")
    aim = replace(aim, devices=aim.devices[:1])  # pictures are processed one at a time
    checkpoint = folders.find_checkpoint(aim, args.checkpoint)
    aim = target.prepare(aim)
    final = folders.folder_beside(aim, checkpoint, "infer")
    with folders.replacing(final, _LOG) as work:
        (work / "images.json").write_text(json.dumps([str(file) for file in pictures]), encoding="utf-8")
        environ = target.environ(aim, work) | {"CHECKPOINT": str(checkpoint)}
        line = target.describe(aim, environ)
        print(
            f"{aim.model} on {len(pictures)} pictures: {line}\ncheckpoint: {paths.shorten(checkpoint)}",
            flush=True,
        )
        # Only a checkpoint that does not say its classes needs the data set.
        data = datasets.find(aim.dataset).folder
        run = program.Run(
            program="infer",
            environ=environ,
            log=work / _LOG,
            target=aim,
            inputs=[
                checkpoint,
                *aim.files,
                *sorted({file.parent for file in pictures}),
                *([assets.root(), data.resolve()] if data.is_dir() else []),
            ],
            arguments=[f"--images={work / 'images.json'}", f"--score={score}", f"--bad={args.bad}"],
        )
        program.execute(run)
        results = json.loads((work / RESULTS).read_text(encoding="utf-8"))
        facts = {
            "stage": "infer",
            "inputs": {**aim.inputs, "checkpoint": files.digest(checkpoint)},
            "checkpoint": paths.shorten(checkpoint),
            **target.facts(aim, line),
            "cpu_fallbacks": folders.fallbacks(work),
            "latency": results["latency"],
        }
        manifest.write(work, facts)
    print(f"\n{latency_table(results['latency'])}\n")
    for bad in results["skipped"]:
        print(f"skipped: {paths.printable(bad['file'])}: {bad['reason']}")
    print(f"stored in {paths.shorten(final)}: {len(results['images'])} pictures, {RESULTS} ({line})")


def find_images(text: str) -> list[Path]:
    """Return the files that `text` names, without repetition: files, the pictures in folders, matches of glob patterns.

    Raises
    ------
    AscendetError
        `usage`: `text` is empty. `data-missing`: a word of it names no picture.
    """
    words = shlex.split(text)
    if not words:
        raise AscendetError(
            "usage",
            "IMAGES must be files, folders or glob patterns",
            found="IMAGES is empty",
            hint="make infer IMAGES='a.jpg folder pictures/*.png'",
        )
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser().absolute()
        if path.is_file():
            found.append(path)
            continue
        inside = path.iterdir() if path.is_dir() else map(Path, glob.iglob(str(path), recursive=True))  # noqa: PTH207  # absolute
        pictures = sorted(file for file in inside if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not pictures:
            raise AscendetError(
                "data-missing",
                f"IMAGES={paths.printable(word)} names no picture",
                expected=f"a file, a folder or a glob pattern with {', '.join(sorted(_SUFFIXES))}",
                found="a folder without pictures" if path.is_dir() else "no such file or folder",
                hint="make infer IMAGES=<file, folder or glob pattern>",
            )
        found += pictures
    return list(dict.fromkeys(found))


def latency_table(latency: dict[str, Any]) -> str:
    """Return a table of milliseconds per stage: the first call, which compiles, and the median of the others.

    >>> stages = {"read": 1.0, "preprocess": 2.0, "device": 30.0, "postprocess": 4.0, "total": 37.0}
    >>> steady = stages | {"images_per_second": 27.0}
    >>> print(latency_table({"first_call": stages, "steady": steady, "calls": 5}))
    ms                read  preprocess      device postprocess       total
    first call         1.0         2.0        30.0         4.0        37.0
    steady (5)         1.0         2.0        30.0         4.0        37.0  27.00 img/s
    """
    names = [name for name in latency["first_call"] if name != "total"] + ["total"]
    rows = {"first call": latency["first_call"], f"steady ({latency['calls']})": latency["steady"]}
    lines = [f"{'ms':<10}" + "".join(f"{name:>12}" for name in names)]
    for label, row in rows.items():
        lines.append(f"{label:<10}" + "".join(f"{row[name]:>12.1f}" for name in names))
    return "\n".join(lines) + f"  {latency['steady']['images_per_second']:.2f} img/s"


def check_options(score: str, bad: str) -> float:
    """Return SCORE as a number; raise `usage` if SCORE or BAD is invalid."""
    if bad not in ("skip", "refuse"):
        raise AscendetError(
            "usage",
            "BAD must be skip or refuse",
            found=f"BAD={bad}",
            hint="BAD=skip",
        )
    try:
        lowest = float(score)
    except ValueError:
        lowest = -1.0
    if not 0 <= lowest <= 1:
        raise AscendetError(
            "usage", "SCORE must be a number from 0 to 1", found=f"SCORE={score}", hint="SCORE=0.3"
        )
    return lowest
