"""`make data FROM=…`: take in a user's data set, as a folder in COCO's layout that does not depend on the originals.

The originals are not changed: annotations are checked and written again, pictures are hard-linked, or copied if that is
not possible. The folder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.data import datasets, layouts, splits
from ascendet.data.annotation_rules import shown
from ascendet.data.annotations import Report
from ascendet.data.annotations import check as check_annotations
from ascendet.data.datasets import ANNOTATIONS, Dataset
from ascendet.data.layouts import Source
from ascendet.errors import AscendetError
from ascendet.supply import archive, assets

_RESERVED = ("weights", "archives")  # folders beside the data sets
_RATIO = (
    100  # the largest size of an unpacked zip, as a multiple of the zip's; pictures can hardly be compressed
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The data set to take in and its new name; `val` is the part that becomes the validation split, 0 for none."""

    name: str
    origin: Path
    val: float
    seed: int


def check_options(name: str, origin: str, val: str, seed: str) -> Options:
    """Check the options and return them.

    Raises
    ------
    AscendetError
        `usage`: DATASET, VAL or SEED is invalid. `name-in-use`: datasets.toml has this name. `data-missing`: FROM does
        not exist.
    """
    if not datasets.is_name(name) or name in _RESERVED:
        raise AscendetError(
            "usage",
            "DATASET must be a plain name",
            expected=f"letters, digits, - _ . and not {' or '.join(_RESERVED)}",
            found=f"DATASET={shown(name)}",
            hint="DATASET=mydata",
        )
    if name in datasets.load():
        raise AscendetError(
            "name-in-use",
            f"{name} is a data set of requirements/datasets.toml",
            found=f"DATASET={name} FROM={shown(origin, 200)}",
            hint=f"DATASET=my-{name}",
        )
    path = Path(origin).expanduser().absolute()
    if not (path.is_dir() or path.is_file()):
        raise AscendetError(
            "data-missing",
            "FROM must be a folder or a zip file",
            found=f"{shown(str(path), 200)} does not exist",
            hint="FROM=<folder or zip>",
        )
    return Options(name=name, origin=path, val=_part(val), seed=_seed(seed))


def _part(text: str) -> float:
    try:
        value = float(text or "0")
    except ValueError:
        value = -1.0
    if not (0 <= value < 1) or (text and value == 0):
        raise AscendetError(
            "usage", "VAL must be a number between 0 and 1", found=f"VAL={shown(text)}", hint="VAL=0.1"
        )
    return value


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise AscendetError(
            "usage", "SEED must be a whole number of 0 or more", found=f"SEED={shown(text)}", hint="SEED=0"
        )
    return int(text)


def take_in(options: Options) -> Path:
    """Take in a data set, unless that was done before, and return its folder.

    Raises
    ------
    AscendetError
        `name-in-use`: another data set has the name. `data-invalid`: the layout is unknown, or there is no validation
        split. `annotations-invalid`, `archive-invalid`, `disk-full`.
    """
    home = assets.store()
    with files.disk_errors(home), assets.reporting_unwritable(home):
        home.mkdir(parents=True, exist_ok=True)
        with files.holding_lock(home / f".{options.name}.lock", options.name):
            final, seen = home / options.name, assets.root() / options.name
            inputs = _inputs(options)
            if (final / manifest.MANIFEST).is_file() and (manifest.read(final) or {}).get("inputs") == inputs:
                return assets.ensure_folder(options.name)
            for folder in (final, seen):
                if folder.is_symlink() or folder.exists():
                    raise _in_use(options, folder)
            _remove(home.glob(f".tmp-{options.name}+*"), keep=_unpacked(options, inputs))
            work = home / f".tmp-{options.name}+taking"
            work.mkdir()
            try:
                _fill(work, options, inputs)
            except AscendetError:  # the same files would fail again
                _remove([work, _unpacked(options, inputs)])
                raise
            os.sync()  # flush all files at once, before the folder gets its name
            work.rename(final)
            _remove([_unpacked(options, inputs)])
    return assets.ensure_folder(options.name)


def _in_use(options: Options, folder: Path) -> AscendetError:
    before = (manifest.read(folder) or {}).get("origin", "something else")
    shown_folder = paths.shorten(folder)
    return AscendetError(
        "name-in-use",
        f"the data set {options.name} exists already, from other files or with another VAL or SEED",
        expected=f"the data set in {shown(str(options.origin), 200)}, unchanged",
        found=f"{shown_folder}, from {shown(str(before), 200)}",
        hint=f"another DATASET; or, if it is not needed: rm -r '{shown_folder}'",
    )


def _remove(folders: Iterable[Path], keep: Path | None = None) -> None:
    for folder in folders:
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)


def _unpacked(options: Options, inputs: Mapping[str, object]) -> Path:
    """Return the folder to unpack a zip into; a later call continues there."""
    return assets.store() / f".tmp-{options.name}+{manifest.digest_inputs(inputs)}"


def _inputs(options: Options) -> dict[str, object]:
    """Return the inputs of the result: a zip's directory, or the names, sizes and dates of a folder's files."""
    listing = hashlib.sha256()
    if options.origin.is_file():
        for info in _directory(options.origin):
            listing.update(
                f"{info.file_size} {info.CRC} {archive.file_name(info)}\0".encode("utf-8", "surrogateescape")
            )
    else:
        for file in sorted(_files(options.origin)):
            state = file.stat()
            name = os.fsencode(file.relative_to(options.origin))
            listing.update(f"{state.st_size} {state.st_mtime_ns} ".encode() + name + b"\0")
    chosen = {"val": options.val, "seed": options.seed} if options.val else {}
    return {"files": listing.hexdigest(), **chosen}


