"""Counters that programs on the simulated devices leave: launches, waits of the host, copies, operators on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.report.commands import Subject
from ascendet.report.reading import Json, Reader

_FILES = "counters*.json"  # one for each rank


def command(subject: Subject, home: Path) -> str:
    """Return the command that counts what an evaluation asks of the device, into the folder that `gather` reads."""
    return f"CANN_SIM_COUNTERS=$PWD/{paths.shorten(home)}/counters.json {subject.make('eval')}"


def gather(home: Path, make: str, reader: Reader) -> Json | None:
    """Return the counters in a folder, added up over its files, or None if there are none; `make` makes them anew.

    Returns
    -------
    Json | None
        `ranks`, `launches`, `signatures` and `steps` as numbers; `waits` as (line, call, count), the most first;
        `copies` by direction with `count` and `bytes`; `fallbacks` by operator.
    """
    files = sorted(home.glob(_FILES))
    parts = [part for file in files if (part := reader.table("waits", file, make)) is not None]
    if not parts:
        return None
    merged: dict[str, Any] = {
        "ranks": len(parts),
        "launches": 0,
        "signatures": 0,
        "steps": 0,
        "waits": {},
        "copies": {},
        "fallbacks": {},
    }
    with reader.using("waits", files[0], make):
        for part in parts:
            merged["launches"] += sum(part["launches"].values())
            merged["signatures"] += len(part["signatures"])
            merged["steps"] = max(merged["steps"], len(part.get("steps") or ()))
            for row in part["host_syncs"]:
                key = json.dumps([str(row["line"]), str(row["call"])])
                merged["waits"][key] = merged["waits"].get(key, 0) + row["count"]
            for row in part["copies"]:
                known = merged["copies"].setdefault(str(row["direction"]), {"count": 0, "bytes": 0})
                known["count"] += row["count"]
                known["bytes"] += row["bytes"]
            for name, count in part["cpu_fallbacks"].items():
                merged["fallbacks"][name] = merged["fallbacks"].get(name, 0) + count
        waits = [(*json.loads(key), count) for key, count in merged["waits"].items()]
        return merged | {"waits": sorted(waits, key=lambda row: (-row[2], row[0]))}
    return None
