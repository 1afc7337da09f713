"""`make infer-om`: detect objects in pictures with OMs, draw them, store the results, measure speed and latency."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from ascendet import paths
from ascendet.core import again, manifest
from ascendet.errors import AscendetError
from ascendet.om import exported, soc
from ascendet.om.exported import Exported
from ascendet.run import folders, infer, latency, program, target

_LOG = "infer.log"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    exported.add_options(parser)
    exported.add_conversion_options(parser)
    parser.add_argument("--images", required=True, help="files, folders and glob patterns, as in a shell")
    parser.add_argument("--score", default="0.3", help="draw and list objects from this score on")
    parser.add_argument("--bad", default="skip", help="damaged pictures: skip or refuse")


def execute(args: argparse.Namespace) -> None:
    """Find objects with the OMs of all sizes and batches that are converted, and print the latency."""
    score, pictures = infer.check_options(args.score, args.bad), infer.find_images(args.images)
    precision = exported.check_precision(args.precision)
    aim = target.check(args, "export")
    aim = replace(aim, devices=aim.devices[:1])
    found = exported.find(aim, exported.parse_sizes(args.sizes), exported.parse_batches(args.batch))
    aim = target.prepare(aim)
    choice = soc.find(aim, args.soc, force=args.force)
    keep = exported.read_keep(args.keep_dtype, [stage["name"] for stage in found[0].stages])
    precision = exported.mode_name(precision, keep)
    oms = find_oms(found, choice.soc, precision)
    final = exported.home() / f"{aim.model}-{aim.dataset}-infer-{choice.soc}-{precision}"
    with folders.replacing(final, _LOG) as work:
        (work / "images.json").write_text(json.dumps([str(file) for file in pictures]), encoding="utf-8")
        environ = target.environ(aim, work)
        line = target.describe(aim, environ)
        print(f"{aim.model} as {precision} OMs on {len(pictures)} pictures: {line}\n{choice}", flush=True)
        run = program.Run(
            program="staged_om.infer",
            environ=environ,
            log=work / _LOG,
            target=aim,
            inputs=[exported.home(), *sorted({file.parent for file in pictures})],
            arguments=[
                *(f"--om={folder}" for folder in oms),
                f"--images={work / 'images.json'}",
                f"--score={score}",
                f"--bad={args.bad}",
            ],
        )
        try:
            program.execute(run)
        except AscendetError:
            _keep_partial(work, final)
            raise
        results = json.loads((work / infer.RESULTS).read_text(encoding="utf-8"))
        facts = {
            "stage": "infer-om",
            "inputs": {**aim.inputs, "export_ids": [one.meta["export_id"] for one in found]},
            "soc": choice.soc,
            "precision": precision,
            **target.facts(aim, line),
            "latency": results["latency"],
            "overlap": results["overlap"],
            "copies": results["copies"],
        }
        manifest.write(work, facts)
    calls = results["latency"]
    rows: dict[str, tuple[latency.Milliseconds, float | None]] = {"first call": (calls["first_call"], None)}
    for label, distribution in calls["steady"].items():
        rows |= latency.describe_calls(label, distribution)
    print(f"\n{latency.table(rows)}\n\n{results['summary']}")
    for bad in results["skipped"]:
        print(f"skipped: {paths.printable(bad['file'])}: {bad['reason']}")
    print(f"stored in {paths.shorten(final)}: {len(results['images'])} pictures, {infer.RESULTS} ({line})")


def find_oms(found: list[Exported], chip: str, precision: str) -> list[Path]:
    """Return the folders with the OMs of exported models; what is exported and not converted is left out.

    Raises
    ------
    AscendetError
        `om-missing`: none is converted for this SoC in this precision mode. `om-mixed-builds`: they are of different
        checkpoints.
    """
    oms = [one.om_folder(chip, precision) for one in found]
    there = [folder for folder in oms if (folder / exported.RECORD).is_file()]
    _check_one_checkpoint([one for one, folder in zip(found, oms, strict=True) if folder in there])
    if not there:
        others = [paths.shorten(folder) for one in found for folder in one.om_folders()]
        raise AscendetError(
            "om-missing",
            f"there are no OMs for {chip} in precision mode {precision}",
            expected=paths.shorten(oms[0]),
            found=", ".join(others) or "none at all",
            hint=again.command("om", IMAGES="", SCORE="", BAD=""),
        )
    return there


def _check_one_checkpoint(found: list[Exported]) -> None:
    """Raise `om-mixed-builds` if pictures would go to models of different trainings, by their sizes."""
    if len({one.meta["checkpoint_sha256"] for one in found}) > 1:
        sizes = dict.fromkeys(f"{one.size[0]}x{one.size[1]}" for one in found)
        batches = dict.fromkeys(str(one.batch) for one in found)
        raise AscendetError(
            "om-mixed-builds",
            "the exported models are of different checkpoints",
            expected="one checkpoint, or SIZES and BATCH of one",
            found="\n".join(f"{one.folder.name}: {one.meta['checkpoint']}" for one in found),
            hint=again.command(
                "export", SIZES=",".join(sizes), BATCH=",".join(batches), IMAGES="", SCORE="", BAD=""
            ),
        )


def _keep_partial(work: Path, final: Path) -> None:
    """Keep what was found before a failure, as `<final>-partial`: the program stores it as far as it came."""
    if (work / infer.RESULTS).is_file():
        kept = final.with_name(f"{final.name}-partial")
        with folders.replacing(kept, _LOG) as copy:
            shutil.copytree(work, copy, dirs_exist_ok=True)
        print(f"kept what was done so far: {paths.shorten(kept)}")
