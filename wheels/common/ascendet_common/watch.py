"""Where the time of an inference goes: milliseconds of named pieces of work, the first call apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# read: file to pixels. preprocess: resize, pad, copy to the device, normalise. device: the model, with its NMS and the
# pasting of masks. postprocess: results to the host, masks to RLE. Each ends when the device is done.
STAGES = ("read", "preprocess", "device", "postprocess")


class Watch:
    """Milliseconds of named pieces of work, in `spent`.

    Parameters
    ----------
    synchronize
        Waits until the device has finished what it was given.
    """

    def __init__(self, synchronize: Callable[[], object]) -> None:
        self.spent: dict[str, float] = {}
        self._synchronize = synchronize

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a block, until the device has finished what it started."""
        start = time.perf_counter()
        yield
        self._synchronize()
        self.spent[name] = 1e3 * (time.perf_counter() - start)


def summarize(calls: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return the first call, in which a device compiles, and the median of the others, in milliseconds by stage.

    >>> steady = summarize([dict.fromkeys(STAGES, 9.0), dict.fromkeys(STAGES, 1.0)])["steady"]
    >>> steady["total"], steady["images_per_second"]
    (4.0, 250.0)
    """
    totals = [sum(call[name] for name in STAGES) for call in calls]
    steady = {name: statistics.median(call[name] for call in calls[1:]) for name in STAGES}
    total = statistics.median(totals[1:])
    return {
        "first_call": {**{name: calls[0][name] for name in STAGES}, "total": totals[0]},
        "steady": {**steady, "total": total, "images_per_second": 1e3 / total},
        "calls": len(calls) - 1,
    }