def _directory(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as file:
            return file.infolist()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise AscendetError(
            "archive-invalid",
            f"{shown(paths.shorten(path), 200)} is no zip file, or is truncated",
            expected="a folder or a zip",
            found=str(error),
            hint="copy or download it again; or unpack it yourself: FROM=<folder>",
        ) from error


def _files(folder: Path) -> Iterable[Path]:
    """Yield the files below a folder, following links, but visiting no folder twice."""
    seen = set()
    for home, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(home)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (path for name in names if (path := Path(home, name)).is_file())


def _fill(work: Path, options: Options, inputs: Mapping[str, object]) -> None:
    """Write the data set into `work`, with its manifest."""
    root = _unpack(options, _unpacked(options, inputs)) if options.origin.is_file() else options.origin
    sources = layouts.find(root)
    _check_kinds(options, sources)
    reports = {source.kind: _check(source, root, options) for source in sources}
    contents = {kind: report.content for kind, report in reports.items()}
    folders = {source.kind: source.pictures for source in sources}
    if options.val:
        (whole,) = (kind for kind in contents if kind in ("", "train"))
        contents["train"], contents["val"] = splits.split(contents.pop(whole), options.val, options.seed)
        folders["train"] = folders["val"] = folders.pop(whole)
    classes = splits.join_classes(contents)
    members = {kind: splits.write(work, kind, contents[kind], folders[kind]) for kind in contents}
    outputs = {file.name: files.digest(file) for file in sorted((work / ANNOTATIONS).iterdir())}
    counts = {kind: splits.count(content) for kind, content in contents.items()}
    findings = {
        str(source.annotations.relative_to(root)): [vars(one) for one in reports[source.kind].findings]
        for source in sources
    }
    facts = {
        "stage": f"data/{options.name}",
        "key": manifest.digest_inputs({"annotations": outputs, "pictures": members}),
        "origin": str(options.origin),
        "inputs": inputs,
        "splits": counts,
        "classes": classes,
        "findings": findings,
        "outputs": {f"{ANNOTATIONS}/{name}": digest for name, digest in outputs.items()},
    }
    manifest.write(work, facts)
    splits.say(f"{options.name}: classes ({len(classes)}): {', '.join(shown(name) for name in classes[:20])}")


def _unpack(options: Options, folder: Path) -> Path:
    path = options.origin
    size = sum(info.file_size for info in _directory(path))
    files.check_space(assets.store(), size, "ASCENDET_DATA or ASCENDET_CACHE")
    splits.say(f"{options.name}: unpacking {shown(path.name)}")
    try:
        archive.unpack(path, folder, top="", limit=_RATIO * path.stat().st_size + 2**20)
    except AscendetError as error:
        error.hint = "copy or download it again; or unpack it yourself: FROM=<folder>"
        raise
    return folder


def _check_kinds(options: Options, sources: list[Source]) -> None:
    """Raise `data-invalid` or `usage` unless there is exactly one source of a validation split: a file or VAL."""
    kinds = {source.kind for source in sources}
    again = f"make data DATASET={options.name} FROM={shlex.quote(shown(str(options.origin), 200))}"
    if not options.val and "val" not in kinds:
        raise AscendetError(
            "data-invalid",
            "there is no validation split",
            expected="annotations for val or valid, or VAL to choose pictures for it",
            found=", ".join(source.annotations.name for source in sources),
            hint=f"{again} VAL=0.1",
        )
    if options.val and kinds & {"val"}:
        raise AscendetError(
            "usage",
            "VAL must not be set, because the data set has a validation split",
            found=f"VAL={options.val}; {', '.join(sorted(kinds))}",
            hint=again,
        )
    if options.val and not kinds & {"", "train"}:
        raise AscendetError(
            "data-invalid",
            "there are no pictures to choose a validation split from",
            found=", ".join(sorted(kinds)),
            hint=again,
        )


def _check(source: Source, root: Path, options: Options) -> Report:
    """Check one annotation file, print the findings, and return the report with the content to write."""
    name = shown(str(source.annotations.relative_to(root)), 200)
    splits.say(
        f"{options.name}: checking {name}, pictures in {shown(str(source.pictures.relative_to(root)), 200)}/"
    )
    report = check_annotations(
        source.annotations,
        source.pictures,
        training=source.kind in ("", "train"),
        hint="correct the file or export it again, then run the command again",
    )
    splits.say(report.table())
    return report


def check(one: Dataset) -> dict[str, list[str]]:
    """Verify a data set that was taken in by the digests in its manifest, and return problems by part."""
    stated = manifest.read(one.folder) or {}
    outputs = stated.get("outputs")
    problems = {}
    if isinstance(outputs, dict):
        problems[f"{one.name}/{ANNOTATIONS}"] = manifest.damaged(one.folder, outputs)
    for kind in one.splits:
        members = (manifest.read(one.folder / splits.MEMBERS / kind) or {}).get("members")
        if isinstance(members, dict):
            expected = {name: (size, crc) for name, (size, crc) in members.items()}
            problems[f"{one.name}/{kind}"] = archive.compare(one.folder / kind, expected)
    return problems
