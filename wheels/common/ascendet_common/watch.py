"""Measure where the time of an inference goes: milliseconds per stage, with the first call reported separately."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

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


def summarize(calls: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return milliseconds by stage and in all: of the first call, in which a device compiles, and of the other calls.

    >>> latency = summarize([dict.fromkeys(STAGES, 9.0), dict.fromkeys(STAGES, 1.0), dict.fromkeys(STAGES, 2.0)])
    >>> latency["first_call"]["total"], latency["steady"]["p50"]["total"], latency["steady"]["p90"]["read"]
    (36.0, 6.0, 1.9)
    """
    return {"first_call": with_total(calls[0]), "steady": distribution(calls[1:])}


def distribution(calls: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the number of calls, the 50th and 90th percentile of the milliseconds by stage and in all, and the rate.

    A percentile between two calls is interpolated linearly. `images_per_second` is the number of calls by the seconds
    that they took together.
    """
    rows = [with_total(call) for call in calls]
    percentiles = {
        f"p{percent}": {name: float(np.percentile([row[name] for row in rows], percent)) for name in rows[0]}
        for percent in (50, 90)
    }
    seconds = sum(row["total"] for row in rows) / 1e3
    return {"calls": len(rows), **percentiles, "images_per_second": len(rows) / seconds}


def with_total(call: Mapping[str, float]) -> dict[str, float]:
    """Return a call's milliseconds by stage, and their sum as `total`."""
    stages = {name: value for name, value in call.items() if name != "total"}
    return {**stages, "total": sum(stages.values())}
