"""Measure where the time of an inference goes: milliseconds per stage, with the first call reported separately."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# read: file to pixels. preprocess: resize, pad, copy to the device, normalise. device: the model, with NMS and mask
# pasting. postprocess: copy results to the host, masks to RLE. Each stage ends with a device synchronisation.
STAGES = ("read", "preprocess", "device", "postprocess")


class Watch:
    """A stop-watch for named stages; `spent` holds their milliseconds.

    Parameters
    ----------
    synchronize
        Function that waits until the device has finished all submitted work.
    """

    def __init__(self, synchronize: Callable[[], object]) -> None:
        self.spent: dict[str, float] = {}
        self._synchronize = synchronize

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a block, including the device work that it started."""
        start = time.perf_counter()
        yield
        self._synchronize()
        self.spent[name] = 1e3 * (time.perf_counter() - start)


def summarize(calls: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Return milliseconds by stage: of the first call, in which a device compiles, and the median of the other calls.

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
