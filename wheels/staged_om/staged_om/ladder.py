"""The ladder from PyTorch to an OM: each rung is compared with the one below, and the first that breaks is named.

    pytorch -> wrappers -> onnx -> aipp -> om-origin -> om

`pytorch` is the model as `make infer` runs it; `wrappers` are the modules that were exported, with the family's host
steps; `onnx` are the exported graphs in ONNX Runtime; `aipp`, where pictures are bytes, are these with pictures rounded
to float16 as AIPP hands them on; `om-origin` is the OM whose tensors keep the graph's data types;
`om` is the one in the precision mode asked for. A rung that breaks says whose fault it is: the host steps' or
export_meta.json's, the exporter's, the converter's, or the precision mode's. All rungs see the same pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from staged_om.ap import Truth
from staged_om.differences import Difference, measure
from staged_om.host import Batch, Detections, DeviceStep
from staged_om.meta import Meta
from staged_om.onnx_runner import Runner, Tensors
from staged_om.pairs import PairSummary, match, summarize


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a rung may be from the one below, in detections from the score threshold on.

    Attributes
    ----------
    unmatched
        The share of detections without a partner. It is not 0 where numbers differ, because non-maximum suppression
        and score thresholds decide by comparisons, which a last bit can turn.
    box, score, mask
        The largest difference in pixels and of scores, and the smallest overlap, in all but the worst pair of each
        hundred.
    ap
        The largest difference in AP, of boxes or masks.
    """

    unmatched: float
    box: float
    score: float
    mask: float
    ap: float


@dataclass(frozen=True, kw_only=True)
class RungKind:
    """A rung: whose fault it is if it breaks, and its limits."""

    blame: str
    limits: Limits


