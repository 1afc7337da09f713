"""`make om-compare`: PyTorch, its wrappers, ONNX and OMs on the same pictures, rung by rung; the port report's JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ascendet.errors import AscendetError
from ascendet.om import proof
from ascendet.om.proof import Proof
from ascendet.run import folders

COMPARISON = "compare.json"
# Errors that are the result of a comparison; after any other, what is stored is of an earlier one.
_RESULTS = ("om-differs", "om-no-detections")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    proof.add_options(parser)
    parser.add_argument(
        "--checkpoint", default="", help="that of the export; empty: the latest training's last one"
    )
    parser.add_argument("--score", default="0.3", help="the score from which on detections must agree")


def execute(args: argparse.Namespace) -> None:
    """Compare; an error names what breaks, and the result is stored all the same."""
    score = proof.check_number("SCORE", args.score, 0, 1, 0.3)
    for one in proof.prepare(args):
        checkpoint = folders.find_checkpoint(one.aim, args.checkpoint)
        origin, asked = proof.oms(one, args)
        work = one.one.folder / f"compare-{asked.name}"
        more = [f"--origin={origin}"] if origin and origin != asked else []
        try:
            one.run("compare", work, [f"--om={asked}", *more, f"--score={score}"], checkpoint)
        except AscendetError as error:
            if error.name in _RESULTS:
                _show(one, work)
            raise
        _show(one, work)


def _show(one: Proof, work: Path) -> None:
    content = json.loads((work / COMPARISON).read_text(encoding="utf-8"))
    proof.show(one, content, list(lines(content)), work)


def lines(content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that are printed of a comparison."""
    made = content["compare_with_pytorch"]
    yield f"{'':10}{'raw':>8}{'best of label':>15}{'from score':>12}"
    for name in ("om", "pytorch", "delta"):
        side = made[name]
        yield f"{name:<10}{side['raw_count']:>8}{side['after_dedup']:>15}{side['after_score_thr']:>12}"
    pairs = content["pairs"]["from_score_thr"]
    yield (
        f"pairs from score {made['score_thr']:g}: {pairs['count']}, without a partner {pairs['only_om']} of "
        f"the OM's and {pairs['only_pytorch']} of PyTorch's; at most {pairs['box']:.3g} px, "
        f"{pairs['score']:.2g} in score, mask IoU at least {pairs['mask']:.4f}"
    )
    for kind, name in (("bbox", "boxes"), ("segm", "masks")):
        if kind in content.get("AP", {}).get("difference", {}):
            ap = content["AP"]
            yield (
                f"AP of {name}: OM {ap['om'][kind]:.4f}, PyTorch {ap['pytorch'][kind]:.4f}, "
                f"difference {ap['difference'][kind]:+.4f}"
            )
