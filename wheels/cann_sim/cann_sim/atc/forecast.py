"""What ATC will make of a graph, before any conversion: what fuses, what is slow, what stays float32, what overflows.

    python -m cann_sim.atc.forecast backbone.onnx roi.onnx --soc=Ascend910B3 --precision-mode=force_fp16 \
        --activations=activations.json

On hardware `--compare=fusion_result.json` puts what ATC really fused beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from cann_sim.atc import activations, configs
from cann_sim.atc.activations import Ranges
from cann_sim.atc.convert import read_checked
from cann_sim.atc.errors import AtcError, AtcErrors
from cann_sim.atc.fusion import GRAPH_PASSES, UB_PASSES
from cann_sim.atc.graphs import declared_shape
from cann_sim.atc.kernels import Soc
from cann_sim.atc.lowering import LARGEST_HALF, Finding, Lowered, fusion_counts, lower
from cann_sim.atc.matching import Site
from cann_sim.atc.precision import Precision
from cann_sim.atc.socs import soc_named

# Less room than this factor to float16's largest number is worth a line: other pictures have other maxima.
_NARROW = 2.0
_BOXES = ("ROIAlign", "RoiExtractor")
_LISTED = 8  # lines of one kind


@dataclass(frozen=True, kw_only=True)
class Island:
    """Nodes that compute in float32 although the mode lowers precision: where that starts, why, and how far it goes."""

    start: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A float16 value of a node, or a constant, whose numbers leave float16's range, or nearly so.

    `becomes` is `infinite`, `65504` (SoCs that saturate), `zero` (a constant too small) or `close` (less than twice the
    number would overflow).
    """

    node: str
    value: str
    least: float
    most: float
    becomes: str


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The forecast of one stage.

    Attributes
    ----------
    engines
        How many kernels run on AI Core and AI CPU, how many operators are free, and how many casts were inserted.
    sites
        Each LayerNorm and GELU with the pass that fuses it, or the reason why none does.
    fusions
        How often each pass takes effect.
    ai_cpu
        The nodes that AI Core cannot run, with the reason (W11001).
    boxes
        Nodes that take RoIs in float16.
    overflows
        Needs activations, except for constants; `activations_known` says whether there were any.
    """

    stage: str
    soc: str
    precision_mode: str
    engines: dict[str, int]
    sites: tuple[Site, ...]
    fusions: dict[str, int]
    ai_cpu: tuple[tuple[str, str, str], ...]
    islands: tuple[Island, ...]
    boxes: tuple[str, ...]
    overflows: tuple[Overflow, ...]
    activations_known: bool


def forecast(
    model: onnx.ModelProto, stage: str, *, soc: Soc, precision: Precision, ranges: Ranges | None = None
) -> Forecast:
    """Return the forecast of a checked graph with static shapes; `ranges` are those of its values in float32.

    Raises
    ------
    AtcError
        What `lower` refuses.
    ValueError
        An input whose shape is open.
    """
    shapes = {}
    for value in model.graph.input:
        shape = declared_shape(value)
        if shape is None or -1 in shape:
            raise ValueError(f"the input {value.name} of {stage} has no static shape: export it for one size")
        shapes[value.name] = shape
    lowered = lower(model, soc=soc, precision=precision, shapes=shapes)
    kernels = [operation.engine for operation in lowered.program.operations]
    engines = {engine: kernels.count(engine) for engine in ("AiCore", "AiCpu", "Host")}
    engines["casts"] = sum(
        operation.name.startswith("trans_Cast") for operation in lowered.program.operations
    )
    ran = [finding for finding in lowered.findings if not finding.fused_into]
    return Forecast(
        stage=stage,
        soc=soc.name,
        precision_mode=precision.mode,
        engines=engines,
        sites=lowered.sites,
        fusions=fusion_counts(lowered.findings),
        ai_cpu=tuple((found.name, found.kernel, found.reason) for found in ran if found.engine == "AiCpu"),
        islands=_islands(ran),
        boxes=tuple(found.name for found in ran if found.kernel in _BOXES and "float16" in found.inputs),
        overflows=tuple(_overflows(lowered, soc, ranges or {})),
        activations_known=ranges is not None,
    )


def _islands(findings: Sequence[Finding]) -> tuple[Island, ...]:
    """Return the islands, the largest first."""
    members: dict[str, list[str]] = {}
    reasons = {finding.name: finding.reason for finding in findings}
    for finding in findings:
        if finding.started_by:
            members.setdefault(finding.started_by, []).append(finding.name)
    islands = (
        Island(start=start, reason=reasons.get(start) or _default_reason(start, reasons), nodes=tuple(names))
        for start, names in members.items()
    )
    return tuple(sorted(islands, key=lambda island: -len(island.nodes)))


def _default_reason(start: str, reasons: Mapping[str, str]) -> str:
    return "the graph has it in float32" if start in reasons else "it is an input of the model in float32"


def _overflows(lowered: Lowered, soc: Soc, ranges: Ranges) -> Iterator[Overflow]:
    full = "infinite" if soc.family in ("910B", "910_93") else "65504"
    values = lowered.program.values
    for operation in lowered.program.operations:
        for output in operation.outputs:
            value = output.removesuffix("@float16")
            if not output or values[output].dtype != "float16" or value not in ranges:
                continue
            least, most = ranges[value]
            largest = max(abs(least), abs(most))
            if largest * _NARROW > LARGEST_HALF:
                becomes = full if largest > LARGEST_HALF else "close"
                yield Overflow(node=operation.name, value=value, least=least, most=most, becomes=becomes)
    users = {name: operation.name for operation in lowered.program.operations for name in operation.inputs}
    for name, constant in lowered.constants.items():
        if constant.dtype != np.float16:
            continue
        origin = lowered.originals.get(name)
        if origin is None or not origin.size:
            continue
        at_end = bool((np.abs(constant) >= LARGEST_HALF).any())
        finite = origin[np.isfinite(origin)] if at_end or constant.size == 1 else origin[:0]
        least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        if max(abs(least), abs(most)) > LARGEST_HALF:
            yield Overflow(
                node=users[name], value=name.removesuffix("@float16"), least=least, most=most, becomes=full
            )
        elif constant.size == 1 and finite.size and most != 0 and not constant.any():
            yield Overflow(
                node=users[name], value=name.removesuffix("@float16"), least=least, most=most, becomes="zero"
            )


# ---- beside a card ----


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How often a pass took effect in the forecast and on the card; `simulated` if the forecast knows the pass."""

    name: str
    forecast: int
    real: int
    simulated: bool


