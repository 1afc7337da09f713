"""The stacks: what `requirements/stacks.toml` says, checked and typed."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.errors import AscendetError


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A pinned source. `sdist` is the file name on the package index, `commit` a git commit; never both."""

    version: str
    sdist: str | None = None
    commit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One stack of `stacks.toml`; the fields have the file's names and order.

    `packages` is the name of its `*.in` file and that file's lock, which stacks may share.
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
        """The stack of that name, or `error[stack-unknown]` that lists the names there are."""
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
        """The SoC family's name in the tags of CANN images, "910b" or "a3"; no `soc` means the stack's first.

        CANN's operators, and from 8.5 on its compiler, come per family.

        Raises
        ------
        AscendetError
            `soc-unknown`: the stack is not meant for it.
        """
        if soc and soc not in self.soc:
            raise AscendetError(
                "soc-unknown",
                f"the {self.name} stack is not meant for this SoC",
                expected=", ".join(self.soc),
                found=f"SOC={soc}",
                hint=f"SOC={self.soc[0]}; npu-smi info shows the name, without `Ascend`",
            )
        return "a3" if (soc or self.soc[0]).startswith("Ascend910_") else "910b"

    def base_image(self, soc: str = "") -> str:
        """The CANN image for a SoC, by name and tag."""
        return self.image.replace("-910b-", f"-{self.chip(soc)}-")

    @property
    def pair(self) -> str:
        """How people name the versions that must fit: `torch 2.8.0 + torch_npu 2.8.0`."""
        return f"torch {self.torch} + torch_npu {self.torch_npu}"


@functools.cache
def load_all(path: Path | None = None) -> dict[str, Stack]:
    """All stacks, in the file's order.

    Raises
    ------
    AscendetError
        `stack-invalid`: not TOML, a field is missing, unknown or of the wrong type.
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
        raise ValueError(f"[stacks.{name}] unknown: {sorted(unknown)}, missing: {sorted(missing)}")
    values: dict[str, object] = {"name": name}
    for key, value in table.items():
        if key == "upstreams":
            values[key] = {upstream: Upstream(**pin) for upstream, pin in _mapping(name, key, value).items()}
        elif fields[key] == "str":
            if not isinstance(value, str):
                raise ValueError(f"[stacks.{name}] {key} must be a string, not {value!r}")
            values[key] = value
        else:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"[stacks.{name}] {key} must be a list of strings, not {value!r}")
            values[key] = tuple(value)
    return Stack(**values)  # type: ignore[arg-type]  # checked against the fields' types above


def _mapping(name: str, key: str, value: object) -> Mapping[str, dict[str, str]]:
    if not isinstance(value, dict):
        raise ValueError(f"[stacks.{name}] {key} must be a table, not {value!r}")
    return value
