"""Gather what the stages left of one model on one data set: manifests, progress, results. Data only, nothing is judged.

A fact that is absent is None, or an empty list; a file that is broken is in `broken`, and its facts are absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.errors import AscendetError
from ascendet.report import counters, machinery, staged, training
from ascendet.report.commands import Subject, of_manifest
from ascendet.report.machinery import Environment
from ascendet.report.reading import Broken, Json, Reader, Reason, dig, mapping, number
from ascendet.report.staged import Staged
from ascendet.report.training import Training
from ascendet.run import folders
from ascendet.run.score import CLASSES, IMAGES, METRICS, NAMES, PREDICTIONS

KINDS = ("bbox", "segm")
_ENDS = ("finished", "failed", "interrupted")  # states of a training that is over


@dataclass(frozen=True, kw_only=True)
class Result:
    """A folder that a stage left for a checkpoint, and its manifest."""

    folder: Path
    manifest: Json

    @property
    def simulated(self) -> bool | None:
        """Whether it was computed on simulated devices; None if nothing ran on any, or the manifest does not say."""
        found = self.manifest.get("simulated")
        return found if isinstance(found, bool) else None

    @property
    def fallbacks(self) -> list[Json] | None:
        """The operators that were computed on the CPU, by `operator` and `line`; None if the manifest does not say."""
        found = self.manifest.get("cpu_fallbacks")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else None


@dataclass(frozen=True, kw_only=True)
class Evaluation(Result):
    """An evaluation: COCO's 12 numbers by kind, each class's AP and objects, how many images, of which annotations."""

    numbers: dict[str, dict[str, float]]
    classes: dict[str, Json]
    images: int | None
    annotations: str | None
    official: Json | None
    of_checkpoint: bool


@dataclass(kw_only=True)
class Facts:
    """All facts of a report; `digest` is the checkpoint's recorded SHA-256, `damaged` that its file has another."""

    subject: Subject
    model: str
    dataset: str
    name: str
    home: Path
    run: Result | None = None
    state: str | None = None
    checkpoint: str | None = None
    digest: str | None = None
    damaged: bool = False
    training: Training | None = None
    evaluation: Evaluation | None = None
    others: list[Evaluation] = field(default_factory=list)
    speed: Result | None = None
    infer: Result | None = None
    staged: list[Staged] = field(default_factory=list)
    counters: Json | None = None
    environment: Environment
    commands: list[str] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)

    @property
    def results(self) -> list[Result]:
        """The folders with a manifest, in the order in which they were started."""
        found = [self.run, self.evaluation, self.speed, self.infer]
        return sorted(filter(None, found), key=lambda one: str(one.manifest.get("started") or ""))

    @property
    def devices(self) -> set[bool]:
        """Whether simulated devices computed something (True), and whether real ones did (False)."""
        found = [one.simulated for one in self.results] + [one.simulated for one in self.staged]
        return {simulated for simulated in found if simulated is not None}

    @property
    def simulated(self) -> bool | None:
        """Whether devices were simulated: True if any were, False if all were real, None if nothing ran on one."""
        return True in self.devices if self.devices else None

    @property
    def trained_simulated(self) -> bool | None:
        """Whether the training's devices were simulated: as its results' were, where its own manifest does not say."""
        own = self.run.simulated if self.run else None
        return self.simulated if own is None else own


def gather(subject: Subject, model: str, run: str) -> Facts:
    """Return the facts of a run, or of a checkpoint without a run.

    Parameters
    ----------
    subject
        What the report is about; with a checkpoint, the results beside that file are taken.
    model
        The model's name in folders.
    run
        The run folder's name, or "latest".

    Raises
    ------
    AscendetError
        `data-missing`: there is no such run, and no result of a checkpoint.
    """
    home = paths.BUILD / "runs" / f"{model}_{subject.dataset}"
    reader = Reader()
    folder, stem, checkpoint = _find(subject, home, run)
    subject = replace(subject, checkpoint=checkpoint)
    facts = Facts(
        subject=subject,
        model=model,
        dataset=subject.dataset,
        name="-".join(filter(None, (folder.name if folder else "", stem))),
        home=folder or home,
        environment=Environment(),
    )
    if folder:
        _read_run(facts, folder, reader)
    if stem:
        file = Path(checkpoint).expanduser().absolute()
        facts.checkpoint, facts.digest = paths.shorten(file), files.digest(file) if file.is_file() else None
    _read_results(facts, folder or home, stem, reader)
    if facts.digest is None and facts.evaluation:
        facts.digest = dig(facts.evaluation.manifest, "inputs", "checkpoint")
    facts.staged = staged.gather(subject, model, facts.digest, reader)
    facts.counters = counters.gather(facts.home, counters.command(subject, facts.home), reader)
    facts.environment = machinery.gather(subject, [one.manifest for one in facts.results], reader)
    facts.commands = _list_commands(facts)
    facts.broken = reader.broken
    return facts


