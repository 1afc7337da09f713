"""`make infer`: detect objects in pictures with a checkpoint, draw them, store the results and measure latency."""

from __future__ import annotations

import argparse
import glob
import json
import shlex
from dataclasses import replace
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets
from ascendet.errors import AscendetError
from ascendet.run import folders, latency, program, target
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
    calls = results["latency"]
    rows = {"first call": (calls["first_call"], None), **latency.describe_calls("steady", calls["steady"])}
    print(f"\n{latency.table(rows)}\n")
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
            hint="IMAGES='a.jpg folder pictures/*.png'",
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
                hint="IMAGES=<file, folder or glob pattern>",
            )
        found += pictures
    return list(dict.fromkeys(found))


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
