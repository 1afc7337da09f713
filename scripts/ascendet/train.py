"""`make train`: one rank per device through torchrun, in a run folder that can be continued."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ascendet import assets, datasets, manifest, paths, runs
from ascendet.annotations import check_splits
from ascendet.errors import AscendetError

LOG = "train.log"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    runs.add_target_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue the latest unfinished training")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument("--lr", default="", help="learning rate; empty: the recipe's")
    parser.add_argument("--run", default="", help="the run folder's name; empty: the time")
    parser.add_argument(
        "--checkpoint", default="", help="the file to start from, of the same or other classes"
    )
    parser.add_argument("--epochs", default="", help="passes over the data set; empty: the recipe's")


def execute(args: argparse.Namespace) -> None:
    """Train, or say that this training is finished already."""
    lr = _check_lr(args.lr)
    target = runs.check_target(args)
    _check_name(args.run)
    _check_epochs(args.epochs)
    machine = _machine(target, args.run)
    data = datasets.require(target.dataset, "train", "val")
    check_splits(data, datasets.find(target.dataset).named(("train", "val")))
    start = runs.find_checkpoint(target, args.checkpoint) if args.checkpoint else None
    runs.prepare(target)
    inputs = {**_inputs(target, data, args.epochs, start), "amp": args.amp, "lr": lr}
    finished = None if args.run else _find(target, inputs)
    if finished:
        runs.link_latest(finished)
        print(f"{paths.shorten(finished)}: finished with the same inputs; nothing to train")
        return
    if machine:  # the first machine keeps the run; the others lend their devices
        run = target.home / args.run
        run.mkdir(parents=True, exist_ok=True)
    else:
        run = _resumable(target, inputs, args.run) if args.resume else _new_run(target, args.run)
    epochs = _kept_epochs(run, inputs) if args.resume else args.epochs
    if args.resume:
        inputs = _continued(run, inputs)
    environ = runs.run_environ(target, run) | {
        "RESUME": "1" if args.resume else "",
        "AMP": "1" if inputs["amp"] else "",
        "LR": str(inputs["lr"] or ""),
    }
    environ |= {"CHECKPOINT": str(start)} if start else {}
    options = ["--cfg-options", f"epochs={epochs}"] if epochs else []
    line = runs.describe(target, environ)
    print(f"{target.model} on {target.dataset}: {line}\nrun folder: {paths.shorten(run)}", flush=True)
    given = [assets.root(), data.resolve(), *([start] if start else [])]
    if machine:
        print(f"machine {machine} lends its devices: losses and checkpoints are machine 0's", flush=True)
        runs.execute("train.sh", environ, run / f"train-{machine}.log", target, given, options)
        print("trained: see machine 0")
        return
    runs.link_latest(run)
    facts = {
        "stage": "train",
        "key": manifest.digest_inputs(inputs),
        "inputs": inputs,
        "devices": list(target.devices),
        **runs.facts(target, line),
    }
    with _state(run, facts):
        runs.execute("train.sh", environ, run / LOG, target, given, options)
    checkpoint = runs.last_checkpoint(run)
    assert checkpoint is not None, "a training that succeeds writes a checkpoint"
    print(f"trained: {paths.shorten(checkpoint)}")


def _check_name(run: str) -> None:
    """`error[usage]` for what is not the name of a folder of its own."""
    if run and (Path(run).name != run or run in ("latest", "..")):
        raise AscendetError("usage", "RUN names a folder", found=f"RUN={run}", hint="RUN=first")


def _check_epochs(text: str) -> None:
    """Raise `error[usage]` for what is not a number of passes."""
    if text and not (text.isascii() and text.isdecimal() and int(text)):
        raise AscendetError(
            "usage", "EPOCHS must be a number above 0", found=f"EPOCHS={text}", hint="EPOCHS=12"
        )


def _kept_epochs(run: Path, inputs: dict[str, object]) -> str:
    """Return the epochs that a resumed run was started with, and record them in `inputs`.

    Raises
    ------
    AscendetError
        `usage`: others are asked for, which would tear its schedule.
    """
    before = (manifest.read(run) or {}).get("inputs")
    known = str(before.get("epochs", "")) if isinstance(before, dict) else ""
    if inputs.get("epochs", known) != known:
        raise AscendetError(
            "usage",
            "EPOCHS must be left out, or be what the run was started with",
            expected=f"EPOCHS={known}" if known else "the recipe's: none",
            found=f"EPOCHS={inputs['epochs']}",
            hint="make train RESUME=1; for other epochs, without RESUME=1 and with CHECKPOINT=<its last checkpoint>",
        )
    return known


def _check_lr(text: str) -> float | None:
    """Return LR as a number, None where it is empty; `error[usage]` where it is no learning rate."""
    try:
        lr = float(text or "nan")
    except ValueError:
        lr = 0.0
    if text and not 0 < lr < math.inf:
        raise AscendetError("usage", "LR must be a positive number", found=f"LR={text}", hint="LR=5e-5")
    return lr if text else None


def _machine(target: runs.Target, run: str) -> int:
    """Which one of several machines this is, 0 where there is only one; `error[usage]` where they could not meet."""
    count, rank = os.environ.get("NNODES") or "1", os.environ.get("NODE_RANK") or "0"
    if not (count.isdecimal() and rank.isdecimal() and int(rank) < int(count)):
        raise AscendetError(
            "usage",
            "NNODES machines are numbered from 0 by NODE_RANK",
            found=f"NNODES={count} NODE_RANK={rank}",
            hint="NNODES=2 NODE_RANK=0 on the first, NODE_RANK=1 on the second",
        )
    if int(count) > 1 and not (run and os.environ.get("MASTER_ADDR") and target.container is None):
        raise AscendetError(
            "usage",
            "several machines need a meeting point, one run folder on shared storage, and RUN_IN=venv",
            expected="MASTER_ADDR=<the first machine> RUN=<a name> on every one of them",
            hint="see above; in containers: make k8s, or scripts/train.sh on the host's network",
        )
    return int(rank)


def _inputs(target: runs.Target, data: Path, epochs: str, start: Path | None) -> dict[str, object]:
    """Return what the result depends on: not which devices, but how many, for they make the batch size."""
    dataset = manifest.read(data) or {}
    return {
        **({"epochs": epochs} if epochs else {}),
        **({"start": manifest.digest_file(start)} if start else {}),
        "model": target.model,
        "dataset": target.dataset,
        "data": dataset.get("key"),
        "ranks": len(target.devices) * int(os.environ.get("NNODES") or "1"),
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


def _new_run(target: runs.Target, name: str = "") -> Path:
    """A new run folder, of this name or named by the time."""
    if name:
        run = target.home / name
        if manifest.read(run) is not None:
            raise AscendetError(
                "name-in-use",
                f"there is a training {paths.shorten(run)}",
                hint="RESUME=1 to continue it, or another RUN",
            )
        run.mkdir(parents=True, exist_ok=True)
        return run
    while True:
        run = target.home / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            time.sleep(1)
        else:
            return run


def _known(run: Path) -> dict[str, object]:
    """Return the inputs that a run was started or last continued with."""
    before = (manifest.read(run) or {}).get("inputs")
    return before if isinstance(before, dict) else {}


def _continued(run: Path, inputs: dict[str, object]) -> dict[str, object]:
    """Return the inputs of a run that goes on: it keeps its mixed precision and its learning rate unless told otherwise."""
    known = _known(run)
    return inputs | {name: inputs.get(name) or known.get(name) for name in ("amp", "lr")}


def _resumable(target: runs.Target, inputs: dict[str, object], name: str = "") -> Path:
    """The newest unfinished run that has a checkpoint, or that of this name; says what changed since its start."""
    for run in _all_runs(target):
        if name and run.name != name:
            continue
        content = manifest.read(run) or {}
        if content.get("state") == "finished" or runs.last_checkpoint(run) is None:
            continue
        with runs.not_busy(run):
            known, now = _known(run), _continued(run, inputs)
            changed = [name for name, value in now.items() if known.get(name) != value]
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
