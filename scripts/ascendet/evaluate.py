"""`make eval`: a checkpoint's predictions on the validation split, and COCO's numbers for them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from ascendet import manifest, paths, runs
from ascendet.errors import AscendetError
from ascendet.score import table
from ascendet.stack import Stack

METRICS = "metrics.json"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    runs.add_target_options(parser)
    parser.add_argument("--checkpoint", default="", help="the file; empty: the latest training's last one")


def execute(args: argparse.Namespace) -> None:
    """Evaluate; print and store the numbers."""
    stack = Stack.load(args.stack)
    target = runs.check_target(args)
    # An overfitted model is evaluated on the images that it was trained on; others need no training set here.
    data = runs.check_data(target.dataset, *(() if "overfit" in target.model else ("val2017",)))
    checkpoint = _checkpoint(target, args.checkpoint)
    runs.prepare(target)
    final = _folder(target, checkpoint)
    work = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    clock = time.monotonic()
    with manifest.full_disk_named(final.parent):
        try:
            work.mkdir(parents=True)
            environ = runs.run_environ(target, work)
            environ |= {"CHECKPOINT": str(checkpoint), "OUT": str(work / "predictions")}
            line = runs.describe(target, environ)
            print(
                f"{target.model} on {target.dataset}: {line}\ncheckpoint: {paths.shorten(checkpoint)}",
                flush=True,
            )
            runs.execute("eval.sh", environ, work / "eval.log", target, [checkpoint])
            numbers = score_files(_annotations(data), work)
            facts = {
                "stage": "evaluate",
                "inputs": {
                    "model": target.model,
                    "dataset": target.dataset,
                    "data": (manifest.read(data) or {}).get("key"),
                    "checkpoint": manifest.digest_file(checkpoint),
                },
                "checkpoint": paths.shorten(checkpoint),
                "devices": list(target.devices),
                "where": line,
                "versions": runs.versions(stack),
                "simulated": target.npu == "sim",
                "command": sys.argv,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 1),
                "metrics": numbers,
            }
            manifest.write(work, facts)
            if final.exists():
                shutil.rmtree(final)
            work.rename(final)
        except AscendetError as error:
            _keep_log(error, work, final)
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{table(numbers)}\n\nstored in {paths.shorten(final / METRICS)} ({line})")


def score_files(annotations: Path, work: Path) -> dict[str, dict[str, float]]:
    """Score `predictions.*.json` in `work` against `annotations`; also stored there as `metrics.json`."""
    out = work / METRICS
    command = [sys.executable, "-m", "ascendet.score", "--annotations", str(annotations)]
    command += [
        "--boxes",
        str(work / "predictions.bbox.json"),
        "--masks",
        str(work / "predictions.segm.json"),
    ]
    command += ["--out", str(out)]
    environ = os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AscendetError(
            "command-failed",
            "the predictions cannot be scored",
            found=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint=" ".join(command),
        )
    numbers: dict[str, dict[str, float]] = json.loads(out.read_text(encoding="utf-8"))
    return numbers


def _annotations(data: Path) -> Path:
    return min(data.glob("annotations/instances_val*.json"))


def _checkpoint(target: runs.Target, asked: str) -> Path:
    """The checkpoint to evaluate: the file that was asked for, or the latest training's last one."""
    if asked:
        path = Path(asked).expanduser().absolute()
        if path.is_file():
            return path
        raise AscendetError(
            "checkpoint-missing", "there is no such checkpoint", found=asked, hint="CHECKPOINT=<file>"
        )
    latest = target.home / "latest"
    path_or_none = runs.last_checkpoint(latest.resolve()) if latest.exists() else None
    if path_or_none is None:
        raise AscendetError(
            "checkpoint-missing",
            f"{target.model} was not trained on {target.dataset} here",
            expected=f"a checkpoint in {paths.shorten(latest)}",
            hint=f"make train MODEL={target.model} DATASET={target.dataset}, or CHECKPOINT=<file>",
        )
    return path_or_none


def _folder(target: runs.Target, checkpoint: Path) -> Path:
    """Where the result goes: into the run that the checkpoint is from, else beside the runs."""
    if checkpoint.parent.parent == target.home:
        return checkpoint.parent / "eval"
    return target.home / f"eval-{checkpoint.stem}"


def _keep_log(error: AscendetError, work: Path, final: Path) -> None:
    """Save a failed evaluation's log from being removed, and let the error point to it."""
    log = work / "eval.log"
    if error.name == "run-failed" and log.exists():
        kept = final.with_name(f"{final.name}-failed.log")
        log.replace(kept)
        error.hint = f"less {paths.shorten(kept)}"
