"""A stack's requirements on the machine: the numbers that doctor reports and that builds check."""

from __future__ import annotations

import os
import platform
import re

# Measured: a stack's environment with torch's x86_64 CUDA build takes 7.0 GiB, those of both models' stacks 9.6 GiB, as
# they share most packages. Data, our wheels, runs and OMs need more.
DISK_GIB = {"x86_64": 12, "aarch64": 6}
# Where another stack's environment is there already: two torches have 2.3 GiB that they do not share.
FURTHER_GIB = 4
# For two compilers that build mmcv, or two training ranks, and the operating system.
MEMORY_GIB = 6
# PyTorch's headers need the C++17 of this GCC or newer (README of torch 2.8).
MIN_GCC = (9, 3)
# A limit, not a reservation: for the data loaders' batches and HCCL's buffers.
SHM_GIB_PER_DEVICE = 2


def disk_gib(*, further: bool = False) -> int:
    """Return the disk space that an environment needs on this architecture, in GiB; the maximum for an unknown one.

    `further` says that it is not the first one here.
    """
    first = DISK_GIB.get(platform.machine(), max(DISK_GIB.values(), default=0))
    return min(first, FURTHER_GIB) if further else first


def compiler() -> str:
    """Return the command of this machine's C++ compiler: `$CXX`, else g++."""
    return os.environ.get("CXX") or "g++"


def parse_gcc(version: str) -> tuple[int, ...] | None:
    r"""Return the numbers of the version that `-dumpfullversion` printed, or None if it is no version.

    >>> parse_gcc("12.2.0\n"), parse_gcc("9"), parse_gcc("clang")
    ((12, 2, 0), (9,), None)
    """
    text = version.strip()
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+(\.\d+)*", text) else None
