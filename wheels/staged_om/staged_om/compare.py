"""Compare the detections of two paths: the port report's JSON, pairs by overlap, and the difference in AP.

The report counts detections and looks at their scores, so an object that moved, or was replaced by another one, is not
seen. Therefore pairs stand beside its JSON: each detection of the OM and the one of PyTorch that it overlaps.

    python -m staged_om.compare --om=build/om/<model>/<soc>-<mode> --origin=…/<soc>-origin --inputs=folder

Environment: MODEL, DATASET and CHECKPOINT, as for the family's `infer`; WORK_DIR, which gets `compare.json`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ascendet_common import progress, results
from ascendet_common.errors import RunError, forget, reporting

from staged_om.ap import Truth
from staged_om.atc import KEEP_ALL, Converted
from staged_om.device import Device
from staged_om.host import Batch, Detections, Step
from staged_om.infer import Export
from staged_om.inputs import Inputs, open_inputs
from staged_om.ladder import RUNGS, Divergence, Rung, climb, first_broken, first_divergence
from staged_om.meta import Meta
from staged_om.onnx_runner import Runner, onnx_stages, torch_stages
from staged_om.pairs import match, summarize
from staged_om.reference import has_model, open_detector, torch_modules
from staged_om.schedule import run_batch
from staged_om.session import Session

COMPARISON = "compare.json"
TOP = 10  # how many of PyTorch's final detections the report lists


def report(
    om: Sequence[Detections], pytorch: Sequence[Detections], *, score_thr: float, device: str = "cpu"
) -> dict[str, Any]:
    """Return the report's `compare_with_pytorch`, with its keys in its order.

    Parameters
    ----------
    om, pytorch
        The detections of both paths in the same pictures. The report has one picture; of several, counts are sums, and
        the best detection of each label is kept in each picture.
    score_thr
        What remains after it is counted last; statistics and `final_detections_topk` are of these.
    device
        Where PyTorch computed.
    """
    mine, theirs = _count(om, score_thr), _count(pytorch, score_thr)
    final = sorted(
        (
            (float(one.scores[index]), number, index)
            for number, one in enumerate(pytorch)
            for index in _final(one, score_thr)
        ),
        key=lambda found: (-found[0], found[1:]),
    )
    return {
        "enabled": True,
        "pytorch_device": device,
        "dedup_policy": "keep_top1_per_label",
        "score_thr": score_thr,
        "om": mine,
        "pytorch": {
            **theirs,
            "final_detections_topk": [
                {
                    "bbox": [float(value) for value in pytorch[number].boxes[index]],
                    "score": score,
                    "label": int(pytorch[number].labels[index]),
                }
                for score, number, index in final[:TOP]
            ],
        },
        "delta": {key: mine[key] - theirs[key] for key in ("raw_count", "after_dedup", "after_score_thr")},
    }


def keep_top1_per_label(one: Detections) -> list[int]:
    """Return the indices of the best detection of each label, best first; of equal scores the first one is kept."""
    best: dict[int, int] = {}
    for index in np.argsort(-one.scores, kind="stable"):
        best.setdefault(int(one.labels[index]), int(index))
    return list(best.values())


def _final(one: Detections, score_thr: float) -> list[int]:
    return [index for index in keep_top1_per_label(one) if one.scores[index] >= score_thr]


def _count(all_found: Sequence[Detections], score_thr: float) -> dict[str, Any]:
    raw = sum(len(one.scores) for one in all_found)
    kept = sum(len(keep_top1_per_label(one)) for one in all_found)
    scores = [float(one.scores[index]) for one in all_found for index in _final(one, score_thr)]
    return {
        "raw_count": raw,
        "after_dedup": kept,
        "after_score_thr": len(scores),
        "dropped_by_dedup": raw - kept,
        "dropped_by_score_thr": kept - len(scores),
        "score_stats": {
            "max": max(scores, default=None),
            "mean": sum(scores) / len(scores) if scores else None,
        },
    }


def compare(
    om: Sequence[Detections],
    pytorch: Sequence[Detections],
    *,
    names: Sequence[str],
    meta: Meta,
    score_thr: float,
    truth: Truth | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the whole comparison as JSON values.

    Beside the report's `compare_with_pytorch` there are `pairs` (all detections, and those from `score_thr` on),
    `AP` where there is a truth (`om`, `pytorch` and `difference`), and `pictures`: the same for each one, with its
    pairs and what has no partner.
    """
    matches = [match(mine, theirs) for mine, theirs in zip(om, pytorch, strict=True)]
    content: dict[str, Any] = {
        "compare_with_pytorch": report(om, pytorch, score_thr=score_thr, device=device),
        "pairs": {
            "all": asdict(summarize(om, pytorch, matches, 0.0)),
            "from_score_thr": asdict(summarize(om, pytorch, matches, score_thr)),
        },
    }
    if truth:
        mine, theirs = truth.score(om, meta), truth.score(pytorch, meta)
        content["AP"] = {
            "om": mine,
            "pytorch": theirs,
            "difference": {kind: mine[kind] - theirs[kind] for kind in mine if kind in theirs},
        }
    content["pictures"] = [
        {
            "file": name,
            "compare_with_pytorch": report([mine], [theirs], score_thr=score_thr, device=device),
            "pairs": [
                asdict(pair)
                | {"label": meta.classes[int(mine.labels[pair.om])], "om_score": float(mine.scores[pair.om])}
                for pair in found.pairs
            ],
            "only_om": [_describe(mine, index, meta) for index in found.only_om],
            "only_pytorch": [_describe(theirs, index, meta) for index in found.only_pytorch],
        }
        for name, mine, theirs, found in zip(names, om, pytorch, matches, strict=True)
    ]
    return content


