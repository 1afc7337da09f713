"""Architectures: the one table of what they are called, by whom."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ascendet.errors import AscendetError


@dataclass(frozen=True, kw_only=True)
class Arch:
    """An architecture's names: `name` in the locks and of `uname`, then docker's and Debian's, ELF's, MindCluster's."""

    name: str
    docker: str
    elf: str
    mindcluster: str


# What the locks are for.
KNOWN = {
    arch.name: arch
    for arch in (
        Arch(name="x86_64", docker="amd64", elf="EM_X86_64", mindcluster="x86"),
        Arch(name="aarch64", docker="arm64", elf="EM_AARCH64", mindcluster="arm"),
    )
}


def parse(text: str) -> str:
    """Return an architecture's name in the locks; an empty text means this machine's.

    Raises
    ------
    AscendetError
        `usage`: it is none that is locked.

    >>> parse("arm64"), parse("x86_64")
    ('aarch64', 'x86_64')
    """
    wanted = text or platform.machine()
    for arch in KNOWN.values():
        if wanted in (arch.name, arch.docker):
            return arch.name
    raise AscendetError(
        "usage",
        "ARCH must be an architecture that is locked",
        expected=", ".join(name for arch in KNOWN.values() for name in (arch.name, arch.docker)),
        found=wanted,
        hint=f"ARCH={next(iter(KNOWN))}",
    )
