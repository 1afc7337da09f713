"""Compose a page: the verdict and the key numbers first, then the sections."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ascendet import __version__, paths
from ascendet.report import section_inference, section_om, section_results, section_run, verdict
from ascendet.report.charts import Charts
from ascendet.report.document import Cell, Damage, Judged, Page, Section, Tile
from ascendet.report.facts import Facts
from ascendet.report.formats import ap, duration, fixed, moment, signed
from ascendet.report.reading import Broken, dig
from ascendet.report.verdict import Line
from ascendet.report.words import Words, because

_MARKS = {"met": "✓", "failed": "✗", "measured": "•", "missing": "–"}
_DIGITS: dict[str, Any] = {
    "ap": ap,
    "low": ap,
    "high": ap,
    "official": ap,
    "difference": lambda value: signed(value, 4),
    "loss": lambda value: fixed(value, 4),
    "seconds": duration,
    "first": fixed,
    "steady": fixed,
    "rate": lambda value: fixed(value, 2),
    "pairs": lambda value: f"{value:,}",
}


def compose(facts: Facts, charts: Charts, words: Words) -> Page:
    """Return the page of a run, or of a checkpoint."""
    lines = verdict.judge(facts)
    counts = {state: sum(line.state == state for line in lines) for state in _MARKS}
    return Page(
        language="zh-CN" if words.language == "zh" else "en",
        title=words("page.title", model=facts.model, dataset=facts.dataset),
        subtitle=_subtitle(facts, words),
        simulated=bool(facts.simulated),
        outcome=verdict.outcome(lines),
        headline=words(f"verdict.{verdict.outcome(lines)}"),
        summary=words("verdict.count", **counts),
        tiles=_tiles(facts, words),
        verdict=[put(line, words) for line in lines],
        sections=_sections(facts, charts, words),
        made=made([facts], words),
    )


def made(all_facts: Sequence[Facts], words: Words) -> str:
    """Return the sentence about when and from what a page was made."""
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    folders = words("page.list").join(paths.shorten(facts.home) for facts in all_facts)
    return words("page.made", date=date, version=__version__, folder=folders)


def put(line: Line, words: Words) -> Judged:
    """Return a line of the verdict in words."""
    values = {name: _DIGITS[name](value) if name in _DIGITS else value for name, value in line.values.items()}
    return Judged(
        state=line.state,
        mark=_MARKS[line.state],
        subject=words(f"verdict.{line.subject.replace('.', '-')}"),
        text=words(f"why.{line.reason.replace('.', '-')}", **values),
        section=line.section,
        command=line.command,
        simulated=line.simulated,
    )


def _subtitle(facts: Facts, words: Words) -> list[Cell]:
    cells = [
        Cell(text=words("page.run" if facts.run else "page.of-checkpoint", run=facts.name, name=facts.name))
    ]
    started = next((text for one in facts.results if (text := one.manifest.get("started"))), None)
    if started:
        cells.append(Cell(text=moment(started)))
    cells += [Cell(text=line) for line in facts.environment.where[:1]]
    return cells


def _tiles(facts: Facts, words: Words) -> list[Tile]:
    tiles = []
    found = facts.evaluation
    for kind, key in (("bbox", "box-ap"), ("segm", "mask-ap")):
        value = dig(found.numbers, kind, "AP") if found else None
        note = (
            words("tile.on-images", images=found.images)
            if found and value is not None
            else words("tile.none")
        )
        simulated = bool(found and found.simulated) and value is not None
        tiles.append(Tile(label=words(f"tile.{key}"), value=ap(value), note=note, simulated=simulated))
    if facts.training and facts.run:
        known, batch = facts.training, facts.training.batch
        note = words("tile.none") if known.seconds is None else ""
        if batch:
            note = words("tile.devices", devices=f"{batch['devices']:g}", images=f"{batch['images']:g}")
        simulated = bool(facts.trained_simulated) and known.seconds is not None
        unit = "s" if known.seconds is not None else ""
        tiles.append(
            Tile(
                label=words("tile.step"),
                value=fixed(known.seconds, 3),
                unit=unit,
                note=note,
                simulated=simulated,
            )
        )
    steady = dig(facts.speed.manifest, "speed", "fixed", "steady") if facts.speed else None
    value = dig(steady, "p50", "total")
    note = (
        words("tile.none")
        if value is None
        else words("tile.rate", rate=fixed(dig(steady, "images_per_second"), 2))
    )
    tiles.append(
        Tile(
            label=words("tile.latency"),
            value=fixed(value),
            unit="ms" if value is not None else "",
            note=note,
            simulated=bool(facts.speed and facts.speed.simulated) and value is not None,
        )
    )
    loss = section_om.loss_of_ap(facts)
    tiles.append(
        Tile(
            label=words("tile.om"),
            value=loss[0] if loss else words("page.dash"),
            note=words("tile.ap-difference" if loss else "tile.none"),
            simulated=bool(loss and loss[1]),
        )
    )
    return tiles


def _sections(facts: Facts, charts: Charts, words: Words) -> list[Section]:
    sections = [
        section_results.accuracy(facts, words),
        section_results.pictures(facts, words, charts),
        section_results.errors(facts, words, charts),
        section_run.training(facts, words, charts),
        section_inference.inference(facts, words),
        section_inference.waits(facts, words),
        section_om.om(facts, words),
        section_run.reproduce(facts, words),
        section_run.environment(facts, words),
    ]
    for broken in facts.broken:
        section = next(one for one in sections if one.id == broken.section)
        section.blocks.insert(0, damage(broken, words))
    return sections


def damage(broken: Broken, words: Words) -> Damage:
    """Return the block about a file that cannot be used."""
    return Damage(
        text=words("page.broken", file=broken.file),
        why=because(words, broken.why),
        lead=words("page.rights" if broken.why.rights else "page.anew"),
        command=broken.remedy,
    )