def _describe(one: Detections, index: int, meta: Meta) -> dict[str, Any]:
    return {
        "label": meta.classes[int(one.labels[index])],
        "score": float(one.scores[index]),
        "bbox": [float(value) for value in one.boxes[index]],
    }


def lost_pictures(om: Sequence[Detections], pytorch: Sequence[Detections], score_thr: float) -> list[int]:
    """Return the pictures in which the OM found nothing at all, but PyTorch something from the score on."""
    return [
        number
        for number, (mine, theirs) in enumerate(zip(om, pytorch, strict=True))
        if not len(mine.scores) and (theirs.scores >= score_thr).any()
    ]


# -- the program --


class OmDiffers(RunError):
    """A rung of the ladder that is further from the one below than its limits."""

    default_name = "om-differs"


class NoDetections(RunError):
    """OMs that find nothing where PyTorch finds something."""

    default_name = "om-no-detections"


@dataclass(kw_only=True)
class Paths:
    """The rungs of one exported model, opened when they are asked for.

    Attributes
    ----------
    device
        Where OMs run.
    meta, steps
        The exported model and its family's pipeline.
    folder
        Its folder, with the ONNX files.
    oms
        The folder of the OMs of each rung: `om-origin`, `om`.
    """

    device: Device
    meta: Meta
    steps: tuple[Step, ...]
    folder: Path
    oms: Mapping[str, Path]

    def rungs(self, inputs: Inputs, *, checkpoint: bool) -> dict[str, Callable[[], list[Detections]]]:
        """Return how each rung detects objects; those of PyTorch only where there is a checkpoint.

        Without a model at the exported size the wrappers, which compute in PyTorch, are the lowest rung.
        """
        made: dict[str, Callable[[], list[Detections]]] = {}
        if checkpoint and not has_model(self.meta):
            size = f"{self.meta.height} x {self.meta.width}"
            progress.write("note", text=f"no model takes {size} pictures: the wrappers are the lowest rung")
        elif checkpoint:
            made["pytorch"] = lambda: list(map(open_detector(self.meta), inputs.pictures))
        if checkpoint:
            made["wrappers"] = lambda: detect_all(self.runner("wrappers"), inputs)
        made["onnx"] = lambda: detect_all(self.runner("onnx"), inputs)
        if self.meta.host.get("aipp"):
            made["aipp"] = lambda: detect_all(self.runner("aipp"), inputs)
        for name, folder in self.oms.items():
            made[name] = partial(self.detect_by_om, folder, inputs)
        return made

    def runner(self, rung: str) -> Runner:
        """Return the runner of `wrappers`, `onnx` or `aipp`."""
        if rung == "wrappers":
            return Runner(self.meta, self.steps, torch_stages(self.meta, torch_modules(self.meta)))
        return Runner(
            self.meta,
            self.steps,
            onnx_stages(self.meta, self.folder, threads=_threads(), aipp_rounds=rung == "aipp"),
        )

    def detect_by_om(self, folder: Path, inputs: Inputs) -> list[Detections]:
        """Return what inference finds: the way that `make infer-om` takes."""
        found: list[Detections] = []
        with Session(self.device, self.meta, self.steps, folder) as session:
            for pictures in inputs.batches(self.meta.batch):
                found += run_batch(session, session.lanes[0], Batch(pictures=pictures)).batch.detections
        return found

    def divergence(self, rung: Rung, picture: np.ndarray) -> Divergence | None:
        """Return the first step at which a rung leaves the ONNX graphs' (or, for `onnx`, the wrappers')."""
        if rung.name == "wrappers":
            return None  # the model below it has no steps
        if rung.name in ("onnx", "aipp"):
            return first_divergence(self.runner(rung.below), self.runner(rung.name), [picture])
        with Session(self.device, self.meta, self.steps, self.oms[rung.name]) as session:
            candidate = Runner(self.meta, self.steps, session.functions())
            reference = self.runner("aipp" if self.meta.host.get("aipp") else "onnx")
            return first_divergence(reference, candidate, [picture])


