"""`make train`: train a model with torchrun, one rank per device, in a run folder that can be resumed."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from ascendet import paths
from ascendet.core import again, files, manifest
from ascendet.data import datasets
from ascendet.data.annotations import check_splits
from ascendet.errors import AscendetError
from ascendet.run import folders, program, target
from ascendet.supply import assets


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    parser.add_argument("--resume", action="store_true", help="resume the latest unfinished training")
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument("--lr", default="", help="learning rate; empty: the recipe's")
    parser.add_argument("--run", default="", help="the run folder's name; empty: the time")
    parser.add_argument(
        "--checkpoint", default="", help="the file to start from, of the same or other classes"
    )
    parser.add_argument("--epochs", default="", help="passes over the data set; empty: the recipe's")


def execute(args: argparse.Namespace) -> None:
    """Train a model; do nothing if a training with the same inputs is finished already."""
    lr = _check_lr(args.lr)
    aim = target.check(args, "train")
    _check_name(args.run)
    _check_epochs(args.epochs)
    node = _node(aim, args.run)
    data = datasets.require(aim.dataset, "train", "val")
    check_splits(data, datasets.find(aim.dataset).named(("train", "val")))
    start = folders.find_checkpoint(aim, args.checkpoint) if args.checkpoint else None
    aim = target.prepare(aim)
    inputs = {**_inputs(aim, data, args.epochs, start), "amp": args.amp, "lr": lr}
    finished = None if args.run else folders.find_finished(aim, inputs, resume=args.resume)
    if finished:
        folders.link_latest(finished)
        print(f"{paths.shorten(finished)}: finished with the same inputs; nothing to train")
        return
    if node:  # only the first node writes the run's manifest and link
        run = aim.home / args.run
        run.mkdir(parents=True, exist_ok=True)
    elif args.resume:
        run = folders.find_resumable(aim, inputs, args.run)
    else:
        run = folders.new_run(aim, args.run)
    epochs = _kept_epochs(run, inputs) if args.resume else args.epochs
    if args.resume:
        inputs = folders.resume_inputs(run, inputs)
    environ = target.environ(aim, run) | {"RESUME": "1" if args.resume else ""}
    environ |= {"CHECKPOINT": str(start)} if start else {}
    started = program.Run(
        program="train",
        environ=environ,
        log=run / (f"train-{node}.log" if node else folders.LOG),
        target=aim,
        inputs=[assets.root(), data.resolve(), *aim.files, *([start] if start else [])],
        arguments=[
            *([f"--epochs={epochs}"] if epochs else []),
            *([f"--lr={inputs['lr']}"] if inputs["lr"] else []),
            *(["--amp"] if inputs["amp"] else []),
        ],
    )
    line = target.describe(aim, environ)
    print(f"{aim.model} on {aim.dataset}: {line}\nrun folder: {paths.shorten(run)}", flush=True)
    if node:
        print(
            f"node {node} trains with node 0, which shows the losses and writes the checkpoints", flush=True
        )
        program.execute(started)
        print("trained: node 0 has the checkpoint")
        return
    print(f"to watch it: {target.tensorboard(aim)} (over ssh: docs/training.md#tensorboard)", flush=True)
    facts = {
        "stage": "train",
        "key": manifest.digest_inputs(inputs),
        "inputs": inputs,
        "devices": list(aim.devices),
        **target.facts(aim, line),
    }
    with folders.withdrawing(run), folders.keeping_state(run, facts):
        program.execute(started)
    checkpoint = folders.last_checkpoint(run)
    assert checkpoint is not None, "a training that succeeds writes a checkpoint"
    print(f"trained: {paths.shorten(checkpoint)}")


def _check_name(run: str) -> None:
    """Raise `usage` if RUN is not a plain folder name."""
    if run and (Path(run).name != run or run in ("latest", "..")):
        raise AscendetError("usage", "RUN must be a plain folder name", found=f"RUN={run}", hint="RUN=first")


def _check_epochs(text: str) -> None:
    """Raise `usage` if EPOCHS is not a whole number above 0."""
    if text and not (text.isascii() and text.isdecimal() and int(text)):
        raise AscendetError(
            "usage", "EPOCHS must be a whole number above 0", found=f"EPOCHS={text}", hint="EPOCHS=12"
        )


def _kept_epochs(run: Path, inputs: dict[str, object]) -> str:
    """Return the epochs that a resumed run was started with, "" for the recipe's.

    Raises
    ------
    AscendetError
        `usage`: EPOCHS is another number, which the run's learning-rate schedule does not allow.
    """
    before = (manifest.read(run) or {}).get("inputs")
    known = str(before.get("epochs", "")) if isinstance(before, dict) else ""
    if inputs.get("epochs", known) != known:
        raise AscendetError(
            "usage",
            "EPOCHS must be the number that the run was started with, or not set",
            expected=f"EPOCHS={known}" if known else "no EPOCHS: the run was started with the recipe's",
            found=f"EPOCHS={inputs['epochs']}",
            hint=f"{again.command('train', RESUME='1', EPOCHS='')}; or start a new training with other EPOCHS and "
            "CHECKPOINT=<the run's last checkpoint>, without RESUME=1",
        )
    return known


def _check_lr(text: str) -> float | None:
    """Return LR as a number, or None if it is empty; raise `usage` if it is no positive number."""
    try:
        lr = float(text or "nan")
    except ValueError:
        lr = 0.0
    if text and not 0 < lr < math.inf:
        raise AscendetError("usage", "LR must be a positive number", found=f"LR={text}", hint="LR=5e-5")
    return lr if text else None


def _node(aim: target.Target, run: str) -> int:
    """Return the number of this node, NODE_RANK; raise `usage` if the settings for several nodes are incomplete."""
    count, rank = os.environ.get("NNODES") or "1", os.environ.get("NODE_RANK") or "0"
    if not (count.isdecimal() and rank.isdecimal() and int(rank) < int(count)):
        raise AscendetError(
            "usage",
            "NODE_RANK must be a number from 0 to NNODES - 1",
            found=f"NNODES={count} NODE_RANK={rank}",
            hint="NNODES=2 NODE_RANK=0 on the first node, NNODES=2 NODE_RANK=1 on the second",
        )
    if int(count) > 1 and not (run and os.environ.get("MASTER_ADDR") and aim.image is None):
        raise AscendetError(
            "usage",
            "MASTER_ADDR and RUN must be set for several nodes, and RUN_IN must be venv",
            expected="MASTER_ADDR=<the first node> RUN=<a folder name, on shared storage> on every node",
            found=f"NNODES={count} MASTER_ADDR={os.environ.get('MASTER_ADDR', '')} RUN={run} "
            f"RUN_IN={'venv' if aim.container is None else 'docker'}",
            hint=f"{again.command('train', MASTER_ADDR='<the first node>', RUN=run or 'first', RUN_IN='venv')}; "
            "in containers: make k8s, or scripts/train.sh on the host's network",
        )
    return int(rank)


def _inputs(aim: target.Target, data: Path, epochs: str, start: Path | None) -> dict[str, object]:
    """Return the inputs that the result depends on; of the devices only their number, which decides the batch."""
    dataset = manifest.read(data) or {}
    return {
        **({"epochs": epochs} if epochs else {}),
        **({"start": files.digest(start)} if start else {}),
        **aim.inputs,
        "data": dataset.get("key"),
        "ranks": len(aim.devices) * int(os.environ.get("NNODES") or "1"),
        "npu": aim.npu,
        **target.software(aim),
    }
