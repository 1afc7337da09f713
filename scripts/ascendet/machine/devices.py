"""Check the variable DEVICES, the NPUs that a command may use.

It becomes ASCEND_RT_VISIBLE_DEVICES, where the runtime reports no mistake: a blank or an unknown id silently drops the
rest of the list, and ids that are not in ascending order are not supported. Therefore everything is checked here.
"""

from __future__ import annotations

import os
import sys

from ascendet.errors import AscendetError
from ascendet.machine import host

# cann_sim's own default.
SIMULATED_DEVICES = 8
# The most that a machine has: Atlas 900 A3 pods have 16 dies per node.
PER_NODE = 16


def parse(text: str, count: int) -> tuple[int, ...]:
    """Return the logical ids in `text`, in ascending order.

    Parameters
    ----------
    text
        Logical ids separated by commas, such as "6,7". Id 0 is the first device that the process could see.
    count
        The number of devices.

    Raises
    ------
    AscendetError
        `devices-invalid`: the text is empty, or an id is no integer, is repeated or is not below `count`.

    >>> parse("6,7", 8)
    (6, 7)
    >>> parse("7,6", 8)
    (6, 7)
    >>> parse("6,6", 8)
    Traceback (most recent call last):
    ascendet.errors.AscendetError: devices-invalid: DEVICES names device 6 twice
    """
    if not text.strip():
        raise _invalid("DEVICES is empty", text, count)
    ids: list[int] = []
    for part in text.split(","):
        # isdecimal() also accepts digits of other scripts; int() also accepts "+1", "1_0" and blanks.
        if not (part.isascii() and part.isdecimal()):
            raise _invalid(f"DEVICES must be device ids, but {part!r} is none", text, count)
        if int(part) in ids:
            raise _invalid(f"DEVICES names device {int(part)} twice", text, count)
        if int(part) >= count:
            raise _invalid(f"there is no device {int(part)}", text, count)
        ids.append(int(part))
    return tuple(sorted(ids))


def choose(text: str, count: int) -> tuple[int, ...]:
    """Return the ids in `text` as `parse` does, and print a line if they had to be sorted."""
    ids = parse(text, count)
    ordered = ",".join(map(str, ids))
    if ordered != text:
        print(f"DEVICES={text} is used as {ordered}: the runtime needs ascending ids", file=sys.stderr)
    return ids


def available(npu: host.NpuKind) -> int:
    """Return the number of devices; CANN_SIM_DEVICES sets it for simulated ones."""
    if npu == "real":
        return len(host.device_nodes())
    count = os.environ.get("CANN_SIM_DEVICES") or str(SIMULATED_DEVICES)
    if not count.isdecimal():
        raise AscendetError(
            "devices-invalid", "CANN_SIM_DEVICES must be a number", found=count, hint="unset CANN_SIM_DEVICES"
        )
    return int(count)


def _invalid(what: str, text: str, count: int) -> AscendetError:
    return AscendetError(
        "devices-invalid",
        what,
        expected=f"ids of 0 to {count - 1}, each once, separated by commas only",
        found=f"DEVICES={text}",
        hint="DEVICES=0 for one device, DEVICES=0,1 for two; make doctor shows the devices",
    )
