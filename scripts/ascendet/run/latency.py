"""The table of milliseconds by stage that `make infer` and `make speed` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Milliseconds = Mapping[str, float]


def describe_calls(
    label: str, distribution: Mapping[str, Any]
) -> dict[str, tuple[Milliseconds, float | None]]:
    """Return the rows of a distribution of calls: the median with the rate, and the 90th percentile."""
    rate = distribution["images_per_second"]
    return {
        f"{label}, p50 of {distribution['calls']}": (distribution["p50"], rate),
        f"{label}, p90": (distribution["p90"], None),
    }


def table(rows: Mapping[str, tuple[Milliseconds, float | None]]) -> str:
    """Return a table of milliseconds by stage, with images per second in the rows that have a rate.

    >>> stages = {"read": 1.0, "preprocess": 2.0, "device": 30.0, "postprocess": 4.0, "total": 37.0}
    >>> calls = {"calls": 5, "p50": stages, "p90": stages | {"device": 50.0, "total": 57.0}, "images_per_second": 27.0}
    >>> print(table({"first call": (stages, None), **describe_calls("steady", calls)}))
    ms                     read  preprocess      device postprocess       total
    first call              1.0         2.0        30.0         4.0        37.0
    steady, p50 of 5        1.0         2.0        30.0         4.0        37.0   27.00 img/s
    steady, p90             1.0         2.0        50.0         4.0        57.0
    """
    width = max(len("ms"), *map(len, rows)) + 1
    names = list(next(iter(rows.values()))[0])
    lines = [f"{'ms':<{width}}" + "".join(f"{name:>{_wide(name)}}" for name in names)]
    for label, (row, rate) in rows.items():
        shown = "".join(f"{row[name]:>{_wide(name)}.1f}" for name in names)
        lines.append(f"{label:<{width}}{shown}" + (f"{rate:>8.2f} img/s" if rate is not None else ""))
    return "\n".join(lines)


def _wide(name: str) -> int:
    return 10 if name == "read" else 12
