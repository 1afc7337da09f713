"""`make om-precision`: find the fewest operators that must stay float32 to keep AP within a bound."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ascendet import paths
from ascendet.om import convert, exported, proof

RESULT = "precision.json"
BOUND = 0.002  # of make
# Modes that keep all data types: nothing is to be searched in them.
_KEEP_ALL = ("origin", "must_keep_origin_dtype", "force_fp32")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    proof.add_options(parser)
    parser.add_argument("--bound", default=str(BOUND), help="the largest loss of AP, of boxes or masks")
    parser.add_argument("--score", default="0.3", help="without annotations: what counts as an object")


def execute(args: argparse.Namespace) -> None:
    """Measure the modes, and search in PRECISION, or in fp16 where that keeps all data types."""
    bound = proof.check_number("BOUND", args.bound, 0, 1, BOUND)
    score = proof.check_number("SCORE", args.score, 0, 1, 0.3)
    mode = "fp16" if args.precision in _KEEP_ALL else exported.check_precision(args.precision)
    for one in proof.prepare(args):
        # Any OMs do: they tell the SoC and atc's version.
        om = proof.origin(one) or convert.convert(one.aim, one.one, one.choice, mode)
        work = one.one.folder / f"precision-{one.choice.soc}-{mode}"
        one.run(
            "precision",
            work,
            [f"--om={om}", f"--mode={mode}", f"--bound={bound}", f"--score={score}"],
        )
        content = json.loads((work / RESULT).read_text(encoding="utf-8"))
        proof.show(one, content, [*lines(content), f"KEEP_DTYPE={paths.shorten(work)}"], work)


def lines(content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that are printed of a search."""
    reference = ", ".join(f"{kind} {value:.4f}" for kind, value in content["reference"].items())
    yield f"ONNX: AP {reference}"
    for row in content["modes"]:
        shown = ", ".join(f"{kind} {value:.4f}" for kind, value in (row["AP"] or {}).items())
        yield f"{row['mode']:<22}" + (
            f"AP {shown}, loss {row['loss']:.4f}" if row["AP"] else "refused by atc"
        )
    found = content["search"]
    cost = found["cost"]
    yield (
        f"{content['mode']} with {cost['nodes']} of {cost['of']} operators in float32, beside those that "
        f"the export keeps so: loss {found['loss']:.4f} "
        f"(bound {content['bound']:g}; none {found['loss_without_any']:.4f}, all {found['loss_with_all']:.4f})"
    )
    for group in found["groups"]:
        yield f"  {group['stage']} {group['name']}"
    yield (
        f"predicted: {cost['multiply_adds']:.1%} of the multiply-adds and {cost['bytes']:.1%} of the bytes, "
        f"{cost['compute']:.2f}x where Cube limits, {cost['memory']:.2f}x where memory does"
    )
