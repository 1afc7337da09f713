"""Refuse another torch / torch_npu pair before mmcv._ext is loaded.

Ascendet puts this file into its NPU build of mmcv as mmcv/_built_against.py, and `_built_against.json` beside it.
mmcv._ext calls torch_npu's C++ functions, which change between releases. Loaded with another pair it fails with an
undefined symbol at best; at worst it loads, and reads memory that has another layout.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

# The parts of the pair. torch's local version (+cpu, +cu128) is a way of packaging: the C++ interface is the same.
PAIR = ("torch", "torch_npu")


def check() -> None:
    """Raise ImportError unless the installed pair is the one that this mmcv was built against."""
    built = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    found = {name: installed(name) for name in PAIR}
    if all(found[name] == built[name] for name in PAIR):
        return
    expected = ", ".join(f"{name} {built[name]}" for name in PAIR)
    actual = ", ".join(f"{name} {found[name] or 'not installed'}" for name in PAIR)
    wanted = " ".join(f"{name}=={built[name]}" for name in PAIR)
    raise ImportError(
        f"error[wheel-mismatch]: mmcv {built['version']} is built against another torch / torch_npu pair\n"
        f"  expected: {expected}\n"
        f"  found:    {actual}\n"
        f"  next:     pip install {wanted}, or in Ascendet: make mmcv-wheel STACK=<the stack of your pair>",
        name="mmcv._ext",
    )


def installed(name: str) -> str | None:
    """Return the public version of an installed project, or None."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    return version.partition("+")[0]


class Guard:
    """A module finder that finds nothing, but checks the pair when anyone imports mmcv._ext."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Check the pair before the import system looks for the shared library."""
        if name == "mmcv._ext":
            check()


sys.meta_path.insert(0, Guard)
