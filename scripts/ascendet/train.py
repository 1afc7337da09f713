"""`make train`: one rank per device through torchrun, in a run folder that can be continued."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ascendet import manifest, paths, runs
from ascendet.errors import AscendetError
from ascendet.stack import Stack

LOG = "train.log"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    runs.add_target_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue the latest unfinished training")


def execute(args: argparse.Namespace) -> None:
    """Train, or say that this training is finished already."""
    stack = Stack.load(args.stack)
    target = runs.check_target(args)
    data = runs.check_data(target.dataset)
    if not any(data.glob("annotations/instances_train*.json")):
        raise AscendetError(
            "data-missing", f"{target.dataset} has nothing to train on", hint="make data train DATASET=coco"
        )
    runs.prepare(target)
    inputs = _inputs(target, data)
    finished = _find(target, inputs)
    if finished:
        runs.link_latest(finished)
        print(f"{paths.shorten(finished)}: finished with the same inputs; nothing to train")
        return
    run = _resumable(target, inputs) if args.resume else _new_run(target)
    environ = runs.run_environ(target, run) | {"RESUME": "1" if args.resume else ""}
    line = runs.describe(target, environ)
    print(f"{target.model} on {target.dataset}: {line}\nrun folder: {paths.shorten(run)}", flush=True)
    runs.link_latest(run)
    facts = {
        "stage": "train",
        "key": manifest.digest_inputs(inputs),
        "inputs": inputs,
        "devices": list(target.devices),
        "where": line,
        "versions": runs.versions(stack),
        "simulated": target.npu == "sim",
        "command": sys.argv,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with _state(run, facts):
        runs.execute("train.sh", environ, run / LOG, target)
    checkpoint = runs.last_checkpoint(run)
    assert checkpoint is not None, "a training that succeeds writes a checkpoint"
    print(f"trained: {paths.shorten(checkpoint)}")


def _inputs(target: runs.Target, data: Path) -> dict[str, object]:
    """What the result depends on: not which devices, but how many, for they make the batch size."""
    dataset = manifest.read(data) or {}
    return {
        "model": target.model,
        "dataset": target.dataset,
        "data": dataset.get("key"),
        "ranks": len(target.devices),
        "npu": target.npu,
        **runs.software(target),
    }


def _all_runs(target: runs.Target) -> list[Path]:
    """The run folders, newest first."""
    folders = target.home.iterdir() if target.home.is_dir() else ()
    return sorted(
        (folder for folder in folders if (folder / manifest.MANIFEST).is_file() and not folder.is_symlink()),
        key=lambda folder: folder.name,
        reverse=True,
    )


def _find(target: runs.Target, inputs: dict[str, object]) -> Path | None:
    """A finished run of the same inputs."""
    key = manifest.digest_inputs(inputs)
    for run in _all_runs(target):
        content = manifest.read(run) or {}
        if content.get("key") == key and content.get("state") == "finished" and runs.last_checkpoint(run):
            return run
    return None


def _new_run(target: runs.Target) -> Path:
    """A new run folder, named by the time."""
    while True:
        run = target.home / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            time.sleep(1)
        else:
            return run


def _resumable(target: runs.Target, inputs: dict[str, object]) -> Path:
    """The newest unfinished run that has a checkpoint; says what changed since it was started."""
    for run in _all_runs(target):
        content = manifest.read(run) or {}
        if content.get("state") == "finished" or runs.last_checkpoint(run) is None:
            continue
        with runs.not_busy(run):
            before = content.get("inputs")
            known = before if isinstance(before, dict) else {}
            changed = [name for name, value in inputs.items() if known.get(name) != value]
            if changed:
                print(f"continuing although these changed: {', '.join(changed)}", file=sys.stderr)
            return run
    raise AscendetError(
        "resume-impossible",
        f"{target.model} on {target.dataset} has no unfinished training with a checkpoint",
        found=f"{len(_all_runs(target))} runs in {paths.shorten(target.home)}",
        hint=f"make train MODEL={target.model} DATASET={target.dataset}",
    )


@contextlib.contextmanager
def _state(run: Path, facts: dict[str, object]) -> Iterator[None]:
    """Keep the run's manifest true: running, then finished, interrupted or failed."""
    clock = time.monotonic()
    before = manifest.read(run) or {}
    spent = before.get("seconds")
    past = float(spent) if isinstance(spent, int | float) else 0.0

    def write(state: str, **more: object) -> None:
        seconds = round(past + time.monotonic() - clock, 1)
        manifest.write(run, facts | {"state": state, "seconds": seconds} | more)

    with manifest.full_disk_named(run):
        write("running")
        try:
            yield
        except AscendetError as error:
            write("interrupted" if error.name == "interrupted" else "failed", error=error.name)
            raise
        checkpoint = runs.last_checkpoint(run)
        if checkpoint is None:
            raise AscendetError(
                "run-failed",
                "the training ended without a checkpoint",
                hint=f"less {paths.shorten(run / LOG)}",
            )
        write("finished", outputs={checkpoint.name: manifest.digest_file(checkpoint)})
