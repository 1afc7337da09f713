"""The data sets of `requirements/datasets.toml` and those of users, and their folders."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ascendet import paths
from ascendet.errors import AscendetError
from ascendet.supply import assets

ANNOTATIONS = "annotations"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """An entry of datasets.toml with the same field names, or a data set that was taken in, which has only splits."""

    name: str
    classes: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    archives: Mapping[str, str] = field(default_factory=dict)
    generator: str = ""
    libraries: Sequence[str] = ()
    seed: int = 0
    part_of: str = ""
    pictures: str = ""

    @property
    def home(self) -> str:
        """The name of the data set's folder."""
        return self.part_of if self.part_of and not self.pictures else self.name

    @property
    def folder(self) -> Path:
        """The folder that training reads."""
        return assets.root() / self.home

    @property
    def counted(self) -> bool:
        """Whether the number of pictures in a split is known: for fetched data sets, not for others."""
        return bool(self.archives or self.part_of)

    def named(self, kinds: Sequence[str] = ()) -> list[str]:
        """Return the splits whose names begin with one of `kinds` ("train", "val"), or all splits without `kinds`."""
        return [split for split in self.splits if split.startswith(tuple(kinds) or "")]

    def missing(self, kinds: Sequence[str]) -> list[str]:
        """Return the `kinds` for which the data set has no split."""
        return [kind for kind in kinds if not self.named([kind])]


def load() -> dict[str, Dataset]:
    """Return the entries of datasets.toml by name.

    Raises
    ------
    AscendetError
        `data-lock-invalid`: the file cannot be read, or an entry is invalid.
    """
    path = paths.REQUIREMENTS / "datasets.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        known = {name: Dataset(name=name, **table) for name, table in tables.items()}
        for one in known.values():
            _check(one, known)
    except (OSError, tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise AscendetError(
            "data-lock-invalid",
            f"{paths.shorten(path)} cannot be read",
            found=str(error),
            hint=f"git diff {paths.shorten(path)}",
        ) from error
    return known


def _check(one: Dataset, known: Mapping[str, Dataset]) -> None:
    if one.part_of and one.part_of not in known:
        raise ValueError(f"[{one.name}] part_of must be another entry, not {one.part_of!r}")
    if not one.splits or not all(name.startswith(("train", "val")) for name in one.splits):
        raise ValueError(f"[{one.name}] must have splits, and their names must begin with train or val")
    if sum(map(bool, (one.archives, one.generator, one.part_of))) != 1:
        raise ValueError(f"[{one.name}] must have exactly one of archives, generator and part_of")


def find(name: str) -> Dataset:
    """Return the data set of that name, from datasets.toml or in COCO's layout in the data folder.

    Raises
    ------
    AscendetError
        `dataset-unknown`.
    """
    known = load()
    if name in known:
        return known[name]
    files = _annotation_files(name) if is_name(name) else []
    if not files:
        raise AscendetError(
            "dataset-unknown",
            f"there is no data set {name!r}",
            expected=", ".join([*known, *list_taken_in()]),
            found=f"DATASET={name}",
            hint=f"DATASET={next(iter(known))}; or take in your own: make data DATASET={name} FROM=<folder or zip>",
        )
    return Dataset(name=name, splits={file.stem.removeprefix("instances_"): 0 for file in files})


def _annotation_files(name: str) -> list[Path]:
    """Return the annotation files of a data set in the data folder; link it there first if it is only in the store."""
    pattern = f"{ANNOTATIONS}/instances_*.json"
    if not (assets.root() / name).is_dir() and any((assets.store() / name).glob(pattern)):
        assets.ensure_folder(name)  # another clone took it in, or a bundle contained it
    return sorted((assets.root() / name).glob(pattern))


def list_taken_in() -> list[str]:
    """Return the names of the data sets in the data folder or the store that are not in datasets.toml."""
    files = [
        file
        for home in (assets.root(), assets.store())
        for file in home.glob(f"*/{ANNOTATIONS}/instances_*.json")
    ]
    names = {file.parent.parent.name for file in files}
    return sorted(name for name in names - load().keys() if is_name(name))


def is_name(name: str) -> bool:
    """Return whether this is a valid name of a data set: letters, digits, `-`, `_`, `.`, with no sign at the beginning.

    >>> is_name("cells-2"), is_name("../cells"), is_name(".cells"), is_name("")
    (True, False, False, False)
    """
    return name.isascii() and name[:1].isalnum() and all(one.isalnum() or one in "-_." for one in name)


def require(name: str, *kinds: str) -> Path:
    """Return the folder of a data set, after checking that its splits of these kinds (or all splits) are complete.

    Raises
    ------
    AscendetError
        `dataset-unknown`. `data-missing`: a split or file is missing. `data-invalid`: a split has another number of
        pictures than in datasets.toml.
    """
    one = find(name)
    if lacking := one.missing(kinds):
        raise AscendetError(
            "data-missing",
            f"the data set {name} has no split to {'train on' if 'train' in lacking else 'validate with'}",
            expected=f"a split whose name begins with {' and one with '.join(kinds)}",
            found=", ".join(one.splits),
            hint=f"make data DATASET=<another name> FROM=<{name}'s origin> VAL=0.1"
            if name not in load()
            else f"DATASET={one.part_of or 'shapes'}",
        )
    return check(one, one.named(kinds))


def check(one: Dataset, splits: Sequence[str], folder: Path | None = None) -> Path:
    """Return the data set's folder, after checking annotations and pictures of these splits; see `require`.

    Without splits, only the annotations must exist.
    """
    folder = folder or one.folder
    wanted = [f"{ANNOTATIONS}/instances_{split}.json" for split in splits or one.splits] + list(splits)
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        others = (
            ""
            if one.generator
            else "\nor if you have it already: ASCENDET_DATA=<the folder that holds it>; "
            "or the data set that needs no network: make data DATASET=shapes"
        )
        raise AscendetError(
            "data-missing",
            f"the data set {one.home} is missing or incomplete",
            expected="\n".join(f"{paths.shorten(folder)}/{name}" for name in wanted),
            found="none of them" if len(missing) == len(wanted) else f"all except {', '.join(missing)}",
            hint=f"make data DATASET={_smallest(one, splits)}{others}",
        )
    for split in splits:
        found = count_pictures(folder / split)
        if one.counted and found != one.splits[split]:
            shown = paths.shorten(folder / split)
            raise invalid(
                folder / split,
                f"{one.splits[split]} pictures",
                f"{found} pictures",
                f"mv '{shown}' <elsewhere> && make data DATASET={one.name}",
            )
    return folder


def _smallest(one: Dataset, splits: Sequence[str]) -> str:
    """Return the name of the smallest data set in the same folder that has these splits."""
    fitting = [
        other for other in load().values() if other.home == one.home and set(splits) <= other.splits.keys()
    ]
    return min(fitting, key=lambda other: sum(other.splits.values()), default=one).name


def count_pictures(folder: Path) -> int:
    """Return the number of JPEG files in a split's folder; 0 if there is no such folder."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.endswith(".jpg") for entry in entries)


def invalid(path: Path, expected: str, found: str, hint: str) -> AscendetError:
    """Return the error for a file or folder of a data set that is incomplete or wrong."""
    return AscendetError(
        "data-invalid", f"{paths.shorten(path)} is not complete", expected=expected, found=found, hint=hint
    )
