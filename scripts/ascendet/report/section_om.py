"""The section about staged OM: stages, conversions, comparison with PyTorch, precision modes, latency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ascendet.report.commands import Subject
from ascendet.report.document import (
    Block,
    Cell,
    Heading,
    Listing,
    Missing,
    Paragraph,
    Section,
    Table,
)
from ascendet.report.facts import KINDS, Facts
from ascendet.report.formats import DASH, brief, fixed, mega, signed
from ascendet.report.reading import unread
from ascendet.report.staged import Comparison, Conversion, Staged, Sweep
from ascendet.report.words import Words


def om(facts: Facts, words: Words) -> Section:
    """Return the section about OM."""
    blocks: list[Block] = []
    if not any(one.of_checkpoint for one in facts.staged) and not unread(facts.broken, "om"):
        blocks.append(Missing(text=words("om.none"), command=facts.subject.make("export")))
    for one in facts.staged:
        blocks += _staged(one, facts.subject, words)
    return Section(id="om", title=words("om.title"), blocks=blocks)


def _staged(one: Staged, subject: Subject, words: Words) -> Iterator[Block]:
    yield Heading(text=words("om.size", height=one.height, width=one.width, batch=one.batch))
    if not one.of_checkpoint:
        yield Missing(text=words("om.other"), command=subject.make("export"))
    yield _stages(one, words)
    if one.conversions:
        yield Table(
            columns=[words(f"om.{key}") for key in ("conversions", "stage", "megabytes", "seconds")],
            rows=[row for made in one.conversions for row in _conversion(made, words)],
            numeric=2,
        )
    else:
        yield Missing(text=words("om.no-conversion"), command=subject.make("om"))
    for made in one.comparisons:
        yield from _comparison(made, words)
    if not one.comparisons:
        yield Missing(text=words("om.no-compare"), command=subject.make("om-compare"))
    for sweep in one.sweeps:
        yield from _sweep(sweep, words)
    if not one.sweeps:
        yield Missing(text=words("om.no-sweep"), command=subject.make("om-precision"))
    for latency in one.latency:
        yield _latency(latency, words)
    if not one.latency:
        yield Missing(text=words("om.no-latency"), command=subject.make("infer-om", IMAGES="<pictures>"))


def _stages(one: Staged, words: Words) -> Table:
    checks = {check["stage"]: check for check in one.checks}
    rows = []
    for stage in one.stages:
        check = checks.get(stage["name"])
        compared = bool(check and check["compared"])
        rows.append(
            [
                Cell(text=stage["name"]),
                Cell(text=str(stage["opset"])),
                Cell(text=mega(stage["bytes"])),
                Cell(text=str(stage["kept"])),
                Cell(text=brief(check["difference"]) if check and compared else words("om.not-compared")),
                Cell(text=brief(check["tolerance"]) if check else DASH),
            ]
        )
    columns = [
        words(f"om.{key}") for key in ("stage", "opset", "megabytes", "kept", "difference", "tolerance")
    ]
    return Table(columns=columns, rows=rows, caption=words("om.stages"))


def _conversion(made: Conversion, words: Words) -> Iterator[list[Cell]]:
    text = words("om.conversion", soc=made.soc, source=made.source, precision=made.precision, atc=made.atc)
    if not made.of_export:
        text = f"{text}; {words('om.stale')}"
    for at, stage in enumerate(made.stages):
        yield [
            Cell(text="" if at else text, simulated=made.simulated and not at),
            Cell(text=stage["name"]),
            Cell(text=mega(stage["bytes"])),
            Cell(text=fixed(stage["seconds"]), simulated=made.simulated),
        ]


def _comparison(made: Comparison, words: Words) -> Iterator[Block]:
    simulated, score = bool(made.simulated), f"{made.score:g}"
    yield Heading(text=words("om.compare", name=made.name, pictures=made.pictures))
    counted = ("raw_count", "after_dedup", "after_score_thr")
    rows = []
    for side in ("om", "pytorch", "delta"):
        marked = simulated and side != "pytorch"
        counts = [Cell(text=f"{made.counts[side][key]:,}", simulated=marked) for key in counted]
        aps = []
        if made.ap:
            values = made.ap["difference" if side == "delta" else side]
            aps = [
                Cell(
                    text=(signed(values.get(kind), 4) if side == "delta" else fixed(values.get(kind), 4)),
                    simulated=marked,
                )
                for kind in KINDS
            ]
        rows.append([Cell(text=words(f"om.side-{side}")), *counts, *aps])
    columns = [words("om.side"), words("om.raw"), words("om.dedup"), words("om.from-score", score=score)]
    columns += [f"{words('om.ap')}, {words(f'accuracy.{kind}')}" for kind in KINDS] if made.ap else []
    yield Table(columns=columns, rows=rows)
    pairs = made.pairs
    text = words("om.pairs-of", **{key: int(pairs[key]) for key in ("count", "only_om", "only_pytorch")})
    listed = [
        (words("om.pairs", score=score), [Cell(text=text, simulated=simulated)]),
        (words("om.box"), [Cell(text=f"{brief(pairs['box'])} px", simulated=simulated)]),
        (words("om.score"), [Cell(text=brief(pairs["score"]), simulated=simulated)]),
        (words("om.mask"), [Cell(text=fixed(pairs["mask"], 4), simulated=simulated)]),
    ]
    yield Listing(rows=listed)
    if made.rungs:
        yield Table(
            columns=[words(f"om.{key}") for key in ("rung", "against", "holds")],
            rows=[_rung(rung, simulated, words) for rung in made.rungs],
            caption=words("om.ladder"),
            numeric=9,
        )


def _rung(rung: dict[str, Any], simulated: bool, words: Words) -> list[Cell]:
    text = words("om.yes" if rung["holds"] else "om.no")
    if rung["broken"]:
        text += ": " + words("page.list").join(
            f"{name} {brief(value)} > {brief(limit)}" for name, (value, limit) in rung["broken"].items()
        )
    marked = simulated and rung["rung"].startswith("om")  # the others run on the CPU
    tone = "good" if rung["holds"] else "bad"
    return [
        Cell(text=rung["rung"]),
        Cell(text=rung["against"]),
        Cell(text=text, simulated=marked, tone="good" if tone == "good" else "bad"),
    ]


def _sweep(sweep: Sweep, words: Words) -> Iterator[Block]:
    simulated = bool(sweep.simulated)
    heading = "om.sweep" if sweep.pictures is None else "om.sweep-of"
    yield Heading(text=words(heading, name=sweep.name, pictures=sweep.pictures))
    kinds = list(sweep.reference)
    rows = [
        [
            Cell(text=words("om.reference")),
            *(Cell(text=fixed(sweep.reference[kind], 4)) for kind in kinds),
            Cell(text=""),
        ]
    ]
    for row in sweep.modes:
        if not row["AP"]:
            rows.append(
                [Cell(text=row["mode"]), *(Cell(text=words("om.refused")) for _ in kinds), Cell(text=DASH)]
            )
            continue
        values = [Cell(text=fixed(row["AP"].get(kind), 4), simulated=simulated) for kind in kinds]
        rows.append([Cell(text=row["mode"]), *values, Cell(text=fixed(row["loss"], 4), simulated=simulated)])
    names = [f"{words('om.ap')}, {words(f'accuracy.{kind}')}" for kind in kinds if kind in KINDS]
    yield Table(columns=[words("om.mode"), *names, words("om.loss")], rows=rows)
    if sweep.search:
        yield Paragraph(
            text=words(
                "om.search",
                mode=sweep.mode,
                nodes=sweep.search["nodes"],
                of=sweep.search["of"],
                loss=fixed(sweep.search["loss"], 4),
                bound=f"{sweep.bound:g}",
                multiply_adds=f"{sweep.search['multiply_adds']:.1%}",
                bytes=f"{sweep.search['bytes']:.1%}",
            )
            + (f" ({words('page.simulated')})" if simulated else "")
        )


def _latency(latency: dict[str, Any], words: Words) -> Table:
    simulated = bool(latency["simulated"])
    first = latency["first_call"]
    steady = next(iter(latency["steady"].values()), None)
    columns = [words("om.host"), words("om.first-call")]
    rows = []
    for name, value in first.items():
        cells = [Cell(text=fixed(value), simulated=simulated)]
        if steady:
            cells.append(Cell(text=fixed(steady["p50"].get(name)), simulated=simulated))
        rows.append([Cell(text=name, strong=name == "total"), *cells])
    if steady:
        columns.append(words("om.steady", count=steady["calls"]))
        rate = Cell(text=fixed(steady["images_per_second"], 2), simulated=simulated)
        rows.append([Cell(text=words("om.rate")), Cell(text=""), rate])
    return Table(
        columns=columns,
        rows=rows,
        caption=f"{words('om.latency')} ({latency['size']}, {latency['precision']})",
    )


def loss_of_ap(facts: Facts) -> tuple[str, bool] | None:
    """Return the largest loss of AP from PyTorch to OM of the run's checkpoint, and whether it is simulated."""
    found = [
        (min(made.ap["difference"].values()), bool(made.simulated))
        for one in facts.staged
        if one.of_checkpoint
        for made in one.comparisons
        if made.ap
    ]
    if not found:
        return None
    value, simulated = min(found)
    return fixed(max(0.0, -value), 4), simulated