def compare(forecasts: Sequence[Forecast], fusion_result: Any) -> tuple[Comparison, ...]:
    """Return the passes of a real fusion_result.json beside the forecast, those that differ first.

    Raises
    ------
    ValueError
        The content is no fusion_result.json.
    """
    real: dict[str, int] = {}
    graphs = fusion_result.values() if isinstance(fusion_result, dict) else fusion_result
    try:
        for graph in graphs:
            for kind in ("graph_fusion", "ub_fusion"):
                for name, times in graph.get(kind, {}).items():
                    real[name] = real.get(name, 0) + int(times["effect_times"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no fusion_result.json: {error!r}") from error
    ours: dict[str, int] = {}
    for made in forecasts:
        for name, count in made.fusions.items():
            ours[name] = ours.get(name, 0) + count
    known = GRAPH_PASSES | UB_PASSES
    found = [
        Comparison(name=name, forecast=ours.get(name, 0), real=real.get(name, 0), simulated=name in known)
        for name in sorted(real.keys() | ours.keys())
    ]
    return tuple(sorted(found, key=lambda each: (not each.simulated, each.forecast == each.real)))


# ---- for people ----


def text(made: Forecast) -> str:
    """Return a forecast as a colleague reads it."""
    engines = made.engines
    lines = [
        f"{made.stage} on {made.soc}, {made.precision_mode}: forecast of cann_sim, made without a card",
        f"  kernels    {engines['AiCore']} on AI Core, {engines['AiCpu']} on AI CPU; {engines['Host']} views cost"
        f" nothing; {engines['casts']} casts were added",
    ]
    for kind, title in (("LayerNorm", "LayerNorm"), ("Gelu", "GELU")):
        lines += _site_lines(title, [site for site in made.sites if site.kind == kind])
    lines += _listed(
        "AI CPU", [f"{name} ({kernel}): {reason} (W11001)" for name, kernel, reason in made.ai_cpu]
    )
    lines += _listed(
        "float32",
        [
            f"{len(island.nodes)} {_plural('node', len(island.nodes))} from {island.start} on: {island.reason}"
            for island in made.islands
        ],
    )
    lines += _listed("boxes", [f"{name} takes its boxes in float16: beyond 512 a step of 0.5, beyond 1024 of 1"
                               for name in made.boxes])  # fmt: skip
    overflows = [_overflow_line(each) for each in made.overflows]
    if not made.activations_known:
        overflows.append("of values is not known without the activations of pictures")
    lines += _listed("overflow", overflows)
    return "\n".join(lines)


def _site_lines(title: str, sites: Sequence[Site]) -> list[str]:
    if not sites:
        return []
    fused = [site for site in sites if site.fused_by]
    how: dict[str, int] = {}
    for site in fused:
        note = f"{site.fused_by}, not certain: the pass is closed" if site.uncertain else site.fused_by
        how[note] = how.get(note, 0) + 1
    detail = f" ({'; '.join(f'{count} by {note}' for note, count in how.items())})" if how else ""
    lines = [f"  {title:<10} {len(fused)} of {len(sites)} are one kernel{detail}"]
    reasons: dict[str, list[str]] = {}
    for site in sites:
        if not site.fused_by:
            reasons.setdefault(site.reason, []).append(site.name)
    return lines + [
        f"             {len(names)} in pieces, first {names[0]}: {reason}"
        for reason, names in reasons.items()
    ]


def _overflow_line(each: Overflow) -> str:
    largest = max(abs(each.least), abs(each.most))
    room = LARGEST_HALF / max(largest, 1e-30)
    results = {"infinite": "becomes infinite", "65504": "is cut to 65504", "zero": "becomes 0"}
    result = results.get(each.becomes, f"{room:.1f} times as much would overflow")
    return f"{each.value} ({each.node}) reaches {largest:.4g}: {result}"


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return [f"  {title:<10} none"]
    shown = [f"  {title if not index else '':<10} {entry}" for index, entry in enumerate(entries[:_LISTED])]
    more = len(entries) - _LISTED
    return [*shown, f"             … and {more} more (--json lists all)"] if more > 0 else shown


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def comparison_text(found: Sequence[Comparison]) -> str:
    """Return the comparison with a card as a table."""
    lines = [f"{'pass':<40} forecast  card"]
    for each in found:
        verdict = "" if not each.simulated else "ok" if each.forecast == each.real else "differs"
        shown = str(each.forecast) if each.simulated else "-"
        lines.append(f"{each.name:<40} {shown:>8}  {each.real:>4}  {verdict}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what ATC will make of ONNX files; the exit code is 1 if it would refuse one."""
    parser = argparse.ArgumentParser(prog="python -m cann_sim.atc.forecast", description=main.__doc__)
    parser.add_argument("stages", type=Path, nargs="+", help="ONNX files with static shapes")
    parser.add_argument("--soc", default="Ascend910B3", help="as --soc_version (default: %(default)s)")
    parser.add_argument("--precision-mode", default="force_fp16", help="a mode of atc (default: %(default)s)")
    parser.add_argument("--keep-dtype", type=Path, help="file of --keep_dtype")
    parser.add_argument("--activations", type=Path, help="JSON of python -m cann_sim.atc.activations")
    parser.add_argument("--compare", type=Path, help="fusion_result.json of a real ATC for the same stages")
    parser.add_argument("--json", action="store_true", help="print JSON with everything")
    options = parser.parse_args(arguments)
    try:
        ranges = activations.read(options.activations) if options.activations else {}
        keep = configs.keep_dtype(options.keep_dtype) if options.keep_dtype else frozenset()
        precision = Precision(mode=options.precision_mode, keep_dtype=keep)
        soc = soc_named(options.soc)
        made = [
            forecast(
                read_checked(path), path.stem, soc=soc, precision=precision, ranges=ranges.get(path.stem)
            )
            for path in options.stages
        ]
        found = (
            compare(made, json.loads(options.compare.read_text(encoding="utf-8"))) if options.compare else ()
        )
    except (AtcError, AtcErrors, OSError, ValueError) as error:
        print(f"no forecast: {error}", file=sys.stderr)
        return 1
    if options.json:
        content = {"stages": [asdict(each) for each in made], "comparison": [asdict(each) for each in found]}
        print(json.dumps(content, indent=1))
        return 0
    print("\n\n".join(text(each) for each in made))
    if found:
        print(f"\n{comparison_text(found)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
