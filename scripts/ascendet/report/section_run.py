"""The sections about the run: its environment, how to reproduce it, its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ascendet.report.charts import Charts
from ascendet.report.document import (
    Block,
    Cell,
    Commands,
    Figure,
    Gallery,
    Heading,
    Listing,
    Missing,
    Paragraph,
    Section,
    Table,
)
from ascendet.report.facts import Facts
from ascendet.report.formats import duration, fixed, moment
from ascendet.report.reading import dig, mapping, number, unread
from ascendet.report.words import Words, because

Rows = list[tuple[str, list[Cell]]]
_PAIR = ("torch", "torch_npu", "torchvision")
_NOT_PINS = (*_PAIR, "python", "ascendet")


def environment(facts: Facts, words: Words) -> Section:
    """Return the section about machine, software, wheels and patches."""
    return Section(
        id="environment", title=words("environment.title"), blocks=list(_environment(facts, words))
    )


def _environment(facts: Facts, words: Words) -> Iterator[Block]:
    found = facts.environment
    versions, machine = found.versions, found.machine
    rows: Rows = []

    def add(key: str, text: object, *, code: bool = False, simulated: bool = False) -> None:
        if text:
            rows.append((words(f"environment.{key}"), [Cell(text=str(text), code=code, simulated=simulated)]))

    for line in found.where:
        add("where", line, simulated="simulated" in line)
    if machine:
        add("machine", " ".join(filter(None, map(str, (machine.get("arch"), machine.get("kernel"))))))
        add("system", machine.get("system"))
        cores = words("environment.cores", count=machine["cores"]) if machine.get("cores") else ""
        add("cpu", words("page.list").join(str(one) for one in (machine.get("cpu"), cores) if one))
        add("memory", f"{machine['memory'] / 2**30:.0f} GiB" if number(machine.get("memory")) else "")
        add("driver", machine.get("driver") or words("environment.no-driver"))
        add("revision", machine.get("revision"), code=True)
    if found.cann and facts.results:
        cann = str(machine.get("cann") or found.cann)
        add("cann", words("environment.cann-simulated", version=cann) if facts.simulated else cann)
    add("python", versions.get("python"))
    add("pair", words("page.list").join(f"{name} {versions[name]}" for name in _PAIR if name in versions))
    pins = [f"{name} {version}" for name, version in versions.items() if name not in _NOT_PINS]
    add("pins", words("page.list").join(sorted(pins)))
    add("locks", found.locks, code=True)
    add("data", f"{facts.dataset} ({found.data})" if found.data else facts.dataset)
    add("annotations", facts.evaluation.annotations if facts.evaluation else None, code=True)
    if found.image:
        add("image", found.image.get("tag"))
        add("image-digest", found.image.get("id"), code=True)
        base = [found.image.get("base"), found.image.get("base_digest")]
        add("image-base", " ".join(str(one) for one in base if one))
        add("revision", found.image.get("revision"), code=True)
        add("sbom", found.image.get("sbom"))
    if facts.training:
        settings = [f"{name}={value}" for name, value in facts.training.settings.items()]
        add("runtime", " ".join(settings), code=True)
    yield Listing(rows=rows)
    if found.data_now is not None:
        key = "environment.data-changed" if found.data_now else "environment.data-gone"
        make = facts.subject.make_data("data-check" if found.data_now else "data")
        yield Missing(
            text=words(key, dataset=facts.dataset, now=found.data_now, then=found.data), command=make
        )
    if facts.results and not machine:
        target = facts.subject.make("train" if facts.run else "eval")
        yield Missing(text=words("environment.not-recorded"), command=target)
    if not found.image:
        image = facts.subject.make("image", MODEL="", DATASET="", CHECKPOINT="")
        yield Missing(text=words("environment.no-image"), command=image)
    yield from _wheels(facts, words)


def _wheels(facts: Facts, words: Words) -> Iterator[Block]:
    found = facts.environment
    yield Heading(text=words("environment.wheels"))
    if found.wheels:
        if found.wheels_now:
            yield Paragraph(text=words("environment.wheels-now"))
        rows = [
            [
                Cell(text=wheel.name),
                Cell(text=wheel.file or words("page.dash"), code=bool(wheel.file)),
                Cell(text=wheel.digest, code=True),
            ]
            for wheel in found.wheels
        ]
        columns = [words(f"environment.{key}") for key in ("wheel", "file", "digest")]
        yield Table(columns=columns, rows=rows, numeric=9)
        yield Paragraph(text=words("environment.layer"))
    elif not found.image:
        make = facts.subject.make("install", MODEL="", DATASET="", CHECKPOINT="")
        yield Missing(text=words("environment.wheels-none"), command=make)
    if found.patches:
        yield Heading(text=words("environment.patches"))
        yield Paragraph(text=words("environment.patches-now"))
        columns = [words(f"environment.{key}") for key in ("patch", "why")]
        patches = [[Cell(text=f"{one.upstream}: {one.name}"), Cell(text=one.why)] for one in found.patches]
        yield Table(columns=columns, rows=patches, numeric=9)


def reproduce(facts: Facts, words: Words) -> Section:
    """Return the section with the commands that led here."""
    blocks: list[Block] = [Paragraph(text=words("reproduce.none"))]
    if facts.commands:
        blocks = [Paragraph(text=words("reproduce.text")), Commands(lines=facts.commands)]
    return Section(id="reproduce", title=words("reproduce.title"), blocks=blocks)


def training(facts: Facts, words: Words, charts: Charts) -> Section:
    """Return the section about the training."""
    blocks = list(_training(facts, words, charts))
    return Section(id="training", title=words("training.title"), blocks=blocks)


def _training(facts: Facts, words: Words, charts: Charts) -> Iterator[Block]:
    found = facts.training
    make = facts.subject.make("train", CHECKPOINT="")
    if facts.run is None or found is None:
        yield Missing(text=words("training.none"), command=make)
        return
    starting = facts.state == "running" and not found.logged
    if starting:
        yield Paragraph(text=words("training.starting"))
    elif facts.state == "running":
        yield Paragraph(text=words("training.going", eta=duration(found.eta)))
    if found.logged and facts.trained_simulated is None:
        yield Paragraph(text=words("training.devices-unknown"))
    yield Listing(rows=_training_rows(facts, words))
    if not found.logged and not starting:
        if unread(facts.broken, "training"):
            return  # which is said at the head of the section
        yield Missing(text=words("training.no-steps"), command=make)
    elif charts.curves:
        captions = {name: words(f"training.curve-{name}") for name in charts.curves}
        yield gallery(charts.curves, captions, words, simulated=bool(facts.trained_simulated))
    elif charts.no_curves:
        command = charts.mend(charts.no_curves) or facts.subject.make("curves", RUN=facts.name, CHECKPOINT="")
        why = because(words, charts.no_curves)
        yield Missing(text=words("training.no-curves", why=why), command=command)
    if found.warnings:
        yield Heading(text=words("training.warnings"))
        yield Table(
            columns=[words("training.warnings")],
            rows=[[Cell(text=one)] for one in found.warnings],
            head=False,
        )


def gallery(
    curves: Mapping[str, bytes], captions: Mapping[str, str], words: Words, *, simulated: bool
) -> Gallery:
    """Return a training's curves that have a caption beside each other; `curves` are SVGs by name."""
    figures = [
        Figure(
            name=f"curve-{name}.svg",
            content=content,
            alt=words(f"training.curve-{name}"),
            caption=captions[name],
            simulated=simulated,
        )
        for name, content in curves.items()
        if name in captions
    ]
    return Gallery(figures=figures)


