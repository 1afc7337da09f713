"""Counters of the simulated device: kernel launches, copies, synchronisations and memory of a program, counted exactly.

Counting is off until `start()` (or CANN_SIM_COUNTERS, see the README). Equal runs give equal counters.

    from cann_sim import counters
    counters.start()
    for batch in loader:
        train(batch)
        counters.step()
    print(counters.snapshot()["host_syncs"])
"""

from __future__ import annotations

import ctypes
import functools
import json
from typing import Any


@functools.cache
def _library() -> ctypes.CDLL:
    """Return the process's libascendcl: the one that torch_npu loaded, else the one on the library path."""
    library = ctypes.CDLL("libascendcl.so")
    try:
        library.cann_sim_counters_snapshot.restype = ctypes.c_size_t
    except AttributeError:
        raise RuntimeError(
            "libascendcl.so of this process is not cann_sim's, which alone has counters"
        ) from None
    library.cann_sim_counters_snapshot.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    return library


def start() -> None:
    """Set all counters to zero and start counting."""
    _library().cann_sim_counters_start()


def stop() -> None:
    """Stop counting; `snapshot()` still returns the counts so far."""
    _library().cann_sim_counters_stop()


def step() -> None:
    """Begin the next step, which gets its own entry in `snapshot()["steps"]`."""
    _library().cann_sim_counters_step()


def snapshot() -> dict[str, Any]:
    """Return the current counters, in the schema of the file that CANN_SIM_COUNTERS names (see the README)."""
    library = _library()
    size = 0
    while True:
        text = ctypes.create_string_buffer(size + 1)
        length = library.cann_sim_counters_snapshot(text, len(text))
        if length <= size:
            counters: dict[str, Any] = json.loads(text.value)
            return counters
        size = length  # another thread may count meanwhile: try again until the text fits
