"""Read and check the stacks in `requirements/stacks.toml`."""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.errors import AscendetError


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A pinned source. If only `version` is set, it is a package of the stack's *.in file.

    The content is verified, wherever it comes from (see `ascendet.supply.sources`).

    Attributes
    ----------
    sdist
        The file name of a source distribution on the package index, whose SHA-256 is locked.
    commit
        A git commit; the full id if the commit is to be fetched.
    blobs
        A file below requirements/ with a line "<git blob id>  <path>" for each file of the source.
    places
        Other places of the source, in the order to try: addresses of git repositories (….git) and archives (….tar.gz).
    """

    version: str
    sdist: str | None = None
    commit: str | None = None
    blobs: str | None = None
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError if the content could not be verified."""
        if self.commit and not re.fullmatch(r"[0-9a-f]{7,40}", self.commit):
            raise ValueError(f"not a git commit: {self.commit!r}")
        if self.sdist and self.commit and not self.blobs:
            raise ValueError(
                f"{self.sdist} cannot be compared with a commit: give either sdist or commit, or add blobs"
            )
        if self.places and not (self.commit or self.blobs):
            raise ValueError("places need a commit or blobs, with which their content is compared")
        for place in self.places:
            if not place.endswith((".git", ".tar.gz")):
                raise ValueError(f"{place!r} is neither a git repository (….git) nor an archive (….tar.gz)")
            if place.endswith(".tar.gz") and not self.blobs:
                raise ValueError(f"{place!r} needs blobs, with which its content is compared")

    @property
    def packaged(self) -> bool:
        """Whether the source is one of the stack's locked packages."""
        return not (self.sdist or self.commit or self.blobs)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack of `stacks.toml`; the fields have the names and the order that they have there.

    `packages` is the name of the stack's `*.in` file and of its lock, which several stacks may share.
    """

    name: str
    summary: str
    cann: str
    image: str
    python: str
    torch: str
    torchvision: str
    torch_npu: str
    packages: str
    wheels: tuple[str, ...]
    models: tuple[str, ...]
    weights: tuple[str, ...]
    soc: tuple[str, ...]
    upstreams: Mapping[str, Upstream]

    @classmethod
    def load(cls, name: str) -> Stack:
        """Return the stack of that name; raise `stack-unknown`, with all names, if there is none."""
        stacks = load_all()
        if name not in stacks:
            known = ", ".join(stacks)
            raise AscendetError(
                "stack-unknown",
                f"there is no stack {name!r}",
                expected=f"one of {known}",
                found=name,
                hint=f"STACK={next(iter(stacks))}",
            )
        return stacks[name]

    def chip(self, soc: str = "") -> str:
        """Return the SoC family's name in the tags of CANN images, "910b" or "a3", for `soc` or the stack's first SoC.

        CANN's operators, and from 8.5 on its compiler, are packaged for one family each.

        Raises
        ------
        AscendetError
            `soc-unknown`: the stack does not support this SoC.
        """
        if soc and soc not in self.soc:
            raise AscendetError(
                "soc-unknown",
                f"the {self.name} stack does not support this SoC",
                expected=", ".join(self.soc),
                found=f"SOC={soc}",
                hint=f"SOC={self.soc[0]}; npu-smi info shows the name without `Ascend`",
            )
        return "a3" if (soc or self.soc[0]).startswith("Ascend910_") else "910b"

    def base_image(self, soc: str = "") -> str:
        """Return the name and tag of the CANN image for a SoC."""
        return self.image.replace("-910b-", f"-{self.chip(soc)}-")

    @property
    def pair(self) -> str:
        """The versions that must fit together, as text: `torch 2.8.0 + torch_npu 2.8.0`."""
        return f"torch {self.torch} + torch_npu {self.torch_npu}"


@functools.cache
def load_all(path: Path | None = None) -> dict[str, Stack]:
    """Return all stacks by name, in the file's order.

    Raises
    ------
    AscendetError
        `stack-invalid`: the file is not TOML, or a field is missing, unknown or of the wrong type.
    """
    path = path or paths.REQUIREMENTS / "stacks.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["stacks"]
        return {name: _parse(name, table) for name, table in tables.items()}
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise AscendetError(
            "stack-invalid",
            f"{paths.shorten(path)} cannot be read",
            found=str(error),
            hint=f"edit {paths.shorten(path)}",
        ) from error


def _parse(name: str, table: Mapping[str, object]) -> Stack:
    fields = {field.name: field.type for field in dataclasses.fields(Stack)}
    unknown = table.keys() - fields.keys()
    missing = fields.keys() - table.keys() - {"name"}
    if unknown or missing:
        raise ValueError(
            f"[stacks.{name}] unknown fields: {sorted(unknown)}, missing fields: {sorted(missing)}"
        )
    values: dict[str, object] = {"name": name}
    for key, value in table.items():
        if key == "upstreams":
            values[key] = {
                upstream: Upstream(**{**pin, "places": tuple(pin.get("places", ()))})
                for upstream, pin in _mapping(name, key, value).items()
            }
        elif fields[key] == "str":
            if not isinstance(value, str):
                raise ValueError(f"[stacks.{name}] {key} must be a string, not {value!r}")
            values[key] = value
        else:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"[stacks.{name}] {key} must be a list of strings, not {value!r}")
            values[key] = tuple(value)
    return Stack(**values)  # type: ignore[arg-type]  # checked against the fields' types above


def _mapping(name: str, key: str, value: object) -> Mapping[str, dict[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"[stacks.{name}] {key} must be a table, not {value!r}")
    return value
