"""Build, or take from the cache, and audit the wheels of a release."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import files, manifest
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.envs import cann_wheel, env
from ascendet.errors import AscendetError
from ascendet.wheels import audit, cross, sdists, toolchain, wheel


@dataclass(frozen=True, kw_only=True)
class Built:
    """A wheel of the release.

    Attributes
    ----------
    path
        The file, in its stage folder.
    wheel
        The folder below wheels/ that it was built from; None for a locked package whose source the index has alone.
    machine
        The architecture that it is for; None for any.
    stacks
        The names of the stacks that have it in their set.
    inputs
        What it was built from, from the manifest of its stage folder.
    audit
        The report of the audit.
    """

    path: Path
    wheel: str | None
    machine: str | None
    stacks: tuple[str, ...]
    inputs: Mapping[str, Any]
    audit: Mapping[str, Any]


def collect(stacks: Sequence[Stack], machines: Sequence[str]) -> list[Built]:
    """Return the wheels of all stacks for all architectures, each file once, and print a line for each.

    Pure wheels come first, since they are quick and need every source: what cannot be fetched is known early.

    Raises
    ------
    AscendetError
        `compiler-missing`: this machine cannot compile for one of the architectures. `release-invalid`: two stacks have
        different files of one name. The errors of `wheel.build` and of the audit.
    """
    for wanted in machines:
        toolchain.find(wanted)
    jobs = [
        (compiled, stack, name, machine)
        for compiled in (False, True)
        for stack in stacks
        for name, machine in _wanted(stack, machines, compiled=compiled)
    ]
    found: dict[str, Built] = {}
    for number, (compiled, stack, name, machine) in enumerate(jobs, start=1):
        env.ensure_base(stack, "sim" if compiled else "real")  # pure wheels are built without any CANN
        for path in [wheel.build(name, stack, machine)] if name else sdists.build(stack):
            known = found.get(path.name)
            found[path.name] = same(known, path, stack) if known else take(path, stack, name, machine)
            size = path.stat().st_size / 1e6
            print(f"[{number}/{len(jobs)}] {stack.name}: {path.name}, {size:.2f} MB", flush=True)
    return [_audited(found[name]) for name in sorted(found)]


def _wanted(
    stack: Stack, machines: Sequence[str], *, compiled: bool
) -> Iterator[tuple[str | None, str | None]]:
    """Yield name and architecture of a stack's wheels; the name None stands for what its locks have as source."""
    for name in (cann_wheel.NAME, *stack.wheels):
        spec = Spec.load(name)
        if compiled == bool(spec.native or spec.environment):
            yield from ((name, machine) for machine in (machines if compiled else [None]))
    if not compiled:
        yield None, None


def same(known: Built, path: Path, stack: Stack) -> Built:
    """Return a wheel with one more stack; raise `release-invalid` if that stack's file of this name has other bytes."""
    first, second = files.digest(known.path), files.digest(path)
    if first != second:
        raise AscendetError(
            "release-invalid",
            f"{path.name} is two different files, and an index can hold only one of them",
            expected=f"{first} as for {known.stacks[0]}",
            found=f"{second} for {stack.name}",
            hint=f"give one of them another version in wheels/{known.wheel}/wheel.toml, or release one STACK alone",
        )
    return dataclasses.replace(known, stacks=(*known.stacks, stack.name))


def take(path: Path, stack: Stack, name: str | None, machine: str | None) -> Built:
    """Return a wheel of a stage folder; raise `release-invalid` if the file is not the one that was built."""
    stated = manifest.read(path.parent) or {}
    inputs, outputs = stated.get("inputs"), stated.get("outputs")
    damaged = manifest.damaged(path.parent, outputs if isinstance(outputs, dict) else {path.name: ""})
    if damaged:
        raise AscendetError(
            "release-invalid",
            f"{paths.shorten(path)} is not the file that was built",
            expected=f"the files of {manifest.MANIFEST} beside it",
            found="\n".join(damaged),
            hint=f"rm -r {paths.shorten(path.parent)} && make release",
        )
    return Built(
        path=path,
        wheel=name,
        machine=machine,
        stacks=(stack.name,),
        inputs=inputs if isinstance(inputs, dict) else {},
        audit={},
    )


def _audited(built: Built) -> Built:
    """Return a wheel with the report of its audit; one for any architecture is audited against this machine's."""
    stack = Stack.load(built.stacks[0])
    env.ensure_base(stack)
    target = cross.target(stack, built.machine or platform.machine())
    report = audit.audit(built.path, audit.provider(stack, target))
    audit.require_sound(report)
    return dataclasses.replace(built, audit=report)