def _find(subject: Subject, home: Path, run: str) -> tuple[Path | None, str, str]:
    """Return which run and checkpoint to report.

    Returns
    -------
    tuple[Path | None, str, str]
        The run folder, if there is one; the checkpoint's name in folders, "" for the run's last one; and CHECKPOINT for
        commands about it, "" for the latest run's last one.
    """
    if subject.checkpoint:
        file = Path(subject.checkpoint).expanduser().absolute()
        folder = file.parent if file.parent.parent.resolve() == home.resolve() else None
        last = _last_checkpoint(folder) if folder else None
        stem = "" if last and last.name == file.name else file.stem
        if folder or any(home.glob(f"*-{_escape(stem)}/{manifest.MANIFEST}")):
            return (folder.resolve() if folder else None), stem, subject.checkpoint
        raise _nothing(subject, home, f"results of {paths.shorten(file)}", subject.make("eval"))
    folder = home / run
    if folder.is_dir() and (run != "latest" or folder.is_symlink()):
        folder = folder.resolve()
        last = _last_checkpoint(folder)
        latest = (home / "latest").resolve() == folder
        return folder, "", "" if latest or last is None else paths.shorten(last)
    if run != "latest":
        known = sorted(one.parent.name for one in home.glob(f"*/{manifest.MANIFEST}") if _is_run(one.parent))
        raise _nothing(
            subject, home, f"the run {run}", subject.make("report", RUN=known[-1] if known else ""), known
        )
    found = home.glob(f"eval-*/{manifest.MANIFEST}")
    for file in sorted(found, key=lambda one: one.stat().st_mtime, reverse=True):
        checkpoint = dig(Reader().table("", file, ""), "checkpoint")
        if isinstance(checkpoint, str):
            return None, Path(checkpoint).stem, checkpoint
    raise _nothing(subject, home, "a run, or results of a checkpoint", subject.make("train"))


def _last_checkpoint(run: Path) -> Path | None:
    """Return the last complete checkpoint of a run; None if there is none, or it may not be read."""
    try:
        return folders.last_checkpoint(run)
    except (OSError, ValueError):
        return None


def _is_run(folder: Path) -> bool:
    return (
        dig(Reader().table("", folder / manifest.MANIFEST, ""), "stage") in ("train", None)
        and not folder.is_symlink()
    )


def _escape(text: str) -> str:
    return "".join(f"[{one}]" if one in "*?[" else one for one in text)


def _nothing(
    subject: Subject, home: Path, expected: str, hint: str, known: list[str] | None = None
) -> AscendetError:
    found = f"{', '.join(known)}" if known else f"nothing of it in {paths.shorten(home)}"
    what = f"there is nothing to report of {subject.model} on {subject.dataset}"
    return AscendetError("data-missing", what, expected=expected, found=found, hint=hint)


# -- a run --


def _read_run(facts: Facts, folder: Path, reader: Reader) -> None:
    make = facts.subject.make("train")
    content = reader.table("environment", folder / manifest.MANIFEST, make) or {}
    facts.run = Result(folder=folder, manifest=content)
    try:
        facts.state = _state(folder, content)
    except OSError as error:
        reader.note("training", folder / folders.LOCK, error, make)
    try:
        last = folders.last_checkpoint(folder)
    except (OSError, ValueError) as error:
        last = None
        reader.note("training", folder / folders.LAST, error, make)
    facts.checkpoint = paths.shorten(last) if last else None
    outputs = content.get("outputs")
    if isinstance(outputs, dict) and last:
        facts.digest = outputs.get(last.name)
        facts.damaged = reader.unlike("training", last, facts.digest, make) is not None
    facts.training = training.gather(folder, make, reader, finished=facts.state == "finished")


def _state(folder: Path, content: Json) -> str | None:
    """Return a run's state; `stopped` where the manifest says that it runs and no process holds its lock."""
    state = content.get("state")
    if state == "running":
        return "running" if folders.is_busy(folder) else "stopped"
    return str(state) if state in _ENDS else None


