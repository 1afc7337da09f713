"""What `make om-compare`, `make om-bisect` and `make om-precision` have in common: pictures, OMs and their programs."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files
from ascendet.data import datasets
from ascendet.errors import AscendetError
from ascendet.om import convert, exported, soc
from ascendet.om.exported import Exported
from ascendet.om.soc import Choice
from ascendet.run import evaluate, infer, program, target
from ascendet.run.target import Target
from ascendet.supply import assets

LIST = "inputs.json"  # staged_om.inputs.LIST
PICTURES = 50  # of the validation split, where IMAGES does not say


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all of them have."""
    target.add_options(parser)
    exported.add_options(parser)
    exported.add_conversion_options(parser)
    parser.add_argument(
        "--images", default="", help="how many of the validation split; or files, folders and glob patterns"
    )
    parser.add_argument("--json", action="store_true", help="print the result for machines")


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One exported model, where it is converted for, and the pictures."""

    aim: Target
    one: Exported
    choice: Choice
    inputs: Path
    pictures: tuple[Path, ...]
    annotations: Path | None
    json: bool

    def run(self, name: str, work: Path, arguments: Sequence[str], checkpoint: Path | None = None) -> None:
        """Run a program of staged_om in `work`, which is kept, also after a failure."""
        work.mkdir(parents=True, exist_ok=True)
        environ = target.environ(self.aim, work) | ({"CHECKPOINT": str(checkpoint)} if checkpoint else {})
        if not self.json:
            print(f"{self.one.folder.name}: {target.describe(self.aim, environ)}\n{self.choice}", flush=True)
        program.execute(
            program.Run(
                program=f"staged_om.{name}",
                environ=environ,
                log=work / f"{name}.log",
                target=self.aim,
                inputs=[
                    exported.home(),
                    *([checkpoint] if checkpoint else []),
                    *([assets.root()] if self.annotations else []),
                    *sorted({file.parent for file in self.pictures}),
                ],
                arguments=[*arguments, f"--inputs={self.inputs}"],
            )
        )


def prepare(args: argparse.Namespace) -> list[Proof]:
    """Check the options, and return what to prove for each exported model."""
    exported.check_precision(args.precision)
    aim = target.check(args, "export")
    aim = replace(aim, devices=aim.devices[:1])
    found = exported.find(aim, exported.parse_sizes(args.sizes), exported.parse_batches(args.batch))
    pictures, ids, annotations = list_pictures(aim, args.images)
    aim = target.prepare(aim)
    choice = soc.find(aim, args.soc, force=args.force)
    made = []
    for one in found:
        listed = {
            "files": [str(file) for file in pictures],
            "image_ids": ids,
            "annotations": str(annotations) if annotations else None,
            # A picture or an annotation that changed makes another folder: pictures are stored there as they were.
            "sha256": [files.digest(file) for file in (*pictures, *([annotations] if annotations else []))],
        }
        digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:8]
        folder = one.folder / f"inputs-{digest}"
        folder.mkdir(exist_ok=True)
        files.write_text(folder / LIST, json.dumps(listed, indent=1) + "\n")
        made.append(
            Proof(
                aim=aim,
                one=one,
                choice=choice,
                inputs=folder,
                pictures=tuple(pictures),
                annotations=annotations,
                json=args.json,
            )
        )
    return made


def list_pictures(aim: Target, text: str) -> tuple[list[Path], list[Any], Path | None]:
    """Return the pictures in IMAGES, their ids, and the annotation file: files have neither.

    Without IMAGES, or with a number, they are the first ones of the data set's validation split.
    """
    if text and not (text.isascii() and text.isdecimal()):
        return infer.find_images(text), [], None
    count = evaluate.check_count(text) or PICTURES
    folder = datasets.require(aim.dataset, "val")
    (split, *_) = datasets.find(aim.dataset).named(("val",))
    annotations = folder / datasets.ANNOTATIONS / f"instances_{split}.json"
    images = json.loads(annotations.read_text(encoding="utf-8"))["images"][:count]
    return [folder / split / one["file_name"] for one in images], [one["id"] for one in images], annotations


def oms(proof: Proof, args: argparse.Namespace) -> tuple[Path | None, Path]:
    """Convert what is not yet; return the folders of the OMs in `origin` (see `origin`) and in the mode asked for."""
    folder = asked(proof, args)
    return (folder if args.precision == "origin" else origin(proof)), folder


def asked(proof: Proof, args: argparse.Namespace) -> Path:
    """Convert what is not yet, and return the folder of the OMs in the mode asked for."""
    keep = exported.read_keep(args.keep_dtype, [stage["name"] for stage in proof.one.stages])
    return convert.convert(proof.aim, proof.one, proof.choice, args.precision, keep)


def origin(proof: Proof) -> Path | None:
    """Convert in the mode `origin`, or return None where atc refuses that: 310P has no float32 convolution."""
    try:
        return convert.convert(proof.aim, proof.one, proof.choice, "origin")
    except AscendetError as error:
        if error.name != "atc-failed":
            raise
    print(f"without OMs in the mode origin, which atc refuses for {proof.choice.soc}", flush=True)
    return None


def check_number(name: str, text: str, low: float, high: float, such_as: float) -> float:
    """Return a variable of make as a number; raise `usage` if it is none between `low` and `high`."""
    try:
        value = float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise AscendetError(
            "usage",
            f"{name} must be a number from {low:g} to {high:g}",
            found=f"{name}={text}",
            hint=f"{name}={such_as:g}",
        )
    return value


def show(proof: Proof, content: dict[str, Any], lines: Sequence[str], work: Path) -> None:
    """Print a result: as JSON, or its lines and where it is."""
    if proof.json:
        print(json.dumps(content, indent=1))
        return
    print("\n".join(lines))
    print(f"stored in {paths.shorten(work)}")
