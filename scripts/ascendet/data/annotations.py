"""COCO annotation files, checked in all they say before anything is trained on them.

What can be put right without guessing is, what cannot be used is left out, and what could mean two things, or leaves
nothing, is refused; each is said by name (`annotation_rules`), with how many and which. The file itself is not touched.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data.annotation_objects import check_objects
from ascendet.data.annotation_pictures import as_id, check_categories, check_images, list_files
from ascendet.data.annotation_rules import IN_PLACE, Finding, Findings, shown
from ascendet.errors import AscendetError
from ascendet.supply import assets

_LISTS = ("images", "annotations", "categories")


@dataclass(kw_only=True)
class Report:
    """What a check found.

    `counts` has pictures, usable (pictures with an object that is no crowd), objects, crowds, and per_class: objects
    that are no crowd by class. `classes` are names in the order of category ids. `content` is what to train on, in
    COCO's form: empty for a refused file, and in the report of a file that was checked before.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Return whether the file cannot be used."""
        return any(finding.action == "refused" for finding in self.findings)

    def summary(self) -> dict[str, Any]:
        """Return all but the content, for machines."""
        findings = [vars(finding) for finding in self.findings]
        return {"findings": findings, "counts": self.counts, "classes": self.classes}

    def table(self) -> str:
        """Return what was found as a table: action, how many, rule and sentence, the first ids or names."""
        lines = [_describe(self.counts)] if self.counts else []
        for finding in self.findings:
            lines.append(f"{finding.action:<8} {finding.count:>8}  {finding.name}: {finding.what}")
            if finding.first:
                more = ", …" if finding.count > len(finding.first) else ""
                lines.append(f"{'':19}{', '.join(finding.first)}{more}")
        return "\n".join(lines)


def check(path: Path, pictures: Path | None, *, training: bool, hint: str = "") -> Report:
    """Return what `inspect` finds.

    Parameters
    ----------
    path, pictures, training
        See `inspect`.
    hint
        The next command to type where the file is refused; empty: to look at all that was found.

    Raises
    ------
    AscendetError
        `annotations-invalid` lists what was found where the file cannot be used.
    """
    report = inspect(path, pictures, training=training)
    if report.refused:
        raise _invalid(report, hint)
    return report


def inspect(path: Path, pictures: Path | None, *, training: bool) -> Report:
    """Hold everything in an annotation file to everything else.

    Parameters
    ----------
    path
        The JSON file.
    pictures
        The folder that its file names are in; None: names and sizes are not held to files.
    training
        Whether there must be something to learn; for evaluation, a file without objects is only noted.
    """
    findings = Findings()
    content = _read(path, findings)
    report = Report(path=path)
    if content is not None:
        _check_content(content, pictures, training, findings, report)
    report.findings = findings.sorted()
    if not findings.refused and content is not None:
        report.content = content
    return report


def _check_content(
    content: dict[str, Any], pictures: Path | None, training: bool, findings: Findings, report: Report
) -> None:
    """Check the three lists, in place; fill the report's counts and classes."""
    images, objects, categories = (content[name] for name in _LISTS)
    named = {as_id(one.get("category_id")) for one in objects if isinstance(one, dict)}
    by_category = check_categories(categories, {one for one in named if one is not None}, findings)
    by_image, kept_images = check_images(images, pictures, findings)
    if findings.refused:
        return
    objects = check_objects(objects, by_image, by_category, findings)
    if findings.refused:
        return
    real = [one for one in objects if not one["iscrowd"]]
    if not real and training:
        findings.add("all-crowd" if objects else "nothing-to-train-on")
    elif not objects:
        findings.add("nothing-to-score")
    names = {entry["id"]: entry["name"] for entry in by_category.values()}
    content.update(images=kept_images, annotations=objects, categories=list(by_category.values()))
    per_class = Counter(one["category_id"] for one in real)
    report.classes = list(names.values())
    report.counts = {
        "pictures": len(kept_images),
        "usable": len({one["image_id"] for one in real}),
        "objects": len(real),
        "crowds": len(objects) - len(real),
        "per_class": {name: per_class[one] for one, name in names.items()},
    }


# -- the file --


def _read(path: Path, findings: Findings) -> dict[str, Any] | None:
    """Return the file's content where it is an object with COCO's lists."""
    try:
        text = _decode(path.read_bytes(), findings)
    except OSError as error:
        raise AscendetError(
            "data-missing",
            f"{paths.shorten(path)} cannot be read",
            found=str(error.strerror),
            hint="make data, or another path",
        ) from error
    except UnicodeDecodeError as error:
        findings.add("not-text", str(error))
        return None
    twice: list[str] = []
    literals: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice.extend({key for key, value in pairs if repr(result[key]) != repr(value)})
        return result

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=literals.append)
    except (ValueError, RecursionError) as error:
        findings.add("not-json", str(error) if text.strip() else "the file is empty")
        return None
    del text
    findings.extend("number-literal", literals)
    findings.extend("key-twice", twice)
    if twice:
        return None
    if not isinstance(content, dict):
        kind = "a list, as of results" if isinstance(content, list) else shown(content)
        findings.add("not-coco", f"the top level is {kind}")
        return None
    lacking = [name for name in _LISTS if not isinstance(content.get(name), list)]
    findings.extend("not-coco", (f"no list {name}" for name in lacking))
    return None if lacking else content


