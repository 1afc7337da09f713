"""Read `wheels/<name>/wheel.toml`, the description of a wheel that we build."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ascendet import paths
from ascendet.errors import AscendetError


@dataclass(frozen=True, kw_only=True)
class Native:
    """The `[native]` table: how the wheel's extension module is compiled.

    Attributes
    ----------
    module
        The extension module, such as "package._ext".
    guard
        A file beside wheel.toml that becomes `_built_against.py` in the module's package; None if there is none.
    flags, header, units
        Compiler flags, the precompiled header's includes, and the sources of each translation unit.
    """

    module: str
    guard: str | None
    flags: tuple[str, ...]
    header: tuple[str, ...]
    units: Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The `[audit]` table: what the audit checks in addition to wheels/policy.toml.

    Attributes
    ----------
    extension
        The beginning of the shared library's path in the wheel; None for a wheel without one.
    operators
        NPU operators: functions that the shared library must define.
    search_paths
        Search paths that the wheel's libraries may have, relative to them.
    """

    extension: str | None = None
    operators: tuple[str, ...] = ()
    search_paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The content of a wheel.toml.

    Attributes
    ----------
    version
        The wheel's version; `{torch_npu}` stands for the stack's torch_npu version.
    upstream, path
        Where the source is: one of the stack's upstreams, or a folder below `home`. Exactly one of the two is set.
    patches
        The series in `patches/` to apply, if any.
    environ
        Environment variables for the source's setup.py.
    environment
        Whether the wheel is part of the stack's environment, and is therefore built before all others.
    family
        The `[family]` table, if the wheel is a family of models; see `ascendet.run.family`.
    """

    name: str
    home: Path
    version: str
    upstream: str | None
    path: str | None
    patches: str | None
    environ: Mapping[str, str]
    native: Native | None
    audit: Audit = field(default_factory=Audit)
    environment: bool = False
    family: Mapping[str, object] | None = None

    @classmethod
    def load(cls, name: str) -> Spec:
        """Return the wheel of that name.

        Raises
        ------
        AscendetError
            `wheel-unknown`, `wheel-invalid`.
        """
        path = paths.WHEELS / name / "wheel.toml"
        if name not in known():
            raise AscendetError(
                "wheel-unknown",
                f"there is no wheel {name!r}",
                expected=f"one of {', '.join(known())}",
                hint="make help",
            )
        try:
            spec, unknown = cls._parse(path)
        except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
            raise _invalid(path, repr(error)) from error
        if unknown or spec.name != name or (spec.upstream is None) == (spec.path is None):
            raise _invalid(
                path,
                f"unknown keys: {unknown}; name: {spec.name}; [source] must have either upstream or path",
            )
        return spec

    @classmethod
    def _parse(cls, path: Path) -> tuple[Spec, list[str]]:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        source = table.pop("source")
        compiled = table.pop("native", None)
        promised = table.pop("audit", {})
        native = None
        if compiled is not None:
            native = Native(
                module=compiled.pop("module"),
                guard=compiled.pop("guard", None),
                flags=tuple(compiled.pop("flags", ())),
                header=tuple(compiled.pop("header", ())),
                units=compiled.pop("units", {}),
            )
        spec = cls(
            name=table.pop("name"),
            home=path.parent,
            version=table.pop("version"),
            upstream=source.pop("upstream", None),
            path=source.pop("path", None),
            patches=table.pop("patches", None),
            environ=table.pop("env", {}),
            native=native,
            audit=Audit(
                extension=promised.pop("extension", None),
                operators=tuple(promised.pop("operators", ())),
                search_paths=tuple(promised.pop("search_paths", ())),
            ),
            environment=table.pop("environment", False),
            family=table.pop("family", None),
        )
        return spec, [*table, *source, *(compiled or {}), *promised]


def known() -> list[str]:
    """Return the names of the wheels that we build."""
    return sorted(path.parent.name for path in paths.WHEELS.glob("*/wheel.toml"))


def _invalid(path: Path, why: str) -> AscendetError:
    name = paths.shorten(path)
    return AscendetError("wheel-invalid", f"{name} cannot be read", found=why, hint=f"edit {name}")
