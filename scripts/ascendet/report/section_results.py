"""The sections about results: accuracy, pictures, errors."""

from __future__ import annotations

from collections.abc import Iterator

from ascendet import paths
from ascendet.report import bands, verdict
from ascendet.report.charts import Charts
from ascendet.report.document import (
    Block,
    Cell,
    Figure,
    Gallery,
    Heading,
    Listing,
    Missing,
    Paragraph,
    Section,
    Table,
)
from ascendet.report.facts import KINDS, Evaluation, Facts
from ascendet.report.formats import ap, duration, fixed, signed
from ascendet.report.reading import dig, unread
from ascendet.report.words import Words, because
from ascendet.run.score import NAMES

# -- accuracy --


def accuracy(facts: Facts, words: Words) -> Section:
    """Return the section about AP."""
    return Section(id="accuracy", title=words("accuracy.title"), blocks=list(_accuracy(facts, words)))


def _accuracy(facts: Facts, words: Words) -> Iterator[Block]:
    found, make = facts.evaluation, facts.subject.make("eval")
    if found is None or not found.numbers:
        if unread(facts.broken, "accuracy"):
            return  # which is said at the head of the section
        if found is None:
            yield Missing(text=words("accuracy.none"), command=make)
        else:
            yield Missing(text=words("accuracy.unreadable"), command=make)
        return
    if not found.of_checkpoint:
        yield Missing(text=words("accuracy.old" if facts.run else "accuracy.other"), command=make)
    simulated = bool(found.simulated)
    images = found.images if found.images is not None else "?"
    rows = [
        [
            Cell(text=words(f"accuracy.{kind}")),
            *(Cell(text=ap(numbers[name]), simulated=simulated) for name in NAMES),
        ]
        for kind, numbers in found.numbers.items()
    ]
    yield Table(
        columns=[words("accuracy.kind"), *NAMES],
        rows=rows,
        caption=words("accuracy.of", images=images, dataset=facts.dataset),
    )
    listed = [
        (
            words("accuracy.checkpoint"),
            [Cell(text=str(found.manifest.get("checkpoint") or words("page.dash")), code=True)],
        ),
        (
            words("accuracy.digest"),
            [Cell(text=str(dig(found.manifest, "inputs", "checkpoint") or ""), code=True)],
        ),
        (
            words("accuracy.duration"),
            [Cell(text=duration(found.manifest.get("seconds")), simulated=simulated)],
        ),
    ]
    yield Listing(rows=[row for row in listed if row[1][0].text])
    yield Heading(text=words("accuracy.judged"))
    yield from _judged(facts, found, words)
    if found.classes:
        yield Heading(text=words("accuracy.per-class"))
        columns = [
            words("accuracy.class"),
            words("accuracy.objects"),
            *(words(f"accuracy.{kind}") for kind in KINDS),
        ]
        classes = [
            [
                Cell(text=name),
                Cell(text=f"{row['objects']:,}"),
                *(Cell(text=ap(row[kind]), simulated=simulated) for kind in KINDS),
            ]
            for name, row in found.classes.items()
        ]
        yield Table(columns=columns, rows=classes)
    if facts.others:
        yield Heading(text=words("accuracy.others"))
        columns = [
            words("accuracy.checkpoint"),
            words("accuracy.images"),
            *(words(f"tile.{k}-ap") for k in ("box", "mask")),
        ]
        yield Table(columns=columns, rows=[_other(one) for one in facts.others])


def _other(one: Evaluation) -> list[Cell]:
    values = [Cell(text=ap(dig(one.numbers, kind, "AP")), simulated=bool(one.simulated)) for kind in KINDS]
    return [Cell(text=one.folder.name, code=True), Cell(text=str(one.images)), *values]