def detect_all(runner: Runner, inputs: Inputs) -> list[Detections]:
    """Return the detections in all pictures."""
    return [one for batch in inputs.batches(runner.meta.batch) for one in runner.run(batch).batch.detections]


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def _show(rung: Rung) -> None:
    progress.write("note", text=rung.describe())


def run(paths: Paths, inputs: Inputs, score_thr: float, out: Path) -> None:
    """Climb the ladder, write compare.json into `out`, and raise what is wrong.

    Raises
    ------
    NoDetections
        A rung finds nothing in a picture in which the first one finds something; with the first diverging step.
    OmDiffers
        A rung breaks; it names the lowest one, its numbers and their limits.
    """
    plan = paths.rungs(inputs, checkpoint=bool(os.environ.get("CHECKPOINT")))
    rungs, found = climb(plan, meta=paths.meta, score_thr=score_thr, truth=inputs.truth, show=_show)
    lowest, highest = next(iter(found)), next(reversed(found))
    content = compare(
        found[highest],
        found[lowest],
        names=inputs.names,
        meta=paths.meta,
        score_thr=score_thr,
        truth=inputs.truth,
    )
    content["ladder"] = [rung.facts() for rung in rungs]
    broken = first_broken(rungs)
    lost = lost_pictures(found[highest], found[lowest], score_thr)
    where = None
    if broken or lost:
        rung = broken or rungs[-1]
        worst = (lost or [_worst(found[rung.name], found[rung.below], score_thr)])[0]
        where = paths.divergence(rung, inputs.pictures[worst])
        content["first_divergence"] = (
            {"rung": rung.name, "picture": inputs.names[worst], **asdict(where)} if where else None
        )
    results.write(out / COMPARISON, content)
    if lost:
        raise NoDetections(
            f"the OMs find nothing in {len(lost)} of {len(inputs.names)} pictures in which PyTorch finds objects",
            expected=f"objects from score {score_thr:g} on, such as in {inputs.names[lost[0]]}",
            found=f"0 detections; first different: {where or 'no step alone, given equal inputs'}",
        )
    if broken:
        raise OmDiffers(
            f"the rung {broken.name} breaks: {RUNGS[broken.name].blame}",
            expected=", ".join(f"{name} within {limit:g}" for name, (_, limit) in broken.broken.items()),
            found=", ".join(f"{name} {value:.4g}" for name, (value, _) in broken.broken.items())
            + (f"\nfirst different: {where}" if where else ""),
            advice={"IMAGES": inputs.names[worst]},
        )


def _worst(mine: Sequence[Detections], theirs: Sequence[Detections], score_thr: float) -> int:
    """Return the picture with the most detections without a partner, then the largest difference of scores."""

    def badness(number: int) -> tuple[float, float, int]:
        one, other = mine[number], theirs[number]
        summary = summarize([one], [other], [match(one, other)], score_thr)
        return summary.unmatched, summary.score, -number

    return max(range(len(mine)), key=badness)


def main() -> None:
    """Compare the rungs of the OMs that the command line names."""
    parser = argparse.ArgumentParser(
        description="Compare OMs with PyTorch, rung by rung.", allow_abbrev=False
    )
    parser.add_argument("--om", required=True, type=Path, help="the folder of the OMs")
    parser.add_argument(
        "--origin", type=Path, help="that of the same OMs in the mode origin, if there is one"
    )
    parser.add_argument("--inputs", required=True, type=Path, help="a folder with inputs.json")
    parser.add_argument(
        "--score", type=float, default=0.3, help="the score from which on detections must agree"
    )
    args = parser.parse_args()
    forget()
    with reporting():
        export = Export.open(args.om)
        keeps = Converted.read(args.om).precision in KEEP_ALL
        oms = {"om-origin": args.origin} if args.origin else {}
        oms["om" if oms or not keeps else "om-origin"] = args.om
        with Device() as device:
            paths = Paths(device=device, meta=export.meta, steps=export.steps, folder=args.om.parent, oms=oms)
            run(paths, open_inputs(args.inputs), args.score, Path(os.environ["WORK_DIR"]))


if __name__ == "__main__":
    main()
