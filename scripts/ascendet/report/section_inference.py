"""The sections about inference: latency and memory; waits of the host and operators on the CPU."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from ascendet import paths
from ascendet.report import verdict
from ascendet.report.counters import command as counters_command
from ascendet.report.document import Block, Cell, Heading, Listing, Missing, Paragraph, Section, Table
from ascendet.report.facts import Facts
from ascendet.report.formats import fixed, mega
from ascendet.report.reading import dig, unread
from ascendet.report.words import Words
from ascendet.run.speed import SPEED

_STAGES = ("read", "preprocess", "device", "postprocess", "total")
_SIZES = 12  # rows of the table of sizes
_WAITS = 15  # rows of the table of waits


def inference(facts: Facts, words: Words) -> Section:
    """Return the section about latency and memory."""
    return Section(id="inference", title=words("inference.title"), blocks=list(_inference(facts, words)))


def _inference(facts: Facts, words: Words) -> Iterator[Block]:
    make = facts.subject.make("speed", IMAGES="")
    if facts.speed is None and unread(facts.broken, "inference"):
        pass  # which is said at the head of the section
    elif facts.speed is None:
        yield Missing(text=words("inference.none"), command=make)
    else:
        speed, simulated = facts.speed.manifest.get("speed"), bool(facts.speed.simulated)
        digest = dig(facts.speed.manifest, "inputs", "checkpoint")
        if facts.digest and digest and digest != facts.digest:
            yield Missing(text=words("inference.old"), command=make)
        try:
            yield from list(_speed(facts, speed, simulated, words))
        except (KeyError, TypeError, ValueError):
            yield Missing(text=words("inference.none"), command=make)
    if facts.infer and isinstance(latency := facts.infer.manifest.get("latency"), dict):
        try:
            rows = _calls(
                words("inference.all"),
                latency["first_call"],
                latency["steady"],
                bool(facts.infer.simulated),
                words,
            )
            yield Heading(text=words("inference.infer"))
            yield _latency(rows, words)
        except (KeyError, TypeError, ValueError):
            pass  # a manifest of an older version


def _speed(facts: Facts, speed: Any, simulated: bool, words: Words) -> Iterator[Block]:
    fixed_, many = speed["fixed"], speed["pictures"]
    size, own = f"{fixed_['width']} × {fixed_['height']}", words("inference.all")
    rows = _calls(size, fixed_["first_call"], fixed_["steady"], simulated, words)
    rows += _calls(own, None, many["times"], simulated, words)
    yield _latency(rows, words)
    memory = [
        Cell(
            text=words(
                "inference.memory-of",
                label=label,
                allocated=fixed(part["memory"]["allocated"] / 2**20, 0),
                reserved=fixed(part["memory"]["reserved"] / 2**20, 0),
            ),
            simulated=simulated,
        )
        for label, part in ((size, fixed_), (own, many))
        if part.get("memory")
    ]
    listed: list[tuple[str, list[Cell]]] = [(words("inference.memory"), [cell]) for cell in memory]
    listed.append(
        (
            words("inference.checkpoint"),
            [Cell(text=str(facts.speed and facts.speed.manifest.get("checkpoint")), code=True)],
        )
    )
    yield Listing(rows=listed)
    yield from _by_size(facts, many["calls"], simulated, words)


def _calls(
    label: str, first: Mapping[str, Any] | None, steady: Mapping[str, Any], simulated: bool, words: Words
) -> list[list[Cell]]:
    def row(name: str, times: Mapping[str, Any], rate: Any = None) -> list[Cell]:
        shown = [
            Cell(text=fixed(times[stage]), simulated=simulated, strong=stage == "total") for stage in _STAGES
        ]
        last = Cell(text=fixed(rate, 2), simulated=simulated) if rate is not None else Cell(text="")
        return [Cell(text=name), *shown, last]

    rows = [row(words("inference.first", size=label), first)] if first else []
    median = words("inference.median", size=label, count=steady["calls"])
    rows.append(row(median, steady["p50"], steady["images_per_second"]))
    rows.append(row(words("inference.slow", size=label), steady["p90"]))
    return rows


def _latency(rows: list[list[Cell]], words: Words) -> Table:
    columns = [
        words("inference.call"),
        *(words(f"inference.{stage}") for stage in _STAGES),
        words("inference.rate"),
    ]
    return Table(columns=columns, rows=rows, caption=words("inference.caption"))


def _by_size(facts: Facts, calls: list[dict[str, Any]], simulated: bool, words: Words) -> Iterator[Block]:
    sizes: dict[tuple[int, int], list[float]] = {}
    for call in calls:
        sizes.setdefault((int(call["width"]), int(call["height"])), []).append(
            float(call["milliseconds"]["total"])
        )
    if not sizes:
        return
    most = sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [
        [
            Cell(text=f"{width} × {height}"),
            Cell(text=str(len(times))),
            Cell(text=fixed(statistics.median(times)), simulated=simulated),
            Cell(text=fixed(max(times)), simulated=simulated),
        ]
        for (width, height), times in most[:_SIZES]
    ]
    columns = [words(f"inference.{key}") for key in ("size", "pictures", "ms", "longest-ms")]
    yield Table(columns=columns, rows=rows, caption=words("inference.sizes"))
    if len(most) > _SIZES and facts.speed:
        file = paths.shorten(facts.speed.folder / SPEED)
        yield Paragraph(text=words("inference.sizes-left", count=len(most) - _SIZES, file=file))


# -- waits --


def waits(facts: Facts, words: Words) -> Section:
    """Return the section about waits of the host and operators on the CPU."""
    return Section(id="waits", title=words("waits.title"), blocks=list(_waits(facts, words)))


def _waits(facts: Facts, words: Words) -> Iterator[Block]:
    yield Heading(text=words("waits.fallbacks"))
    met = [
        (str(one.get("operator")), str(one.get("line")))
        for result in facts.results
        for one in result.fallbacks or ()
    ]
    if met:
        rows = [
            [Cell(text=operator, code=True), Cell(text=_short(line), code=True)]
            for operator, line in dict.fromkeys(met)
        ]
        yield Table(columns=[words("waits.operator"), words("waits.line")], rows=rows, numeric=9)
    elif verdict.watched(facts):
        yield Paragraph(text=words("waits.fallbacks-none"))
    else:
        yield Missing(text=words("waits.fallbacks-unknown"), command=facts.subject.make("eval"))
    found = facts.counters
    if found is None and unread(facts.broken, "waits"):
        return  # which is said at the head of the section
    yield Heading(text=words("waits.counters"))
    if found is None and facts.simulated is False:
        yield Paragraph(text=words("waits.counters-real"))
    elif found is None:
        yield Missing(text=words("waits.counters-none"), command=counters_command(facts.subject, facts.home))
    else:
        yield from _counted(found, words)


def _short(line: str) -> str:
    """Return a place in the source without the environment's folder.

    >>> _short("/x/venv/lib/python3.11/site-packages/mmcv/ops/nms.py:27")
    'mmcv/ops/nms.py:27'
    """
    return line.rpartition("/site-packages/")[2]


def _counted(found: Mapping[str, Any], words: Words) -> Iterator[Block]:
    def copied(direction: str) -> str:
        row = found["copies"].get(direction, {"count": 0, "bytes": 0})
        return words("waits.copies-of", count=f"{row['count']:,}", bytes=mega(row["bytes"]))

    rows = [
        ("ranks", str(found["ranks"])),
        ("launches", f"{found['launches']:,}"),
        ("signatures", f"{found['signatures']:,}"),
        ("host-waits", f"{sum(count for *_, count in found['waits']):,}"),
        ("h2d", copied("h2d")),
        ("d2h", copied("d2h")),
    ]
    yield Listing(rows=[(words(f"waits.{key}"), [Cell(text=text, simulated=True)]) for key, text in rows])
    if found["fallbacks"]:
        counts = [
            [Cell(text=name, code=True), Cell(text=f"{count:,}", simulated=True)]
            for name, count in found["fallbacks"].items()
        ]
        yield Table(columns=[words("waits.operator"), words("waits.calls")], rows=counts)
    if found["waits"]:
        lines = [
            [
                Cell(text=_short(line), code=True),
                Cell(text=call, code=True),
                Cell(text=f"{count:,}", simulated=True),
            ]
            for line, call, count in found["waits"][:_WAITS]
        ]
        columns = [words("waits.line"), words("waits.call"), words("waits.count")]
        yield Table(columns=columns, rows=lines, caption=words("waits.where"), numeric=2)