def _decode(content: bytes, findings: Findings) -> str:
    encoding = json.detect_encoding(content)
    if encoding.startswith(("utf-16", "utf-32")):
        findings.add("utf-16", encoding)
    elif content.startswith(codecs.BOM_UTF8):
        findings.add("byte-order-mark")
    return content.decode(encoding)


# -- make data-check DATASET=… --


def print_check(folder: Path, splits: Sequence[str], *, as_json: bool) -> None:
    """Print what is found in the annotations of a data set's splits.

    Raises
    ------
    AscendetError
        `annotations-invalid` where a file cannot be used; all of them have been printed before.
    """
    reports = {}
    for split in splits:
        path, pictures = _split(folder, split)
        report = inspect(path, pictures if pictures.is_dir() else None, training=split.startswith("train"))
        reports[split] = report
        report.content = {}  # gigabytes
        if not as_json:
            without = (
                "" if pictures.is_dir() else f" (without pictures: there is no {paths.shorten(pictures)})"
            )
            print(f"{'REFUSED' if report.refused else 'ok':<8} {paths.shorten(path)}{without}")
            print(report.table(), flush=True)
    if as_json:
        checked = {split: {"ok": not report.refused, **report.summary()} for split, report in reports.items()}
        print(json.dumps({"folder": str(folder), "checked": checked}))
    for report in reports.values():
        if report.refused:
            raise _invalid(report, "correct the file; docs/annotations.md says what each name means")


# -- what users read --


def _describe(counts: dict[str, Any]) -> str:
    return (
        f"{counts['pictures']} pictures, {counts['usable']} of them with objects; {counts['objects']} objects, "
        f"{counts['crowds']} crowds, {len(counts['per_class'])} classes"
    )


def _invalid(report: Report, hint: str) -> AscendetError:
    lines = [finding.line() for finding in report.findings]
    return AscendetError(
        "annotations-invalid",
        f"{shown(paths.shorten(report.path), 200)} cannot be used",
        found="\n".join(lines[:10] + ([f"and {len(lines) - 10} more"] if len(lines) > 10 else [])),
        hint=hint or _hint(report.path),
    )


def _hint(path: Path) -> str:
    root = assets.root()
    if path.is_relative_to(root) and len(path.relative_to(root).parts) > 1:
        return f"make data-check DATASET={path.relative_to(root).parts[0]}"
    return "docs/annotations.md says what each name means; correct the file, then run the command again"


# -- once per file --


def check_splits(folder: Path, splits: Sequence[str]) -> None:
    """Have the annotations of these splits checked, and say what a training passes over; see `checked`."""
    for split in splits:
        report = checked(*_split(folder, split), training=split.startswith("train"))
        for finding in report.findings:
            if finding.action != "noted":
                print(f"{split}: {finding.action} {finding.line()}", file=sys.stderr, flush=True)


def _split(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the picture folder of a split."""
    return folder / "annotations" / f"instances_{split}.json", folder / split


def checked(path: Path, pictures: Path, *, training: bool) -> Report:
    """Return the report of a file that a training reads as it stands, from its receipt where nothing has changed.

    The receipt holds for the file's bytes, and for the names, sizes and times of the pictures.

    Raises
    ------
    AscendetError
        `annotations-invalid` where the file is refused, or needs the repaired copy that `make data` writes.
    """
    inputs = {
        "file": files.digest(path),
        "pictures": _digest_pictures(pictures),
        "training": training,
        "rules": _digest_rules(),
    }
    with manifest.stage("annotations", inputs) as stage:
        if not stage.fresh:
            print(f"{paths.shorten(path)}: checking what it says", file=sys.stderr, flush=True)
            report = check(path, pictures, training=training)
            if not all(finding.name in IN_PLACE for finding in report.findings):
                raise _invalid(
                    report, "make data DATASET=<a new name> FROM=<its folder> writes a repaired copy"
                )
            stage.record(report=report.summary())
    content: Any = (manifest.read(stage.final) or {})["report"]
    findings = [Finding(**finding) for finding in content["findings"]]
    return Report(path=path, findings=findings, counts=content["counts"], classes=content["classes"])


def _digest_pictures(folder: Path) -> str:
    total = hashlib.sha256()
    for name in sorted(list_files(folder)):
        try:
            state = (folder / name).stat()
            facts = f"{state.st_size} {state.st_mtime_ns}"
        except OSError:  # a link to nothing, which the check names
            facts = "unreadable"
        total.update(f"{facts} {name}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _digest_rules() -> str:
    parts: Sequence[Path] = sorted(Path(__file__).parent.glob("annotation*.py"))
    return manifest.digest_inputs({part.name: files.digest(part) for part in parts})