def _judged(facts: Facts, found: Evaluation, words: Words) -> Iterator[Block]:
    simulated = bool(found.simulated)
    limits = bands.find(facts.model, facts.dataset, found.annotations)
    names = {"model": facts.model, "dataset": facts.dataset}
    if limits is None:
        yield Paragraph(text=words("accuracy.no-band", **names))
    elif not limits.valid:
        yield Paragraph(text=words("accuracy.other-annotations", **names))
    elif changed := bands.changed(facts):
        yield Paragraph(text=words("accuracy.other-recipe", **names, changed=changed))
    elif not verdict.is_whole(facts, found):
        yield Missing(text=words("accuracy.part"), command=facts.subject.make("eval", IMAGES=""))
    else:
        rows = [
            [
                Cell(text=words(f"accuracy.{kind}")),
                Cell(text=ap(found.numbers[kind]["AP"]), simulated=simulated),
                Cell(
                    text=words("accuracy.band-to", low=ap(low), high=ap(high)),
                    simulated=limits.simulated,
                ),
                Cell(text=limits.source),
            ]
            for kind, (low, high) in limits.limits.items()
            if kind in found.numbers
        ]
        columns = [words(f"accuracy.{key}") for key in ("kind", "measured", "band", "source")]
        yield Table(columns=columns, rows=rows, numeric=9)
    official = found.official
    if not official or not isinstance(official.get("figures"), dict):
        yield Paragraph(text=words("accuracy.no-official"))
        return
    source = words(
        "accuracy.official-source",
        **{name: official.get(name, "?") for name in ("of", "images", "dataset", "source")},
    )
    rows = [
        [
            Cell(text=words(f"accuracy.{kind}") if kind in KINDS else str(kind)),
            Cell(text=ap(dig(row, "measured")), simulated=simulated),
            Cell(text=ap(dig(row, "official"))),
            Cell(
                text=signed(dig(row, "difference")),
                simulated=simulated and dig(row, "difference") is not None,
            ),
            Cell(text=source),
        ]
        for kind, row in official["figures"].items()
    ]
    columns = [words(f"accuracy.{key}") for key in ("kind", "measured", "official", "difference", "source")]
    yield Table(columns=columns, rows=rows, numeric=9)


# -- pictures and errors --


def pictures(facts: Facts, words: Words, charts: Charts) -> Section:
    """Return the section with pictures."""
    return Section(id="pictures", title=words("pictures.title"), blocks=list(_pictures(facts, words, charts)))


def _nothing_found(facts: Facts, words: Words, charts: Charts) -> Missing:
    make = facts.subject.make("eval")
    if charts.no_findings:
        return Missing(
            text=words("pictures.no-findings", why=because(words, charts.no_findings)),
            command=charts.mend(charts.no_findings) or make,
        )
    return Missing(text=words("pictures.none"), command=make)


def _pictures(facts: Facts, words: Words, charts: Charts) -> Iterator[Block]:
    found = charts.findings
    if found is None:
        yield _nothing_found(facts, words, charts)
        return
    if not charts.pictures:
        yield Missing(
            text=words("pictures.no-pictures"),
            command=facts.subject.make_data(),
        )
        return
    score = f"{found['score']:g}"
    yield Paragraph(text=words("pictures.text", score=score))
    simulated = bool(facts.evaluation and facts.evaluation.simulated)
    for role in ("best", "worst", "example"):
        figures = []
        for row, content in charts.pictures:
            if row["role"] != role:
                continue
            values = {name: row[name] for name in ("correct", "missed", "wrong")}
            values["file"] = paths.printable(str(row["file_name"]))
            figures.append(
                Figure(
                    name=str(row["file"]),
                    content=content,
                    alt=words("pictures.alt", **values),
                    caption=words("pictures.caption", **values, quality=fixed(row["quality"], 2)),
                    simulated=simulated,
                )
            )
        if figures:
            yield Gallery(figures=figures, title=words(f"pictures.{role}"))


def errors(facts: Facts, words: Words, charts: Charts) -> Section:
    """Return the section about kinds of errors, confusion, precision and recall."""
    return Section(id="errors", title=words("errors.title"), blocks=list(_errors(facts, words, charts)))


def _errors(facts: Facts, words: Words, charts: Charts) -> Iterator[Block]:
    found = charts.findings
    if found is None:
        yield _nothing_found(facts, words, charts)
        return
    simulated = bool(facts.evaluation and facts.evaluation.simulated)
    yield Heading(text=words("errors.kinds"))
    values = {
        "shown": f"{found['shown']:,}",
        "score": f"{found['score']:g}",
        "objects": f"{found['objects']:,}",
    }
    yield Paragraph(text=words("errors.text", **values))
    for note in found.get("notes", []):  # what was left out, in the page's language
        yield Paragraph(text=paths.printable(str(note)))
    names = ("correct", "class", "place", "both", "duplicate", "background", "missed")
    rows = [
        [
            Cell(text=words(f"accuracy.{kind}")),
            *(Cell(text=f"{row['counts'][name]:,}", simulated=simulated) for name in names),
        ]
        for kind, row in found["errors"].items()
    ]
    yield Table(columns=[words("errors.of"), *(words(f"errors.{name}") for name in names)], rows=rows)
    for chart, key in (
        ("errors", "kinds"),
        ("confusion", "confusion"),
        ("precision_recall", "precision-recall"),
    ):
        if chart in charts.charts:
            if chart != "errors":
                yield Heading(text=words(f"errors.{key}"))
            yield Figure(
                name=f"{chart}.svg",
                content=charts.charts[chart],
                alt=words(f"errors.{key}-alt"),
                simulated=simulated,
            )
