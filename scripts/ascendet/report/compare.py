"""Compose the page that compares two runs: what differs in their inputs, and their results side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ascendet.report import page, section_run, verdict
from ascendet.report.charts import Charts
from ascendet.report.document import (
    Block,
    Cell,
    Missing,
    Page,
    Paragraph,
    Section,
    Table,
    Tile,
)
from ascendet.report.facts import KINDS, Facts
from ascendet.report.formats import DASH, ap, fixed, signed
from ascendet.report.reading import dig, number
from ascendet.report.words import Words, because
from ascendet.run.score import NAMES

Pair = tuple[Facts, Facts]


def compose(pair: Pair, drawn: Charts, words: Words) -> Page:
    """Return the page about two runs of one model on one data set; `drawn` has their curves in common axes."""
    first, second = pair
    different = list(_different(pair))
    sections = [
        Section(id="metrics", title=words("compare.metrics"), blocks=list(_metrics(pair, words))),
        Section(id="inputs", title=words("compare.inputs"), blocks=list(_inputs(pair, different, words))),
        Section(id="curves", title=words("compare.curves"), blocks=list(_curves(pair, drawn, words))),
        Section(id="verdicts", title=words("compare.verdicts"), blocks=[_verdicts(pair, words)]),
    ]
    for facts in pair:
        sections[0].blocks[:0] = [page.damage(one, words) for one in facts.broken]
    return Page(
        language="zh-CN" if words.language == "zh" else "en",
        title=words("compare.title", first=first.name, second=second.name),
        subtitle=[
            Cell(text=line)
            for line in dict.fromkeys([*first.environment.where[:1], *second.environment.where[:1]])
        ],
        simulated=bool(first.simulated or second.simulated),
        outcome="compared",
        headline=words("compare.headline", model=first.model, dataset=first.dataset),
        summary=words("compare.summary", count=len(different)),
        tiles=_tiles(pair, words),
        verdict=[],
        sections=sections,
        made=page.made(pair, words),
    )


# -- inputs --


def flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested objects by dotted names.

    >>> list(flatten({"lr": None, "wheels": {"mmcv": "2a"}}))
    [('lr', 'None'), ('wheels.mmcv', '2a')]
    """
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(content)


def _different(pair: Pair) -> Iterator[tuple[str, str, str]]:
    """Yield the inputs that differ: what the results depend on, versions, settings, machine, where it ran."""
    sides = []
    for facts in pair:
        content = facts.run.manifest if facts.run else {}
        evaluated = facts.evaluation.manifest if facts.evaluation else {}
        said = {name: content.get(name) or {} for name in ("versions", "machine", "config")}
        if facts.training:
            said |= {"batch": facts.training.batch, "settings": facts.training.settings}
        sides.append(
            {
                **dict(flatten(content.get("inputs") or {})),
                **dict(flatten(said)),
                "where": str(content.get("where") or DASH),
                "annotations": str(dig(evaluated, "inputs", "annotations") or DASH),
            }
        )
    one, other = sides
    for name in dict.fromkeys([*one, *other]):
        values = one.get(name, DASH), other.get(name, DASH)
        # What a manifest of an older version does not say, or nobody has evaluated, is not known to differ.
        unknown = name.startswith(("machine.", "annotations")) and DASH in values
        chosen_anew = name == "settings.HCCL_IF_BASE_PORT"
        if values[0] != values[1] and not unknown and not chosen_anew:
            yield name, *values


def _inputs(pair: Pair, different: list[tuple[str, str, str]], words: Words) -> Iterator[Block]:
    if not different:
        yield Paragraph(text=words("compare.same"))
        return
    rows = [
        [Cell(text=name), Cell(text=one, code=True), Cell(text=two, code=True)]
        for name, one, two in different
    ]
    columns = [words("compare.name"), *(facts.name for facts in pair)]
    yield Table(columns=columns, rows=rows, numeric=9)


# -- results --


def _metrics(pair: Pair, words: Words) -> Iterator[Block]:
    names = [facts.name for facts in pair]
    columns = [words("compare.result"), *names, words("compare.difference")]
    marks = _marks(pair)
    for facts in pair:
        if facts.evaluation is None:
            command = facts.subject.make("eval", CHECKPOINT=facts.checkpoint or "")
            yield Missing(text=f"{facts.name}: {words('accuracy.none')}", command=command)
    for kind in KINDS:
        rows = []
        for name in NAMES:
            values = [
                dig(facts.evaluation.numbers, kind, name) if facts.evaluation else None for facts in pair
            ]
            if any(value is not None for value in values):
                rows.append(_row(name, values, marks, 3, scale=True))
        if rows:
            yield _turned(rows, columns, words(f"accuracy.{kind}"))
    rows = []
    for label, digits, pick in _FIGURES:
        found = [pick(facts) for facts in pair]
        if any(value is not None for value, _ in found):
            rows.append(
                _row(words(label), [value for value, _ in found], [mark for _, mark in found], digits)
            )
    if rows:
        yield Table(columns=columns, rows=rows, caption=words("compare.figures"))
    for kind, key in (("bbox", "classes"), ("segm", "mask-classes")):
        classes = _classes(pair, kind)
        if classes:
            yield Table(
                columns=[words("accuracy.class"), *columns[1:]], rows=classes, caption=words(f"compare.{key}")
            )


