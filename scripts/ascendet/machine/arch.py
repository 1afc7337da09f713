"""The table of architectures and of their names in docker, Debian, ELF files and MindCluster."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from ascendet.errors import AscendetError


@dataclass(frozen=True, kw_only=True)
class Arch:
    """An architecture's names: `name` is that of `uname` and of the locks, `docker` also Debian's."""

    name: str
    docker: str
    elf: str
    mindcluster: str


# The architectures that the locks cover.
KNOWN = {
    arch.name: arch
    for arch in (
        Arch(name="x86_64", docker="amd64", elf="EM_X86_64", mindcluster="x86"),
        Arch(name="aarch64", docker="arm64", elf="EM_AARCH64", mindcluster="arm"),
    )
}


def parse(text: str) -> str:
    """Return an architecture's name in the locks; an empty text means the architecture of this machine.

    Raises
    ------
    AscendetError
        `usage`: the locks do not cover this architecture.

    >>> parse("arm64"), parse("x86_64")
    ('aarch64', 'x86_64')
    """
    wanted = text or platform.machine()
    for arch in KNOWN.values():
        if wanted in (arch.name, arch.docker):
            return arch.name
    raise AscendetError(
        "usage",
        "ARCH must be an architecture that the locks cover",
        expected=", ".join(name for arch in KNOWN.values() for name in (arch.name, arch.docker)),
        found=wanted,
        hint=f"ARCH={next(iter(KNOWN))}",
    )
