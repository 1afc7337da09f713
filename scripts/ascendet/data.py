"""`make data`: the data sets, each in a folder of its own below `root()`, all laid out like COCO.

`shapes` is generated from a seed, anywhere; it stands in where COCO is not at hand. `coco` is only checked here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path

from ascendet import env, lock, manifest, paths
from ascendet.errors import AscendetError
from ascendet.stack import Stack

SHAPES = {"seed": 0, "train": 600, "val": 120}  # images per split
_GENERATOR = Path(__file__).with_name("shapes.py")
# What training and evaluation read of COCO 2017, and how many images it has.
_COCO = {"train2017": 118_287, "val2017": 5_000}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("--stack", default="vitdet", help="a stack of requirements/stacks.toml")
    parser.add_argument("--dataset", required=True, help="one of the stack's data sets")


def execute(args: argparse.Namespace) -> None:
    """Make the data set, or check that it is there; say what it holds."""
    stack = Stack.load(args.stack)
    if args.dataset == "shapes":
        folder = ensure_shapes(stack)
        splits = (manifest.read(folder) or {}).get("splits")
    elif args.dataset == "coco":
        folder = check_coco()
        splits = _COCO
    else:
        raise AscendetError(
            "dataset-unknown",
            f"there is no data set {args.dataset!r}",
            expected=", ".join(stack.datasets),
            found=f"DATASET={args.dataset}",
            hint="make data DATASET=shapes",
        )
    print(f"{paths.shorten(folder)}: {json.dumps(splits)}")


def root() -> Path:
    """The folder of the data sets: `ASCENDET_DATA`, or the build folder's."""
    return Path(os.environ.get("ASCENDET_DATA") or paths.BUILD / "data").absolute()


def ensure_shapes(stack: Stack) -> Path:
    """Generate `shapes` unless it is there already; the folder under its fixed name.

    The link `shapes` names the folder that the current generator, seed and libraries make.
    """
    python = env.ensure_base(stack)
    inputs = {
        "generator": manifest.digest_file(_GENERATOR),
        "lock": manifest.digest_file(lock.packages_lock(stack.packages)),
        # Sines and square roots may differ in the last bit between machines, and a pixel with them.
        "machine": platform.machine(),
        **SHAPES,
    }
    with manifest.stage("data/.shapes", inputs) as stage:
        if not stage.fresh:
            stage.record(splits=_generate(python, stage.path))
    link = root() / "shapes"
    _point(link, stage.final)
    return link


def _generate(python: Path, out: Path) -> object:
    """Run the generator into `out`; what it counted, by split."""
    arguments = [text for name, value in SHAPES.items() for text in (f"--{name}", str(value))]
    done = subprocess.run(
        [python, _GENERATOR, "--out", out, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        if manifest.is_full(out):
            raise manifest.disk_full(out)
        raise AscendetError(
            "command-failed",
            "the data set shapes could not be generated",
            found=(done.stderr.strip().splitlines() or ["no message"])[-1],
            hint=f"make env STACK=vitdet, or by hand: {python} {_GENERATOR} --out <folder>",
        )
    return json.loads(done.stdout)


def _point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to `target`, in one step."""
    if link.exists() and not link.is_symlink():
        raise AscendetError(
            "data-invalid",
            f"{paths.shorten(link)} is in the way of the generated data set",
            expected="nothing, or the link that an earlier run made",
            found="a folder or file that is not ours",
            hint=f"mv {paths.shorten(link)} <elsewhere>, or another ASCENDET_DATA",
        )
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    temp = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temp.symlink_to(os.path.relpath(target, link.parent.resolve()))
        temp.replace(link)
    except OSError as error:
        raise AscendetError(
            "data-invalid",
            f"{paths.shorten(link)} cannot be made",
            found=str(error.strerror),
            hint="make data DATASET=shapes without ASCENDET_DATA, or with a folder that can be written",
        ) from error


def check_coco() -> Path:
    """COCO's folder, with both splits' annotations and images.

    Raises
    ------
    AscendetError
        `data-missing` lists what is not there; `data-invalid` where a split has another number of images.
    """
    folder = root() / "coco"
    wanted = [f"annotations/instances_{split}.json" for split in _COCO] + list(_COCO)
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise AscendetError(
            "data-missing",
            "the data set coco is not here",
            expected="\n".join(f"{paths.shorten(folder)}/{name}" for name in wanted),
            found="none of them" if len(missing) == len(wanted) else f"without {', '.join(missing)}",
            hint="ASCENDET_DATA=<folder that holds coco> make data DATASET=coco\n"
            "or, without COCO: make data DATASET=shapes",
        )
    for split, count in _COCO.items():
        with os.scandir(folder / split) as entries:
            found = sum(entry.name.endswith(".jpg") for entry in entries)
        if found != count:
            raise AscendetError(
                "data-invalid",
                f"{paths.shorten(folder / split)} is not complete",
                expected=f"{count} images",
                found=f"{found} images",
                hint=f"unpack {split}.zip again",
            )
    return folder
