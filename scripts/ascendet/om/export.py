"""`make export`: a checkpoint as ONNX files, one per stage, for every size and batch; checked against PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets
from ascendet.om import exported
from ascendet.om.exported import Exported, Size
from ascendet.run import folders, program, target
from ascendet.run.target import Target
from ascendet.supply import assets

_LOG = "export.log"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    exported.add_options(parser)
    parser.add_argument("--aipp", action="store_true", help="take pictures as bytes, which AIPP normalises")
    parser.add_argument("--checkpoint", default="", help="the file; empty: the latest training's last one")


def execute(args: argparse.Namespace) -> None:
    """Export for each size (by default the configuration's) and each batch (by default 1)."""
    sizes, batches = exported.parse_sizes(args.sizes), exported.parse_batches(args.batch)
    aim = target.check(args, "export")
    checkpoint = folders.find_checkpoint(aim, args.checkpoint)
    aim = target.prepare(aim)
    wanted: list[Size | None] = [*sizes] or [None]
    for size in wanted:
        for batch in batches or [1]:
            describe(export(aim, checkpoint, size, batch, aipp=args.aipp))


def export(aim: Target, checkpoint: Path, size: Size | None, batch: int, *, aipp: bool = False) -> Exported:
    """Run the family's export program, unless the same was exported before, and return what it made."""
    key = {
        **aim.inputs,
        "checkpoint": files.digest(checkpoint),
        "software": target.software(aim),
        "size": list(size) if size else None,
        "batch": batch,
        "aipp": aipp,
    }
    for meta in exported.home().glob(f"{aim.model}-{aim.dataset}-*/{exported.META}"):
        if (manifest.read(meta.parent) or {}).get("key") == manifest.digest_inputs(key):
            return exported.read(meta.parent)
    final = exported.home() / f"{aim.model}-{aim.dataset}-b{batch}"
    name = ""

    def named(work: Path) -> str:
        nonlocal name
        name = exported.folder_name(aim, exported.read(work).size, batch)
        return name

    with folders.replacing(final, _LOG, named) as work:
        environ = target.environ(aim, work) | {"CHECKPOINT": str(checkpoint)}
        data = datasets.find(aim.dataset).folder
        print(f"exporting {aim.model}: {paths.shorten(checkpoint)}", flush=True)
        program.execute(
            program.Run(
                program="export",
                environ=environ,
                log=work / _LOG,
                target=aim,
                inputs=[checkpoint, *aim.files, *([assets.root(), data.resolve()] if data.is_dir() else [])],
                arguments=[
                    *([f"--size={size[0]}x{size[1]}"] if size else []),
                    f"--batch={batch}",
                    *(["--aipp"] if aipp else []),
                ],
            )
        )
        facts = {
            "stage": "export",
            "key": manifest.digest_inputs(key),
            "inputs": key,
            "checkpoint": paths.shorten(checkpoint),
            **target.facts(aim, "the CPU"),
            "simulated": None,  # nothing ran on a device
        }
        manifest.write(work, facts)
    return exported.read(exported.home() / name)


def describe(made: Exported) -> None:
    """Print a table of the stages, and where they are."""
    print(f"{'stage':<12}{'opset':>6}{'MB':>9}  inputs -> outputs")
    for stage in made.stages:
        size = sum(file.stat().st_size for file in made.folder.glob(f"{Path(stage['file']).stem}.onnx*"))
        ports = " -> ".join(
            " ".join(f"{port['name']}{port['shape']}".replace(" ", "") for port in stage[side])
            for side in ("inputs", "outputs")
        )
        print(f"{stage['name']:<12}{stage['opset']:>6}{size / 1e6:>9.1f}  {ports}")
    print(f"stored in {paths.shorten(made.folder)}")