def _marks(pair: Pair) -> list[bool]:
    """Return whether each run was evaluated on simulated devices."""
    return [bool(facts.evaluation and facts.evaluation.simulated) for facts in pair]


def _turned(rows: list[list[Cell]], columns: list[str], caption: str) -> Table:
    """Return a table whose rows are the columns of these rows: 12 numbers fit beside each other."""
    turned = [[Cell(text=name), *(row[at] for row in rows)] for at, name in enumerate(columns) if at]
    return Table(columns=[columns[0], *(row[0].text for row in rows)], rows=turned, caption=caption)


def _classes(pair: Pair, kind: str) -> list[list[Cell]]:
    tables = [facts.evaluation.classes if facts.evaluation else {} for facts in pair]
    marks = _marks(pair)
    known = dict.fromkeys([*tables[0], *tables[1]])
    return [_row(name, [dig(table, name, kind) for table in tables], marks, 3, scale=True) for name in known]


def _row(label: str, values: list[Any], marks: list[bool], digits: int, *, scale: bool = False) -> list[Cell]:
    """Return a row with both values and their difference; with `scale`, -1 stands for a value that does not exist."""
    known = [number(value) for value in values]
    if scale:
        known = [None if value is None or value < 0 else value for value in known]
    one, two = known
    difference = two - one if one is not None and two is not None else None
    cells = [
        Cell(text=fixed(value, digits), simulated=mark and value is not None)
        for value, mark in zip(known, marks, strict=True)
    ]
    return [
        Cell(text=label),
        *cells,
        Cell(text=signed(difference, digits), simulated=any(marks) and difference is not None),
    ]


def _training(name: str) -> Any:
    def pick(facts: Facts) -> tuple[Any, bool]:
        value = getattr(facts.training, name) if facts.training else None
        return value, bool(facts.run and facts.trained_simulated)

    return pick


def _speed(*keys: str) -> Any:
    def pick(facts: Facts) -> tuple[Any, bool]:
        value = dig(facts.speed.manifest, "speed", "fixed", *keys) if facts.speed else None
        return value, bool(facts.speed and facts.speed.simulated)

    return pick


def _seconds(facts: Facts) -> tuple[Any, bool]:
    return (facts.run.manifest.get("seconds"), bool(facts.trained_simulated)) if facts.run else (None, False)


# A key of words.toml, digits, and what returns the figure and whether it is simulated.
_FIGURES: tuple[tuple[str, int, Any], ...] = (
    ("compare.loss", 3, _training("last_loss")),
    ("compare.step-time", 3, _training("seconds")),
    ("compare.duration", 0, _seconds),
    ("compare.memory", 0, _training("memory")),
    ("compare.first-call", 1, _speed("first_call", "total")),
    ("compare.steady", 1, _speed("steady", "p50", "total")),
)


def _tiles(pair: Pair, words: Words) -> list[Tile]:
    tiles = []
    for kind, key in (("bbox", "box-ap"), ("segm", "mask-ap")):
        values = [dig(facts.evaluation.numbers, kind, "AP") if facts.evaluation else None for facts in pair]
        row = _row("", values, _marks(pair), 3, scale=True)
        note = f"{ap(values[0])} → {ap(values[1])}"
        tiles.append(
            Tile(
                label=words(f"tile.{key}"),
                value=row[3].text,
                note=note,
                simulated=any(cell.simulated for cell in row),
            )
        )
    return tiles


# -- curves and verdicts --


def _curves(pair: Pair, drawn: Charts, words: Words) -> Iterator[Block]:
    if not drawn.curves:
        why = because(words, drawn.no_curves) if drawn.no_curves else words("training.no-steps")
        command = drawn.mend(drawn.no_curves) or pair[0].subject.make("curves")
        yield Missing(text=words("training.no-curves", why=why), command=command)
        return
    captions = {name: words(f"compare.curve-{name}") for name in ("loss", "ap")}
    simulated = any(bool(facts.run and facts.trained_simulated) for facts in pair)
    yield section_run.gallery(drawn.curves, captions, words, simulated=simulated)


def _verdicts(pair: Pair, words: Words) -> Table:
    judged = [[page.put(line, words) for line in verdict.judge(facts)] for facts in pair]
    rows = []
    for subject in dict.fromkeys(line.subject for lines in judged for line in lines):
        cells = []
        for lines in judged:
            mine = [line for line in lines if line.subject == subject]
            text = "; ".join(f"{line.mark} {line.text}" for line in mine)
            cells.append(Cell(text=text or DASH, simulated=any(line.simulated for line in mine)))
        rows.append([Cell(text=subject), *cells])
    return Table(
        columns=[words("verdict.column-what"), *(facts.name for facts in pair)], rows=rows, numeric=9
    )
