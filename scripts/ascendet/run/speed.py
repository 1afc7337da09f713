"""`make speed`: how fast a checkpoint detects on one device: first call, steady state, many sizes, memory."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import replace
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets
from ascendet.run import evaluate, folders, latency, program, target
from ascendet.supply import assets

SPEED = "speed.json"  # written by wheels/common, which describes it
_LOG = "speed.log"
_PICTURES = 200  # as in the port reports


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    parser.add_argument("--checkpoint", default="", help="the file; empty: the latest training's last one")
    parser.add_argument("--images", default="", help=f"how many, from the first on; empty: {_PICTURES}")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def execute(args: argparse.Namespace) -> None:
    """Measure, store the result beside the checkpoint, and print it as a table or as JSON."""
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        facts = measure(args)
    print(json.dumps(facts, indent=1) if args.json else f"\n{table(facts['speed'])}\n\n{facts['where']}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the family's `speed` on the first of DEVICES, and return the facts that the manifest has."""
    count = evaluate.check_count(args.images) or _PICTURES
    aim = target.check(args, "speed")
    aim = replace(aim, devices=aim.devices[:1])  # pictures are processed one at a time
    data = datasets.require(aim.dataset, "val")
    checkpoint = folders.find_checkpoint(aim, args.checkpoint)
    aim = target.prepare(aim)
    final = folders.folder_beside(aim, checkpoint, "speed")
    with folders.replacing(final, _LOG) as work:
        environ = target.environ(aim, work) | {"CHECKPOINT": str(checkpoint)}
        line = target.describe(aim, environ)
        print(f"{aim.model} on {aim.dataset}: {line}\ncheckpoint: {paths.shorten(checkpoint)}", flush=True)
        run = program.Run(
            program="speed",
            environ=environ,
            log=work / _LOG,
            target=aim,
            inputs=[assets.root(), data.resolve(), *aim.files, checkpoint],
            arguments=[f"--images={count}"],
        )
        program.execute(run)
        facts = {
            "stage": "speed",
            "inputs": {
                **aim.inputs,
                "data": (manifest.read(data) or {}).get("key"),
                "checkpoint": files.digest(checkpoint),
            },
            "checkpoint": paths.shorten(checkpoint),
            "devices": list(aim.devices),
            **target.facts(aim, line),
            "cpu_fallbacks": folders.fallbacks(work),
            "speed": json.loads((work / SPEED).read_text(encoding="utf-8")),
        }
        manifest.write(work, facts)
    print(f"stored in {paths.shorten(final)}: {SPEED}, {manifest.MANIFEST}")
    return facts


def table(speed: dict[str, Any]) -> str:
    """Return the table of milliseconds, and a line about the device's memory where it is known.

    >>> stages = {"read": 1.0, "preprocess": 2.0, "device": 30.0, "postprocess": 4.0, "total": 37.0}
    >>> calls = {"calls": 9, "p50": stages, "p90": stages, "images_per_second": 27.0}
    >>> memory = {"allocated": 3 * 2**30, "reserved": 2**32}
    >>> fixed = {"width": 640, "height": 427, "first_call": stages, "steady": calls, "objects": 2, "memory": memory}
    >>> print(table({"fixed": fixed, "pictures": {"times": calls, "memory": memory, "calls": []}}))
    ms                                    read  preprocess      device postprocess       total
    640 x 427, first call                  1.0         2.0        30.0         4.0        37.0
    640 x 427, p50 of 9                    1.0         2.0        30.0         4.0        37.0   27.00 img/s
    640 x 427, p90                         1.0         2.0        30.0         4.0        37.0
    pictures of all sizes, p50 of 9        1.0         2.0        30.0         4.0        37.0   27.00 img/s
    pictures of all sizes, p90             1.0         2.0        30.0         4.0        37.0
    <BLANKLINE>
    device memory, allocated (reserved): 640 x 427 3072 (4096) MiB, pictures of all sizes 3072 (4096) MiB
    """
    fixed, pictures = speed["fixed"], speed["pictures"]
    size, many = f"{fixed['width']} x {fixed['height']}", "pictures of all sizes"
    shown = latency.table(
        {
            f"{size}, first call": (fixed["first_call"], None),
            **latency.describe_calls(size, fixed["steady"]),
            **latency.describe_calls(many, pictures["times"]),
        }
    )
    peaks = [
        f"{label} {part['memory']['allocated'] / 2**20:.0f} ({part['memory']['reserved'] / 2**20:.0f}) MiB"
        for label, part in ((size, fixed), (many, pictures))
        if part["memory"]
    ]
    return shown + (f"\n\ndevice memory, allocated (reserved): {', '.join(peaks)}" if peaks else "")
