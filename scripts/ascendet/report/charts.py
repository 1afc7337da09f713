"""Let the stack's environment draw.

`ascendet_common.page_curves` draws a training's curves, `ascendet_common.findings` charts and pictures of an
evaluation. A page appears without them where they cannot be made, and says why.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ascendet import paths
from ascendet.core import access, files, manifest
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.envs import venv
from ascendet.report import facts as gathering
from ascendet.report.facts import Evaluation, Facts
from ascendet.report.reading import Json, Reader, Reason, reason
from ascendet.report.words import Language
from ascendet.run import folders
from ascendet.supply import assets

FINDINGS = "findings.json"
_SOURCE = paths.WHEELS / "common"
_CURVES = ("loss", "ap", "step")
_LEAST = {
    "images": int,
    "objects": int,
    "shown": int,
    "score": float,
    "errors": dict,
    "charts": dict,
    "pictures": list,
}
_MOST = 3_000_000  # bytes of pictures and charts on a page, which are a third longer as base64
# What has no place in a chart that is inlined into a page.
_ACTIVE = re.compile(
    r"<(script|foreignobject|iframe|image|a|animate\w*|set)\b|<[^>]*\s(on\w+\s*=|(xlink:)?href\s*=\s*[\"'](?!#))",
    re.IGNORECASE,
)
_LACKS = re.compile(r"(ModuleNotFound|Import)Error\b")


@dataclass(kw_only=True)
class Charts:
    """What was drawn: SVGs by name, pictures with what findings.json says of each; or why it could not be."""

    curves: dict[str, bytes] = field(default_factory=dict)
    no_curves: Reason | None = None
    findings: Json | None = None
    charts: dict[str, bytes] = field(default_factory=dict)
    pictures: list[tuple[Json, bytes]] = field(default_factory=list)
    no_findings: Reason | None = None
    remedy: str | None = None

    def mend(self, why: Reason | None) -> str | None:
        """Return the command that removes a reason, None where it is the one that makes what charts are drawn of."""
        return (why.rights if why else None) or self.remedy


def draw(facts: Facts, language: Language, score: float) -> Charts:
    """Return the charts and pictures of a report, in its language."""
    made = Charts()
    trained = facts.training is not None and facts.training.logged > 0
    if not (trained or facts.evaluation):
        return made
    python = _environment(facts, made)
    if python is None:
        return made
    if trained:
        _draw_curves([facts], python, language, made)
    if facts.evaluation:
        _find(facts, facts.evaluation, python, language, score, made)
    return made


def _environment(facts: Facts, made: Charts) -> Path | None:
    """Return the interpreter of the stack's environment, or None, with the reason in `made`, if it is not there.

    It is taken as it is: a training may be running in it, and a page need not compile a stack.
    """
    python = venv.stack_python(Stack.load(facts.subject.stack))
    if access.can(python, os.X_OK):
        return python
    if os.path.lexists(python):
        why = _because(PermissionError(errno.EACCES, "", str(python)), python)
    else:
        why = Reason(key="absent", file=paths.shorten(python))
        made.remedy = _install(facts)
    made.no_curves = made.no_findings = why
    return None


def _because(error: Exception, file: Path) -> Reason:
    """Return why a file cannot be used, with its name."""
    return replace(reason(error, file), file=paths.shorten(file))


def _install(facts: Facts) -> str:
    """Return the command that completes the stack's environment."""
    return facts.subject.make("install", MODEL="", DATASET="", CHECKPOINT="")


class DrawError(Exception):
    """A program that draws failed; the message is the last line of what it said."""


class ActiveError(ValueError):
    """A chart holds more than a drawing; the message is its file's name."""


class EnvironmentIncompleteError(DrawError):
    """The environment lacks a package: an installation is not over yet, or was interrupted."""


def _run(python: Path, module: str, *arguments: str) -> None:
    """Run a program of ours from its source, with the environment's packages; raise DrawError if it fails."""
    command = [str(python), "-m", module, *arguments]
    environ = os.environ | venv.from_source("common")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"{module} ended with exit code {done.returncode}"])[-1]
        text = paths.printable(last.removeprefix("error: "))
        # Of the files that the program reads this says nothing.
        raise (EnvironmentIncompleteError if _LACKS.match(last) else DrawError)(text)


def overlay(pair: Sequence[Facts], language: Language) -> Charts:
    """Return the curves of two runs in common axes, in a report's language."""
    made = Charts()
    trained = [facts for facts in pair if facts.run and facts.training and facts.training.logged]
    if not trained:
        return made
    if python := _environment(trained[0], made):
        _draw_curves(trained, python, language, made)
    return made


