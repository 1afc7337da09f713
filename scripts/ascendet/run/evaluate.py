"""`make eval`: predict the validation split with a checkpoint, and compute COCO's numbers."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets
from ascendet.data.annotations import check_splits
from ascendet.errors import AscendetError
from ascendet.run import folders, official, program, target
from ascendet.run.score import CLASSES, IMAGES, METRICS, PREDICTIONS
from ascendet.supply import assets

_LOG = "eval.log"
BANDS = paths.REQUIREMENTS / "bands"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    parser.add_argument("--checkpoint", default="", help="the file; empty: the latest training's last one")
    parser.add_argument("--images", default="", help="how many, from the first on; empty: all")


def execute(args: argparse.Namespace) -> None:
    """Evaluate a checkpoint, and print and store the numbers."""
    count = check_count(args.images)
    aim = target.check(args, "predict")
    data = datasets.require(aim.dataset, "val")
    check_splits(data, datasets.find(aim.dataset).named(("val",)))
    checkpoint = folders.find_checkpoint(aim, args.checkpoint)
    aim = target.prepare(aim)
    final = folders.folder_beside(aim, checkpoint, f"eval-{count}" if count else "eval")
    clock = time.monotonic()
    with folders.replacing(final, _LOG) as work:
        environ = target.environ(aim, work) | {"CHECKPOINT": str(checkpoint)}
        line = target.describe(aim, environ)
        print(f"{aim.model} on {aim.dataset}: {line}\ncheckpoint: {paths.shorten(checkpoint)}", flush=True)
        run = program.Run(
            program="predict",
            environ=environ,
            log=work / _LOG,
            target=aim,
            inputs=[assets.root(), data.resolve(), *aim.files, checkpoint],
            arguments=[f"--images={count}"] if count else [],
        )
        program.execute(run)
        numbers = score_or_keep(work, final)
        evaluated = json.loads((work / IMAGES).read_text(encoding="utf-8"))
        annotations, images = Path(evaluated["annotations"]), evaluated["images"]
        digest = files.digest(annotations)
        if len(images) < count:
            print(f"IMAGES={count}: {aim.dataset} has {len(images)}, all were evaluated", flush=True)
        whole = not count or len(images) < count
        verdicts = judge(aim.model, aim.dataset, numbers, digest) if whole else []
        compared = official.compare(aim.model, numbers, digest, len(images))
        facts = {
            "stage": "evaluate",
            "inputs": {
                **aim.inputs,
                "data": (manifest.read(data) or {}).get("key"),
                "annotations": digest,
                "checkpoint": files.digest(checkpoint),
                "images": len(images),
            },
            "checkpoint": paths.shorten(checkpoint),
            "devices": list(aim.devices),
            **target.facts(aim, line),
            "seconds": round(time.monotonic() - clock, 1),
            "cpu_fallbacks": folders.fallbacks(work),
            "metrics": numbers,
            "acceptance": verdicts,
            "official": compared,
        }
        manifest.write(work, facts)
    for verdict in verdicts or [f"no acceptance band: {len(images)} images are only a part of {aim.dataset}"]:
        print(verdict)
    if compared:
        print(f"\n{official.table(compared, f'{len(images):,} images of {aim.dataset}')}\n")
    print(
        f"{len(images)} images; stored in {paths.shorten(final)}: {METRICS}, {CLASSES}, {PREDICTIONS} ({line})\n"
        f"the ids in {PREDICTIONS} are those of {paths.shorten(annotations)}"
    )


def check_count(text: str) -> int:
    """Return IMAGES as a number of images, 0 for all; raise `usage` if it is no number above 0."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise AscendetError(
            "usage",
            "IMAGES must be a number of pictures",
            expected="a number above 0",
            found=text,
            hint="IMAGES=200",
        )
    return int(text)


def score_or_keep(work: Path, final: Path) -> dict[str, dict[str, float]]:
    """Score the predictions in `work` and return the numbers; if that fails, keep the folder as `<final>-failed`.

    Raises
    ------
    AscendetError
        `score-failed`, with the command that scores the kept predictions.
    """
    try:
        return score_files(work)
    except BaseException as error:
        kept = final.with_name(f"{final.name}-failed")
        shutil.rmtree(kept, ignore_errors=True)
        work.rename(kept)
        print(f"the predictions are kept in {paths.shorten(kept)}", file=sys.stderr, flush=True)
        if isinstance(error, AscendetError):
            error.hint = scoring_command(kept)
        raise


def scoring_command(folder: Path) -> str:
    """Return the command that scores a folder of predictions, to be typed in the repository's root folder."""
    program = [paths.shorten(Path(sys.executable)), "-m", "ascendet.run.score", paths.shorten(folder)]
    return f"PYTHONPATH=scripts {shlex.join(program)}"


def score_files(folder: Path) -> dict[str, dict[str, float]]:
    """Return COCO's numbers for the predictions in a folder; print and store them there, with those of each class.

    Raises
    ------
    AscendetError
        `score-failed`.
    """
    environ = os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")}
    command = [sys.executable, "-m", "ascendet.run.score", str(folder)]
    sys.stdout.flush()
    done = subprocess.run(command, env=environ, stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(done.stderr)  # the evaluator's warnings
    if done.returncode:
        raise AscendetError(
            "score-failed",
            "the predictions cannot be scored",
            found=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
            hint=scoring_command(folder),
        )
    numbers: dict[str, dict[str, float]] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return numbers


def judge(
    model: str, dataset: str, numbers: dict[str, dict[str, float]], digest: str, folder: Path = BANDS
) -> list[str]:
    """Return lines that compare the AP of boxes and masks with the acceptance band of a model on a data set.

    A band is valid for one annotation file, whose SHA-256 it states; `digest` is that of the evaluated file. If there
    is no band, or it is not valid for this file, the lines say so.
    """
    file = folder / f"{model}_{dataset}.toml"
    if not file.is_file():
        return [f"no acceptance band: none has been measured for {model} on {dataset}"]
    bands: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    if digest != bands["annotations"]:
        return [
            f"no acceptance band: the one for {model} on {dataset} was measured on other annotations "
            f"(sha256:{bands['annotations'][:12]}…, these are {digest[:12]}…)"
        ]
    verdicts = []
    for kind, name in (("bbox", "boxes"), ("segm", "masks")):
        low, high = bands["AP"][kind]
        value = numbers[kind]["AP"]
        if value < 0:
            verdicts.append(f"{name}: no acceptance band: the annotations have no object to measure AP on")
            continue
        where = "below" if value < low else "above" if value > high else "inside"
        verdicts.append(f"{name}: AP {value:.3f} is {where} {low:.3f} to {high:.3f} ({bands['source']})")
    return verdicts
