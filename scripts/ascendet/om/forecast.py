"""`make om-forecast`: before a conversion, what fuses, what has no AI Core kernel, what stays float32 or overflows."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ascendet.core import again, process
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.om import exported, soc
from ascendet.om.exported import Exported, Keep
from ascendet.run import folders, infer, program, target
from ascendet.run.target import Target

# Beside the ONNX files, so that `make om` sees it, too: the ranges of values over pictures (staged_om.ranges.FILE).
ACTIVATIONS = "activations.json"
_LOG = "ranges.log"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    exported.add_options(parser)
    exported.add_conversion_options(parser)
    parser.add_argument("--images", default="", help="pictures whose activations show what overflows")


def execute(args: argparse.Namespace) -> None:
    """Print the forecast of every exported model that is asked for."""
    precision = exported.check_precision(args.precision)
    pictures = infer.find_images(args.images) if args.images else []
    aim = target.check(args, "export")
    found = exported.find(aim, exported.parse_sizes(args.sizes), exported.parse_batches(args.batch))
    aim = target.prepare(aim)
    choice = soc.find(aim, args.soc, force=args.force)
    print(choice, flush=True)
    for one in found:
        if pictures and _foreseen(aim):
            collect(aim, one, pictures)
        keep = exported.read_keep(args.keep_dtype, [stage["name"] for stage in one.stages])
        print(table(aim, one, choice.soc, precision, keep))


def collect(aim: Target, one: Exported, pictures: Sequence[Path]) -> None:
    """Run an exported model on pictures with ONNX Runtime, and keep the ranges of its values beside it."""
    with folders.replacing(one.folder / "ranges", _LOG) as work:
        (work / "images.json").write_text(json.dumps([str(file) for file in pictures]), encoding="utf-8")
        program.execute(
            program.Run(
                program="staged_om.ranges",
                environ=target.environ(aim, work),
                log=work / _LOG,
                target=aim,
                inputs=[one.folder, *sorted({file.parent for file in pictures})],
                arguments=[f"--export={one.folder}", f"--images={work / 'images.json'}"],
            )
        )
        (work / ACTIVATIONS).replace(one.folder / ACTIVATIONS)
    shutil.rmtree(one.folder / "ranges")


def _foreseen(aim: Target) -> bool:
    return aim.container is None


def table(aim: Target, one: Exported, chip: str, precision: str, keep: Keep) -> str:
    """Return the forecast of all stages of an exported model, as cann_sim's package prints it.

    It runs from its source, as an environment for real NPUs has no cann_sim. Once CANN's own atc has converted the
    model so, what that fused stands beside it.
    """
    if not _foreseen(aim):
        return "no forecast: it runs in the stack's environment only (RUN_IN=venv)"
    environ = activation.stack_environ(aim.stack, aim.npu) | venv.from_source("cann_sim")
    known = one.folder / ACTIVATIONS
    converted = one.om_folder(chip, exported.mode_name(precision, keep))
    by_cann = exported.by_cann(converted)
    parts = []
    with tempfile.TemporaryDirectory(prefix="ascendet-") as folder:
        for stage in one.stages:
            nodes = exported.kept_nodes(stage, keep)
            file = Path(folder, f"{stage['name']}{exported.KEEP_SUFFIX}")
            file.write_text("".join(f"{node}\n" for node in nodes), encoding="utf-8")
            fused = converted / f"{stage['name']}.{exported.FUSION_RESULT}"
            command = [
                *(venv.stack_python(aim.stack), "-m", "cann_sim.atc.forecast", one.folder / stage["file"]),
                *(f"--soc={chip}", f"--precision-mode={precision}"),
                *([f"--keep-dtype={file}"] if nodes else []),
                *([f"--activations={known}"] if known.is_file() else []),
                *([f"--compare={fused}"] if by_cann and fused.is_file() else []),
            ]
            parts.append(_of_stage(command, environ, stage["name"]))
    if not known.is_file():
        asked = f"{again.command('om-forecast', IMAGES='', SCORE='', BAD='')} IMAGES=<pictures>"
        parts.append(f"what overflows in fp16 is known after: {asked}")
    return "\n\n".join(parts)


def _of_stage(command: process.Command, environ: Mapping[str, str], stage: str) -> str:
    """Return the forecast of a stage, or why there is none: what atc would refuse cannot be forecast."""
    try:
        shown = process.run(command, what=f"no forecast of {stage}", hint="", env=environ)
    except AscendetError as error:
        return f"no forecast of {stage}: {(error.found or '').removeprefix('no forecast: ')}"
    return shown.rstrip()