def _training_rows(facts: Facts, words: Words) -> Rows:
    found, run = facts.training, facts.run
    assert found
    assert run
    simulated = bool(facts.trained_simulated)
    inputs = mapping(dig(run.manifest, "inputs"))
    rows: Rows = []

    def add(key: str, text: str | None, *, marked: bool = False, code: bool = False) -> None:
        if text:
            rows.append(
                (words(f"training.{key}"), [Cell(text=text, simulated=marked and simulated, code=code)])
            )

    add("state", words(f"training.state-{facts.state or 'unknown'}"))
    add("started", moment(run.manifest.get("started")))
    if number(run.manifest.get("seconds")):
        add("duration", duration(run.manifest["seconds"]), marked=True)
    if found.logged:
        add("steps", words("training.steps-of", step=found.step, of=found.of, epoch=found.epoch))
    if found.seconds:
        text = words("training.step-time-of", seconds=fixed(found.seconds, 3), count=found.logged)
        add("step-time", text, marked=True)
        if found.batch:
            rate = words("training.throughput-of", rate=fixed(found.batch["images"] / found.seconds, 2))
            add("throughput", rate, marked=True)
    if found.memory:
        add("memory", words("training.memory-of", memory=fixed(found.memory, 0)), marked=True)
    devices = run.manifest.get("devices")
    if isinstance(devices, list):
        add("devices", words("page.list").join(map(str, devices)))
    if found.batch:
        add(
            "batch", words("training.batch-of", **{name: f"{value:g}" for name, value in found.batch.items()})
        )
        add("rate", f"{found.batch['lr']:g}")
    if "amp" in inputs:
        add("precision", words("training.amp" if inputs["amp"] else "training.full"))
    if found.first_loss is not None and found.last_loss is not None:
        text = fixed(found.last_loss, 3)
        if found.logged > 1:
            text = words("training.loss-of", first=fixed(found.first_loss, 3), last=text)
        add("loss", text, marked=True)
    if found.attempts > 1:
        add("attempts", str(found.attempts))
    add("checkpoint", facts.checkpoint, code=True)
    return rows
