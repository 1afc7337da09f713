"""`make eval`: a checkpoint's predictions on the validation split, and COCO's numbers for them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from ascendet import assets, files, manifest, paths, runs
from ascendet.errors import AscendetError
from ascendet.score import class_table, table

METRICS = "metrics.json"
CLASSES = "classes.json"
# COCO's result format: image_id, category_id, score, bbox [x, y, width, height] and segmentation of every detection.
PREDICTIONS = "predictions.json"
_LOG = "eval.log"
REFERENCE = paths.ROOT / "tests" / "reference"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    runs.add_target_options(parser)
    parser.add_argument("--checkpoint", default="", help="the file; empty: the latest training's last one")
    parser.add_argument("--images", default="", help="how many, from the first on; empty: all")


def execute(args: argparse.Namespace) -> None:
    """Evaluate; print and store the numbers."""
    count = check_count(args.images)
    target = runs.check_target(args)
    # An overfitted model is evaluated on the images that it was trained on; others need no training set here.
    data = runs.check_data(target.dataset, *(() if "overfit" in target.model else ("val2017",)))
    checkpoint = runs.find_checkpoint(target, args.checkpoint)
    runs.prepare(target)
    final = runs.folder_beside(target, checkpoint, f"eval-{count}" if count else "eval")
    clock = time.monotonic()
    with runs.replaced(final, _LOG) as work:
        environ = runs.run_environ(target, work)
        environ |= {"CHECKPOINT": str(checkpoint), "OUT": str(work / "predictions")}
        line = runs.describe(target, environ)
        print(
            f"{target.model} on {target.dataset}: {line}\ncheckpoint: {paths.shorten(checkpoint)}", flush=True
        )
        inputs = [assets.root(), data.resolve(), checkpoint]
        subset = ["--cfg-options", f"test_dataloader.dataset.indices={count}"] if count else []
        runs.execute("eval.sh", environ, work / _LOG, target, inputs, subset)
        numbers, classes = score_files(work)
        images = json.loads((work / "predictions.images.json").read_text(encoding="utf-8"))["images"]
        verdicts = judge(target.model, target.dataset, numbers) if not count else []
        facts = {
            "stage": "evaluate",
            "inputs": {
                "model": target.model,
                "dataset": target.dataset,
                "data": (manifest.read(data) or {}).get("key"),
                "checkpoint": files.digest(checkpoint),
                "images": len(images),
            },
            "checkpoint": paths.shorten(checkpoint),
            "devices": list(target.devices),
            **runs.facts(target, line),
            "seconds": round(time.monotonic() - clock, 1),
            "metrics": numbers,
            "acceptance": verdicts,
        }
        manifest.write(work, facts)
    print(f"\n{class_table(classes)}\n\n{table(numbers)}\n")
    for verdict in verdicts:
        print(verdict)
    print(
        f"{len(images)} images; stored in {paths.shorten(final)}: {METRICS}, {CLASSES}, {PREDICTIONS} ({line})"
    )


def check_count(text: str) -> int:
    """IMAGES as a number of images, 0 for all, or `error[usage]`."""
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise AscendetError(
            "usage",
            "for make eval IMAGES is how many",
            expected="a number above 0",
            found=text,
            hint="IMAGES=200",
        )
    return int(text)


def score_files(work: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """COCO's numbers, and each class's AP, for what eval.sh left in `work`; both are stored there, too.

    Its two result files become one, `predictions.json`: that of masks holds the boxes as well.

    Raises
    ------
    AscendetError
        `command-failed`.
    """
    (work / "predictions.segm.json").rename(work / PREDICTIONS)
    (work / "predictions.bbox.json").unlink()
    command = [sys.executable, "-m", "ascendet.score", "--images", str(work / "predictions.images.json")]
    command += ["--results", str(work / PREDICTIONS), "--out", str(work / METRICS)]
    command += ["--classes", str(work / CLASSES)]
    environ = os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AscendetError(
            "command-failed",
            "the predictions cannot be scored",
            found=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint=" ".join(command),
        )
    numbers, classes = (json.loads((work / name).read_text(encoding="utf-8")) for name in (METRICS, CLASSES))
    return numbers, classes


def judge(
    model: str, dataset: str, numbers: dict[str, dict[str, float]], folder: Path = REFERENCE
) -> list[str]:
    """Where the AP of boxes and masks lies against the acceptance band of a model on a data set; none without one."""
    file = folder / f"{model}_{dataset}.toml"
    if not file.is_file():
        return []
    bands: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    verdicts = []
    for kind, name in (("bbox", "boxes"), ("segm", "masks")):
        low, high = bands["AP"][kind]
        value = numbers[kind]["AP"]
        where = "below" if value < low else "above" if value > high else "inside"
        verdicts.append(f"{name}: AP {value:.3f} is {where} {low:.3f} to {high:.3f} ({bands['source']})")
    return verdicts
