"""What a machine is, for the manifests of what ran on it: system, processor, memory, the NPUs' driver, CANN."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from ascendet.core import process
from ascendet.machine import host


def describe(npu: host.NpuKind, root: Path = Path("/")) -> dict[str, object]:
    """Return the facts of this machine; `root` replaces `/` in the files that say them.

    Returns
    -------
    dict[str, object]
        `arch`, `kernel`, `system` (the distribution), `cpu` (the model), `cores` (that this process may use), `memory`
        (bytes), `driver` (the NPU driver's version), `cann` (the toolkit's version, with real NPUs only), `revision`
        (of this repository, git's id, with `-dirty` where files differ). What is not known is left out.
    """
    tree = host.find_cann(root) if npu == "real" else None
    revision = process.ask(process.git("describe", "--always", "--dirty", "--abbrev=12"))
    facts = {
        "arch": platform.machine(),
        "kernel": platform.release(),
        "system": _field(root / "etc/os-release", r'^PRETTY_NAME="?([^"\n]*)'),
        "cpu": _field(root / "proc/cpuinfo", r"^model name\s*: *(.*)"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": int(_field(root / "proc/meminfo", r"^MemTotal: *(\d+) kB") or 0) * 1024,
        "driver": _field(root / "usr/local/Ascend/driver/version.info", r"^Version=(.*)"),
        "cann": tree.version if tree else None,
        "revision": (revision or "").strip(),
    }
    return {name: value for name, value in facts.items() if value}


def _field(file: Path, pattern: str) -> str | None:
    """Return what a pattern captures in a file, or None if that is absent or cannot be read."""
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None
