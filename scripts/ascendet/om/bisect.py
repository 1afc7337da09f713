"""`make om-bisect`: find the first node of a stage whose value in the OM is not the ONNX graph's, and why."""

from __future__ import annotations

import argparse
import json

from ascendet.om import proof

RESULT = "bisect.json"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    proof.add_options(parser)
    parser.add_argument("--stage", default="", help="the stage; empty: all in their order, until one breaks")
    parser.add_argument("--chunk", default="", help="this many nodes per conversion, for the whole table")


def execute(args: argparse.Namespace) -> None:
    """Search in the OMs of the mode asked for."""
    chunk = int(proof.check_number("CHUNK", args.chunk or "0", 0, 10_000, 50))
    for one in proof.prepare(args):
        asked = proof.asked(one, args)
        work = one.one.folder / f"bisect-{asked.name}"
        one.run("bisect", work, [f"--om={asked}", f"--stage={args.stage}", f"--chunk={chunk}"])
        content = json.loads((work / RESULT).read_text(encoding="utf-8"))
        lines = [
            f"{stage}: {found['text']} ({found['conversions']} conversions)"
            for stage, found in content.items()
        ]
        proof.show(one, content, lines, work)
