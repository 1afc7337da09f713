"""`python -m cann_sim report`: merge counter files of one or several processes and print them as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Counters = dict[str, Any]

SCHEMA = 1
# Fields that identify an entry of each list; the other fields are numbers, which are added.
KEYS = {"host_syncs": ("line", "call"), "copies": ("line", "direction"), "signatures": ("op", "signature")}


class BadCountersError(Exception):
    """A file is not one that CANN_SIM_COUNTERS writes."""


def load(path: Path) -> Counters:
    """Return the counters in a file; raise BadCountersError if it is not a counter file of this schema."""
    try:
        counters: Counters = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCountersError(f"{path}: {error}") from None
    found = counters.get("schema") if isinstance(counters, dict) else None
    if found != SCHEMA:
        raise BadCountersError(
            f"{path}: schema {found}, expected {SCHEMA} (a file that CANN_SIM_COUNTERS wrote)"
        )
    return counters


def merge(files: Iterable[Counters]) -> Counters:
    """Return one set of counters for all processes of a job: the sum of counts, and the highest memory of each device.

    >>> one = {"launches": {"aten::mm": 2}, "memory": {"0": {"device_bytes_peak": 5}}, "steps": [{"launches": 2}]}
    >>> merged = merge([one, one])
    >>> merged["launches"], merged["memory"], merged["steps"]
    ({'aten::mm': 4}, {'0': {'device_bytes_peak': 5}}, [{'launches': 4}])
    """
    parts = list(files)
    merged: Counters = {
        "schema": SCHEMA,
        "simulated": "cann_sim",
        "ranks": [part.get("rank") for part in parts],
    }
    for name in ("launches", "cpu_fallbacks", "uncertain"):
        counts: dict[str, int] = {}
        for part in parts:
            for op, count in part.get(name, {}).items():
                counts[op] = counts.get(op, 0) + count
        merged[name] = dict(sorted(counts.items()))
    for name, keys in KEYS.items():
        merged[name] = merge_rows([row for part in parts for row in part.get(name, [])], keys)
    merged["collectives"] = add_fields(part.get("collectives", {}) for part in parts)
    merged["memory"] = {}
    for device, held in (item for part in parts for item in part.get("memory", {}).items()):
        highest = merged["memory"].setdefault(device, held)
        if held["device_bytes_peak"] > highest["device_bytes_peak"]:
            merged["memory"][device] = held
    steps = add_fields(dict(enumerate(part.get("steps", []))) for part in parts)
    merged["steps"] = [steps[i] for i in sorted(steps)]
    return merged


def merge_rows(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Merge rows with equal keys: add their numbers, but keep the lowest first_step."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if key not in found:
            found[key] = dict(row)
            continue
        for name in row.keys() - set(keys):
            combine = min if name == "first_step" else sum
            found[key][name] = combine((found[key][name], row[name]))
    return [found[key] for key in sorted(found)]


def add_fields(parts: Iterable[dict[Any, dict[str, int]]]) -> dict[Any, dict[str, int]]:
    """Add the numbers of all parts, {name: {field: number}}, field by field."""
    merged: dict[Any, dict[str, int]] = {}
    for part in parts:
        for name, fields in part.items():
            into = merged.setdefault(name, {})
            for field, value in fields.items():
                into[field] = into.get(field, 0) + value
    return merged


def table(counters: Counters, top: int = 15) -> str:
    """Return the counters as text, with at most `top` rows in each section, the largest first."""
    launches, steps = counters["launches"], counters["steps"]
    lines = [
        "counters of the simulated NPU (cann_sim): numbers of operations, not the time that a real NPU takes",
        f"{len(steps)} step(s), {sum(launches.values())} kernel launches of {len(launches)} operators, "
        f"{len(counters['signatures'])} signatures",
    ]
    sections: list[tuple[str, list[tuple[int, str]]]] = [
        ("kernel launches", [(count, op) for op, count in launches.items()]),
        ("host syncs", [(row["count"], f"{row['line']}  {row['call']}") for row in counters["host_syncs"]]),
        ("copied bytes", [
            (row["bytes"], f"{row['direction']} x{row['count']}  {row['line']}") for row in counters["copies"]
        ]),
        ("signatures first seen after step 0", [
            (row["count"], f"step {row['first_step']}  {row['op']}({row['signature']})")
            for row in counters["signatures"] if row["first_step"] > 0
        ]),
        ("collective bytes", [(row["bytes"], f"{op} x{row['count']}") for op, row in counters["collectives"].items()]),
        ("operators on the CPU", [(count, op) for op, count in counters["cpu_fallbacks"].items()]),
        ("calls that a card may refuse", [(count, rule) for rule, count in counters["uncertain"].items()]),
        ("peak bytes of a device", [
            (row["device_bytes_peak"], f"npu:{device}, in tensors {row['tensor_bytes_peak']}")
            for device, row in counters["memory"].items()
        ]),
    ]  # fmt: skip
    for title, rows in sections:
        if rows:
            lines += ["", f"{title}: {sum(number for number, _ in rows)}"]
            lines += [
                f"{number:>14}  {text}"
                for number, text in sorted(rows, key=lambda row: (-row[0], row[1]))[:top]
            ]
            lines += [f"{'':>14}  and {len(rows) - top} more"] if len(rows) > top else []
    return "\n".join(lines)