def _draw_curves(trained: Sequence[Facts], python: Path, language: Language, made: Charts) -> None:
    runs = [facts.run.folder for facts in trained if facts.run]
    try:
        progress = [[run.name, files.digest(run / folders.PROGRESS)] for run in runs]
    except OSError as error:
        made.no_curves = _because(error, Path(error.filename))
        return
    inputs = {"progress": progress, "language": language, "software": _software()}
    options = [*(f"--run={run}" for run in runs), f"--language={language}"]
    try:
        with manifest.stage("reports/.curves", inputs) as stage:
            if not stage.fresh:
                _run(python, "ascendet_common.page_curves", *options, f"--out={stage.path}")
        for name in _CURVES:
            file = stage.final / f"{name}.svg"
            if file.is_file():
                made.curves[name] = _svg(file)
    except EnvironmentIncompleteError as error:
        made.no_curves, made.remedy = _said(error), _install(trained[0])
    except DrawError as error:
        made.no_curves = _said(error)
    except ActiveError as error:
        made.no_curves = Reason(key="drawing", file=str(error))


def _said(error: DrawError) -> Reason:
    return Reason(key="said", values={"text": str(error)})


def _software() -> str:
    """Return the digest of the programs that draw, so that others draw anew."""
    return files.digest_tree(_SOURCE / "ascendet_common")


def _find(
    facts: Facts, evaluation: Evaluation, python: Path, language: Language, score: float, made: Charts
) -> None:
    reader, make = Reader(), facts.subject.make("eval")
    found = gathering.predictions(evaluation, make, reader)
    if found is None:
        facts.broken += reader.broken
        made.no_findings = (
            replace(reader.broken[0].why, file=reader.broken[0].file) if reader.broken else None
        )
        return
    predictions, listed = found
    named = Path(listed["annotations"])
    try:
        annotations = _annotations(named, facts.dataset, evaluation.annotations)
        if annotations is None:
            made.no_findings = Reason(key="moved", file=paths.shorten(named))
            made.remedy = facts.subject.make_data()
            return
        files_read = {
            "predictions": files.digest(predictions),
            "annotations": files.digest(annotations),
            "pictures": _count_pictures(annotations),
        }
    except OSError as error:
        made.no_findings = _because(error, Path(error.filename))
        return
    inputs = {
        **files_read,
        "images": listed["images"],
        "score": score,
        "language": language,
        "software": _software(),
    }
    options = [f"--predictions={predictions}", f"--score={score}", f"--language={language}"]
    try:
        with manifest.stage("reports/.findings", inputs) as stage:
            if not stage.fresh:
                print(
                    f"drawing what was found in {len(listed['images']):,} images", file=sys.stderr, flush=True
                )
                images = stage.path / "images.json"
                images.write_text(json.dumps(listed | {"annotations": str(annotations)}), encoding="utf-8")
                options += [f"--images={images}", f"--out={stage.path}"]
                _run(python, "ascendet_common.findings", *options)
    except EnvironmentIncompleteError as error:
        made.no_findings, made.remedy = _said(error), _install(facts)
    except DrawError as error:
        made.no_findings = _said(error)
        reader.note("pictures", predictions, made.no_findings, make)
    else:
        _take(stage.final, made, reader, make)
    facts.broken += reader.broken


def _annotations(file: Path, dataset: str, digest: str | None) -> Path | None:
    """Return the annotation file of an evaluation, or an equal one of the data set here where it was moved or changed.

    Predictions beside other annotations than they were evaluated with would show errors that nobody made.
    """
    here = sorted((assets.root() / dataset / datasets.ANNOTATIONS).glob("instances_*.json"))
    known = [one for one in (file, *here) if one.is_file()]
    if digest is None:  # an evaluation of an older version does not say it
        return file if file in known else None
    return next((one for one in known if files.digest(one) == digest), None)


def _count_pictures(annotations: Path) -> dict[str, int]:
    """Return how many files each folder of a data set has: pictures that arrive later are drawn then."""
    beside = (folder for folder in sorted(annotations.parent.parent.iterdir()) if folder.is_dir())
    return {folder.name: sum(1 for _ in os.scandir(folder)) for folder in beside}


def _take(folder: Path, made: Charts, reader: Reader, make: str) -> None:
    content = reader.table("pictures", folder / FINDINGS, make)
    if content is None:
        return
    with reader.using("pictures", folder / FINDINGS, make):
        for key, kind in _LEAST.items():
            if not isinstance(content[key], kind | int if kind is float else kind):
                raise TypeError(f"{key} is no {kind.__name__}")
        room = _MOST
        for name, chart in content["charts"].items():
            made.charts[str(name)] = _svg(folder / Path(str(chart)).name)
            room -= len(made.charts[str(name)])
        for row in content["pictures"]:
            picture = (folder / Path(str(row["file"])).name).read_bytes()
            room -= len(picture)
            if room >= 0:
                made.pictures.append((row, picture))
        made.findings = content


def _svg(file: Path) -> bytes:
    """Return a chart; raise ActiveError for one that could run code in a page."""
    text = file.read_text(encoding="utf-8")
    if _ACTIVE.search(text):
        raise ActiveError(file.name)
    return text.encode()