# -- results --


def _read_results(facts: Facts, folder: Path, stem: str, reader: Reader) -> None:
    """Read what the stages left in `folder`: for the checkpoint with this name; for the run's last one if it is ""."""
    evaluations = []
    for file in reader.files("accuracy", folder, f"eval*/{manifest.MANIFEST}", facts.subject.make("eval")):
        found = _evaluation(facts, file.parent, reader)
        if not found.manifest:
            continue  # of which checkpoint, pictures and devices its numbers are is not known
        checkpoint = str(found.manifest.get("checkpoint") or "")
        if (stem and Path(checkpoint).stem == stem) or (
            not stem and (found.of_checkpoint or file.parent.name == "eval")
        ):
            evaluations.append(found)
    # All images before a part of them, then the newest.
    evaluations.sort(key=lambda one: (one.images or 0, str(one.manifest.get("started") or "")), reverse=True)
    facts.evaluation, facts.others = (evaluations[0], evaluations[1:]) if evaluations else (None, [])
    suffix = f"-{stem}" if stem else ""
    facts.speed = _result("inference", folder / f"speed{suffix}", facts.subject.make("speed"), reader)
    facts.infer = _result(
        "inference", folder / f"infer{suffix}", facts.subject.make("infer", IMAGES="<pictures>"), reader
    )


def _result(section: str, folder: Path, make: str, reader: Reader) -> Result | None:
    content = reader.table(section, folder / manifest.MANIFEST, make)
    return Result(folder=folder, manifest=content) if content is not None else None


def _evaluation(facts: Facts, folder: Path, reader: Reader) -> Evaluation:
    make = facts.subject.make("eval")
    content = reader.table("accuracy", folder / manifest.MANIFEST, make) or {}
    numbers: dict[str, dict[str, float]] = {}
    file = folder / METRICS
    stored = reader.table("accuracy", file, make)
    if stored is not None:
        with reader.using("accuracy", file, make):
            numbers = {
                kind: {name: float(stored[kind][name]) for name in NAMES} for kind in KINDS if kind in stored
            }
            if not numbers:
                raise ValueError("neither boxes nor masks")
            if any(numbers[kind] != known for kind, known in mapping(content.get("metrics")).items()):
                reader.note("accuracy", file, Reason(key="numbers"), make)
                numbers = {}
    classes: dict[str, Json] = {}
    file = folder / CLASSES
    by_class = reader.table("accuracy", file, make)
    if by_class is not None:
        with reader.using("accuracy", file, make):
            classes = {
                str(name): {"objects": int(row["objects"]), **{kind: number(row.get(kind)) for kind in KINDS}}
                for name, row in by_class.items()
            }
    inputs = content.get("inputs")
    images = number(dig(inputs, "images"))
    annotations = dig(inputs, "annotations")
    official = content.get("official")
    digest = dig(inputs, "checkpoint")
    name = Path(str(content.get("checkpoint") or "")).name
    same = digest == facts.digest if facts.digest and digest else name == Path(facts.checkpoint or "").name
    return Evaluation(
        folder=folder,
        manifest=content,
        numbers=numbers,
        classes=classes,
        images=int(images) if images is not None else None,
        annotations=annotations if isinstance(annotations, str) else None,
        official=official if isinstance(official, dict) else None,
        of_checkpoint=same,
    )


def predictions(evaluation: Evaluation, make: str, reader: Reader) -> tuple[Path, Json] | None:
    """Return the file with an evaluation's predictions and the content of its images.json, if both are there.

    Every prediction is read by `ascendet_common.findings`, which says what is wrong with one.
    """
    listed = reader.table("pictures", evaluation.folder / IMAGES, make)
    if listed is None or not (evaluation.folder / PREDICTIONS).is_file():
        return None
    with reader.using("pictures", evaluation.folder / IMAGES, make):
        if not isinstance(listed["images"], list):
            raise TypeError("images is no list")
        return evaluation.folder / PREDICTIONS, {
            "annotations": str(listed["annotations"]),
            "images": listed["images"],
        }
    return None


# -- how it was made --


def _list_commands(facts: Facts) -> list[str]:
    """Return the make commands that led here, in the order of their manifests, each once."""
    found = list[str | None](facts.environment.data_commands)
    found += [of_manifest(result.manifest) for result in facts.results]
    for one in facts.staged:
        found += one.commands
    return list(dict.fromkeys(filter(None, found)))