# The numbers are decisions. `wrappers` compute the same numbers as the model, but host steps do their sigmoids and
# exponentials in numpy, and where a mask is exactly at its threshold (BlendMask's, outside of its bases) PyTorch's
# rounding puts some pixels below; `onnx` and `om-origin` add in another order; `aipp` rounds pictures to float16, and
# `om` all on the way.
RUNGS: dict[str, RungKind] = {
    "wrappers": RungKind(
        blame="the family's host steps, or what export_meta.json tells them (normalisation, strides, anchors)",
        limits=Limits(unmatched=0.0, box=0.01, score=1e-5, mask=0.98, ap=1e-6),
    ),
    "onnx": RungKind(
        blame="the export to ONNX",
        limits=Limits(unmatched=0.005, box=0.1, score=1e-3, mask=0.98, ap=1e-3),
    ),
    "aipp": RungKind(
        blame="AIPP, which hands normalised pictures on in float16",
        limits=Limits(unmatched=0.02, box=1.0, score=0.01, mask=0.95, ap=1e-3),
    ),
    "om-origin": RungKind(
        blame="the conversion (fusion, a kernel), or how inference feeds the OM",
        limits=Limits(unmatched=0.005, box=0.1, score=2e-3, mask=0.98, ap=1e-3),
    ),
    "om": RungKind(
        blame="the precision mode",
        limits=Limits(unmatched=0.05, box=4.0, score=0.05, mask=0.9, ap=2e-3),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What a rung detected in all pictures, compared with the rung below it."""

    name: str
    below: str
    summary: PairSummary
    ap: Mapping[str, float] = field(default_factory=dict)
    ap_below: Mapping[str, float] = field(default_factory=dict)
    lost_all: bool = False

    @property
    def ap_change(self) -> float:
        """The largest difference of an AP to the rung below; 0 without annotations."""
        return max(
            (abs(self.ap[kind] - self.ap_below[kind]) for kind in self.ap.keys() & self.ap_below.keys()),
            default=0.0,
        )

    @property
    def broken(self) -> dict[str, tuple[float, float]]:
        """The numbers beyond this rung's limits, each with its limit; `detections` 0 where all are lost."""
        limits, summary = RUNGS[self.name].limits, self.summary
        found = {"detections": (0.0, 1.0)} if self.lost_all else {}
        for name, value in (
            ("unmatched", summary.unmatched),
            ("box", summary.box_99),
            ("score", summary.score_99),
        ):
            if value > getattr(limits, name):
                found[name] = (value, getattr(limits, name))
        if summary.mask_99 < limits.mask:
            found["mask"] = (summary.mask_99, limits.mask)
        if self.ap_change > limits.ap:
            found["AP"] = (self.ap_change, limits.ap)
        return found

    def describe(self) -> str:
        """Return one line for a terminal: the rung, its numbers, and those beyond their limits."""
        summary = self.summary
        numbers = (
            f"{summary.count} pairs, {summary.only_om + summary.only_pytorch} without a partner, "
            f"box {summary.box:.3g} px, score {summary.score:.2g}, mask IoU {summary.mask:.4f}"
        )
        ap = "".join(
            f", {'box' if kind == 'bbox' else 'mask'} AP {value:.4f}"
            for kind, value in self.ap.items()
            if value >= 0
        )
        verdict = (
            "BROKEN: "
            + ", ".join(
                f"{name} {value:.4g} (limit {limit:g})" for name, (value, limit) in self.broken.items()
            )
            if self.broken
            else "holds"
        )
        return f"{self.name:<10} against {self.below:<10} {verdict}; {numbers}{ap}"

    def facts(self) -> dict[str, Any]:
        """Return the rung as JSON values, with its limits."""
        return {
            "rung": self.name,
            "against": self.below,
            "holds": not self.broken,
            "broken": {
                name: {"value": value, "limit": limit} for name, (value, limit) in self.broken.items()
            },
            "limits": asdict(RUNGS[self.name].limits),
            "pairs": asdict(self.summary),
            "AP": dict(self.ap),
        }


Detect = Callable[[], Sequence[Detections]]


def climb(
    rungs: Mapping[str, Detect],
    *,
    meta: Meta,
    score_thr: float,
    truth: Truth | None = None,
    show: Callable[[Rung], None] = lambda _: None,
) -> tuple[list[Rung], dict[str, list[Detections]]]:
    """Return all rungs, and the detections of each by name.

    A rung that breaks does not stop the climb: what stands above is compared with it all the same, so that two faults
    are two broken rungs.

    Parameters
    ----------
    rungs
        How each rung detects objects in all pictures, `pytorch` first and the others in the order of RUNGS; rungs may
        be left out.
    meta, score_thr, truth
        As for `compare`.
    show
        Gets each rung as soon as it is known.
    """
    made: list[Rung] = []
    found: dict[str, list[Detections]] = {}
    ap: dict[str, dict[str, float]] = {}
    below = ""
    for name, detect in rungs.items():
        found[name] = list(detect())
        ap[name] = truth.score(found[name], meta) if truth else {}
        if below:
            pairs = [match(mine, theirs) for mine, theirs in zip(found[name], found[below], strict=True)]
            rung = Rung(
                name=name,
                below=below,
                summary=summarize(found[name], found[below], pairs, score_thr),
                ap=ap[name],
                ap_below=ap[below],
                lost_all=not _total(found[name]) and bool(_total(found[below])),
            )
            made.append(rung)
            show(rung)
        below = name
    return made, found


def first_broken(rungs: Sequence[Rung]) -> Rung | None:
    """Return the lowest rung that breaks, or None."""
    return next((rung for rung in rungs if rung.broken), None)


def _total(found: Sequence[Detections]) -> int:
    return sum(len(one.scores) for one in found)


# -- which step --


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first step whose result differs although it got the same as the reference's.

    `step` is a device stage's name or a host step's, `value` the tensor's name (`detections` after the last step).
    """

    step: str
    device: bool
    value: str
    text: str

    def __str__(self) -> str:
        """Return it as the end of a sentence."""
        return f"{'stage' if self.device else 'host step'} {self.step}, {self.value}: {self.text}"


def first_divergence(
    reference: Runner,
    candidate: Runner,
    pictures: Sequence[np.ndarray],
    *,
    accept: Callable[[Difference], bool] = lambda difference: difference.passed,
) -> Divergence | None:
    """Return the first step at which `candidate` leaves `reference`, or None if all steps agree.

    Each step of both gets what the reference's steps before it left, so that an error is not passed on: what is named
    is where it arises. Both have the same steps in the same order.

    Parameters
    ----------
    reference, candidate
        Two rungs, such as ONNX Runtime's and the OM's.
    pictures
        One batch.
    accept
        Whether a difference of a tensor is accepted: by default, if it keeps msprobe's thresholds.
    """
    batch, buffers = Batch(pictures=list(pictures)), Tensors()
    for step, other in zip(reference.steps, candidate.steps, strict=True):
        try_batch = copy.deepcopy(batch)
        tried = candidate.advance(other, try_batch, dict(buffers))
        made = reference.advance(step, batch, buffers)
        device = isinstance(step, DeviceStep)
        name = step.stage if isinstance(step, DeviceStep) else step.name
        for value, tensor in made.items():
            difference = measure(tried[value], tensor)
            if not accept(difference):
                return Divergence(step=name, device=device, value=value, text=difference.explain())
        if text := _differing_detections(try_batch.detections, batch.detections):
            return Divergence(step=name, device=device, value="detections", text=text)
        buffers |= made
    return None


def _differing_detections(mine: Sequence[Detections], theirs: Sequence[Detections]) -> str:
    """Return what differs between detections that the same inputs gave, or "": they must agree as wrappers do."""
    if len(mine) != len(theirs):
        return f"{len(mine)} pictures instead of {len(theirs)}"
    pairs = [match(one, other) for one, other in zip(mine, theirs, strict=True)]
    broken = Rung(name="wrappers", below="reference", summary=summarize(mine, theirs, pairs, 0.0)).broken
    return ", ".join(f"{name} {value:.4g} (limit {limit:g})" for name, (value, limit) in broken.items())
