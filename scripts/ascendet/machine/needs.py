"""A stack's requirements on the machine: the numbers that doctor reports and that builds check."""

from __future__ import annotations

import os
import platform
import re

# Measured: a stack's environment with torch's x86_64 CUDA build takes 7.0 GiB. pip's cache of the same wheels, data,
# our wheels and runs need more.
DISK_GIB = {"x86_64": 12, "aarch64": 6}
# Of these, what each further stack's environment and wheels need.
FURTHER_GIB = {"x86_64": 8, "aarch64": 3}
# For two compilers that build mmcv, or two training ranks, and the operating system.
MEMORY_GIB = 6
# PyTorch's headers need the C++17 of this GCC or newer (README of torch 2.8).
MIN_GCC = (9, 3)
# A limit, not a reservation: for the data loaders' batches and HCCL's buffers.
SHM_GIB_PER_DEVICE = 2


def disk_gib(stacks: int = 1) -> int:
    """Return the disk space that the environments of so many stacks need on this architecture, in GiB.

    For an unknown architecture it is the maximum.
    """
    machine = platform.machine()
    first = DISK_GIB.get(machine, max(DISK_GIB.values(), default=0))
    further = FURTHER_GIB.get(machine, max(FURTHER_GIB.values(), default=0))
    return first + (stacks - 1) * further if stacks else 0


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
