"""The data sets: what `requirements/datasets.toml` says, and where each is."""

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
    """An entry of datasets.toml, with the file's field names; or a data set that was taken in (nothing but splits)."""

    name: str
    classes: int = 0
    splits: Mapping[str, int] = field(default_factory=dict)
    archives: Mapping[str, str] = field(default_factory=dict)
    generator: str = ""
    seed: int = 0
    part_of: str = ""
    pictures: str = ""

    @property
    def home(self) -> str:
        """The name of its folder."""
        return self.part_of if self.part_of and not self.pictures else self.name

    @property
    def folder(self) -> Path:
        """Its folder as training sees it."""
        return assets.root() / self.home

    @property
    def counted(self) -> bool:
        """Whether a split with another number of pictures is not whole: what we fetch, not what we or others make."""
        return bool(self.archives or self.part_of)

    def named(self, kinds: Sequence[str] = ()) -> list[str]:
        """Return the splits whose names begin with one of `kinds` ("train", "val"); all of them without any."""
        return [split for split in self.splits if split.startswith(tuple(kinds) or "")]

    def missing(self, kinds: Sequence[str]) -> list[str]:
        """Return those of `kinds` for which the data set has no split."""
        return [kind for kind in kinds if not self.named([kind])]


def load() -> dict[str, Dataset]:
    """Return the entries of datasets.toml by name.

    Raises
    ------
    AscendetError
        `data-lock-invalid`: it cannot be read, or names what is not there.
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
        raise ValueError(f"[{one.name}] is a part of {one.part_of!r}, which is not here")
    if not one.splits or not all(name.startswith(("train", "val")) for name in one.splits):
        raise ValueError(f"[{one.name}] needs splits whose names begin with train and val")
    if sum(map(bool, (one.archives, one.generator, one.part_of))) != 1:
        raise ValueError(f"[{one.name}] needs one of archives, generator, part_of")


def find(name: str) -> Dataset:
    """Return the data set of that name: of datasets.toml, or any in COCO's layout in the data folder.

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
            expected=", ".join([*known, *taken_in()]),
            found=f"DATASET={name}",
            hint=f"DATASET={next(iter(known))}; or take in your own: make data DATASET={name} FROM=<folder or zip>",
        )
    return Dataset(name=name, splits={file.stem.removeprefix("instances_"): 0 for file in files})


def _annotation_files(name: str) -> list[Path]:
    """Return the annotation files of a data set in the data folder, or in the store, from where it gets its link."""
    pattern = f"{ANNOTATIONS}/instances_*.json"
    if not (assets.root() / name).is_dir() and any((assets.store() / name).glob(pattern)):
        assets.place(name)  # another clone took it in, or a bundle brought it
    return sorted((assets.root() / name).glob(pattern))


def taken_in() -> list[str]:
    """Return the names of the data sets in the data folder, or in the store, that are not in datasets.toml."""
    files = [
        file
        for home in (assets.root(), assets.store())
        for file in home.glob(f"*/{ANNOTATIONS}/instances_*.json")
    ]
    names = {file.parent.parent.name for file in files}
    return sorted(name for name in names - load().keys() if is_name(name))


def is_name(name: str) -> bool:
    """Return whether this can be a data set's name: of letters, digits, `-`, `_` and `.`, of which it begins with none.

    >>> is_name("cells-2"), is_name("../cells"), is_name(".cells"), is_name("")
    (True, False, False, False)
    """
    return name.isascii() and name[:1].isalnum() and all(one.isalnum() or one in "-_." for one in name)


def require(name: str, *kinds: str) -> Path:
    """Return the folder of a data set after a look at it: its splits of these kinds, or all of them, are there, whole.

    Raises
    ------
    AscendetError
        `dataset-unknown`; `data-missing` lists what is not there; `data-invalid` where a split has another number of
        pictures than datasets.toml says.
    """
    one = find(name)
    if lacking := one.missing(kinds):
        raise AscendetError(
            "data-missing",
            f"{name} has nothing to {'train on' if 'train' in lacking else 'validate with'}",
            expected=f"a split whose name begins with {' and one with '.join(kinds)}",
            found=", ".join(one.splits),
            hint=f"make data DATASET=<another name> FROM=<{name}'s origin> VAL=0.1"
            if name not in load()
            else f"DATASET={one.part_of or 'shapes'}",
        )
    return check(one, one.named(kinds))


def check(one: Dataset, splits: Sequence[str], folder: Path | None = None) -> Path:
    """Return the data set's folder, with annotations and pictures of these splits; see `require`.

    Without splits only the annotations have to be there.
    """
    folder = folder or one.folder
    wanted = [f"{ANNOTATIONS}/instances_{split}.json" for split in splits or one.splits] + list(splits)
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        others = (
            ""
            if one.generator
            else "\nor with what you have: ASCENDET_DATA=<folder that holds it>; "
            "or the one that needs no network: make data DATASET=shapes"
        )
        raise AscendetError(
            "data-missing",
            f"the data set {one.home} is not here",
            expected="\n".join(f"{paths.shorten(folder)}/{name}" for name in wanted),
            found="none of them" if len(missing) == len(wanted) else f"without {', '.join(missing)}",
            hint=f"make data DATASET={_smallest(one, splits)}{others}",
        )
    for split in splits:
        found = count_pictures(folder / split)
        if one.counted and found != one.splits[split]:
            shown = paths.shorten(folder / split)
            raise invalid(
                folder / split,
                f"{one.splits[split]} images",
                f"{found} images",
                f"mv '{shown}' <elsewhere> && make data DATASET={one.name}",
            )
    return folder


def _smallest(one: Dataset, splits: Sequence[str]) -> str:
    """Return the entry of the table in the same folder with the fewest pictures that has these splits."""
    fitting = [
        other for other in load().values() if other.home == one.home and set(splits) <= other.splits.keys()
    ]
    return min(fitting, key=lambda other: sum(other.splits.values()), default=one).name


def count_pictures(folder: Path) -> int:
    """Return the number of JPEG files in a split's folder; 0 where there is none."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.endswith(".jpg") for entry in entries)


def invalid(path: Path, expected: str, found: str, hint: str) -> AscendetError:
    """Return the error for a data set of which something is not as it should be."""
    return AscendetError(
        "data-invalid", f"{paths.shorten(path)} is not complete", expected=expected, found=found, hint=hint
    )
