"""Check COCO annotation files completely before a model is trained on them.

Faults that can be repaired without guessing are repaired. Entries that cannot be used are dropped. A file that is
ambiguous, or of which nothing would be left, is refused. Each finding has a name (`annotation_rules`), the number of
occurrences and the first of them. The file itself is not changed.
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
    """The result of a check.

    `counts` has pictures, usable (pictures with an object that is no crowd), objects, crowds, and per_class (objects
    that are no crowd, by class). `classes` are names in the order of category ids. `content` is the repaired content in
    COCO's form; it is empty for a refused file, and in the report of a file that was checked before.
    """

    path: Path
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether the file cannot be used."""
        return any(finding.action == "refused" for finding in self.findings)

    def summary(self) -> dict[str, Any]:
        """Return everything except the content, as JSON values."""
        findings = [vars(finding) for finding in self.findings]
        return {"findings": findings, "counts": self.counts, "classes": self.classes}

    def table(self) -> str:
        """Return the findings as a table: action, number, rule and sentence, the first ids or names."""
        lines = [_describe(self.counts)] if self.counts else []
        for finding in self.findings:
            lines.append(f"{finding.action:<8} {finding.count:>8}  {finding.name}: {finding.what}")
            if finding.first:
                more = ", …" if finding.count > len(finding.first) else ""
                lines.append(f"{'':19}{', '.join(finding.first)}{more}")
        return "\n".join(lines)


def check(path: Path, pictures: Path | None, *, training: bool, hint: str = "") -> Report:
    """Return the report of `inspect`, if the file can be used.

    Parameters
    ----------
    path, pictures, training
        See `inspect`.
    hint
        The next command to type if the file is refused; by default the command that shows all findings.

    Raises
    ------
    AscendetError
        `annotations-invalid`: the file cannot be used; the error lists the findings.
    """
    report = inspect(path, pictures, training=training)
    if report.refused:
        raise _invalid(report, hint)
    return report


def inspect(path: Path, pictures: Path | None, *, training: bool) -> Report:
    """Check an annotation file and return the report.

    Parameters
    ----------
    path
        The JSON file.
    pictures
        The folder of the pictures; None if file names and sizes are not to be compared with files.
    training
        Whether the file must have objects to train on; for evaluation, a file without objects is only noted.
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
    """Check and repair the three lists in place, and set the report's counts and classes."""
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
    """Return the file's content, or None if it is no JSON object with COCO's lists."""
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

    def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice.extend({key for key, value in pairs if repr(result[key]) != repr(value)})
        return result

    try:
        content = json.loads(text, object_pairs_hook=read_object, parse_constant=literals.append)
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
    """Check the annotations of a data set's splits and print the findings.

    Raises
    ------
    AscendetError
        `annotations-invalid`: a file cannot be used; it is raised after all findings have been printed.
    """
    reports = {}
    for split in splits:
        path, pictures = _split(folder, split)
        report = inspect(path, pictures if pictures.is_dir() else None, training=split.startswith("train"))
        reports[split] = report
        report.content = {}  # it may take gigabytes
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


# -- text --


def _describe(counts: dict[str, Any]) -> str:
    return (
        f"pictures: {counts['pictures']}, with objects: {counts['usable']}, objects: {counts['objects']}, "
        f"crowds: {counts['crowds']}, classes: {len(counts['per_class'])}"
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
    """Check the annotations of these splits as `check_once` does, and print the findings that change the training."""
    for split in splits:
        report = check_once(*_split(folder, split), training=split.startswith("train"))
        for finding in report.findings:
            if finding.action != "noted":
                print(f"{split}: {finding.action} {finding.line()}", file=sys.stderr, flush=True)


def _split(folder: Path, split: str) -> tuple[Path, Path]:
    """Return the annotation file and the picture folder of a split."""
    return folder / "annotations" / f"instances_{split}.json", folder / split


def check_once(path: Path, pictures: Path, *, training: bool) -> Report:
    """Check a file that is used without repairs, unless that was done before, and return the report.

    An earlier report is used while the file's bytes, and the names, sizes and times of the pictures, are the same.

    Raises
    ------
    AscendetError
        `annotations-invalid`: the file is refused, or needs the repaired copy that `make data` writes.
    """
    inputs = {
        "file": files.digest(path),
        "pictures": _digest_pictures(pictures),
        "training": training,
        "rules": _digest_rules(),
    }
    with manifest.stage("annotations", inputs) as stage:
        if not stage.fresh:
            print(f"{paths.shorten(path)}: checking the annotations", file=sys.stderr, flush=True)
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
        except OSError:  # a broken link, which the check reports
            facts = "unreadable"
        total.update(f"{facts} {name}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _digest_rules() -> str:
    parts: Sequence[Path] = sorted(Path(__file__).parent.glob("annotation*.py"))
    return manifest.digest_inputs({part.name: files.digest(part) for part in parts})
