"""Join a stack's locks to one file for pip, of all that the stack consists of, ours included, for both architectures.

With `--require-hashes --no-deps` nothing else than the listed bytes is installed, wherever pip finds them: a package of
the name of one of ours on a public index has another digest and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ascendet.containers.image import LEFT_OUT
from ascendet.core.stack import Stack
from ascendet.release.index import Entry
from ascendet.supply import lockfiles

# Hashes by name, version, and the architecture that the pin is for, "" for all.
Pins = dict[tuple[str, str, str], list[str]]


def join(stack: Stack, ours: Iterable[Entry], machines: Sequence[str]) -> Pins:
    """Return all that a stack consists of, sorted: its locks without what only builds and tests need, and our wheels.

    Parameters
    ----------
    stack
        The stack.
    ours
        The index's entries of the wheels that the stack consists of beside those of its locks.
    machines
        The architectures that it is for.
    """
    packages = lockfiles.hashes(lockfiles.packages_lock(stack.packages).read_text(encoding="utf-8"))
    pins: Pins = {
        (name, version, ""): hashes for (name, version), hashes in packages.items() if name not in LEFT_OUT
    }
    by_machine = {
        machine: lockfiles.hashes(lockfiles.torch_lock(stack, machine).read_text(encoding="utf-8"))
        for machine in machines
    }
    for (name, version), hashes in _merge(by_machine).items():
        for wanted, found in hashes.items():
            pins.setdefault((name, version, wanted), []).extend(found)
    for entry in ours:
        pins.setdefault((entry.project, entry.version, ""), []).append(f"sha256:{entry.sha256}")
    return {pin: sorted(set(hashes)) for pin, hashes in sorted(pins.items())}


def render(stack: Stack, pins: Pins, machines: Sequence[str]) -> str:
    """Return the text of `constraints/<stack>.txt`."""
    lines = [
        f"# {stack.name}: {stack.summary}. {stack.pair}, Python {stack.python}, {' and '.join(machines)}.",
        "# Use it with pip install --no-deps --require-hashes --only-binary=:all: (docs/release.md).",
    ]
    for (name, version, machine), hashes in pins.items():
        marker = f" ; platform_machine == '{machine}'" if machine else ""
        lines.append(f"{name}=={version}{marker} \\")
        lines += [f"    --hash={found}" + " \\" for found in hashes]
        lines[-1] = lines[-1].removesuffix(" \\")
    return "\n".join(lines) + "\n"


def _merge(
    by_machine: Mapping[str, Mapping[tuple[str, str], list[str]]],
) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Return hashes by pin and by the architecture that the pin is for, "" for all of them."""
    merged: dict[tuple[str, str], dict[str, list[str]]] = {}
    for pin in sorted({pin for pins in by_machine.values() for pin in pins}):
        having = [machine for machine, pins in by_machine.items() if pin in pins]
        everywhere = len(having) == len(by_machine)
        for machine in having:
            merged.setdefault(pin, {}).setdefault("" if everywhere else machine, []).extend(
                by_machine[machine][pin]
            )
    return merged
