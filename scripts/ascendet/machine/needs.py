"""What a machine needs for a stack: the numbers that doctor reports and that builds insist on."""

from __future__ import annotations

import os
import platform
import re

# Measured: a stack's environment with torch's x86_64 CUDA build unpacks to 7.0 GiB; pip's cache of the same wheels,
# data, our wheels and runs come on top.
DISK_GIB = {"x86_64": 12, "aarch64": 6}
# Two compilers at work on mmcv, or two training ranks, beside the system.
MEMORY_GIB = 6
# PyTorch's headers need C++17 as of this GCC (README of torch 2.8).
MIN_GCC = (9, 3)
# A limit and no reservation: batches that data loaders pass on, HCCL's buffers.
SHM_GIB_PER_DEVICE = 2


def disk_gib() -> int:
    """Return how much space an environment needs here, in GiB; for an unknown architecture the most."""
    return DISK_GIB.get(platform.machine(), max(DISK_GIB.values(), default=0))


def compiler() -> str:
    """Return the command of this machine's C++ compiler: `$CXX`, else g++."""
    return os.environ.get("CXX") or "g++"


def parse_gcc(version: str) -> tuple[int, ...] | None:
    r"""Return the numbers of what `-dumpfullversion` printed; None where that is no version.

    >>> parse_gcc("12.2.0\n"), parse_gcc("9"), parse_gcc("clang")
    ((12, 2, 0), (9,), None)
    """
    text = version.strip()
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d+(\.\d+)*", text) else None
