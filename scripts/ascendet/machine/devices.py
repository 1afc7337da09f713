"""The variable DEVICES: which NPUs a command may use.

ASCEND_RT_VISIBLE_DEVICES, which it becomes, forgives nothing and reports nothing: a blank or an unknown id
silently drops the rest of the list, and ids that do not ascend are not supported. So all is checked here.
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
    """The logical ids in `text`, ascending.

    Parameters
    ----------
    text
        Ids separated by commas, such as "6,7". Logical ids: the first device that the process could see is 0.
    count
        How many devices there are.

    Raises
    ------
    AscendetError
        `devices-invalid`: empty, not integers, repeated, or not below `count`.

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
        # isdecimal() alone accepts other scripts' digits, int() alone accepts "+1", "1_0" and blanks.
        if not (part.isascii() and part.isdecimal()):
            raise _invalid(f"DEVICES has {part!r} where a device id must be", text, count)
        if int(part) in ids:
            raise _invalid(f"DEVICES names device {int(part)} twice", text, count)
        if int(part) >= count:
            raise _invalid(f"there is no device {int(part)}", text, count)
        ids.append(int(part))
    return tuple(sorted(ids))


def choose(text: str, count: int) -> tuple[int, ...]:
    """The ids in `text` out of `count` devices; says so where it had to sort them."""
    ids = parse(text, count)
    ordered = ",".join(map(str, ids))
    if ordered != text:
        print(f"DEVICES={text} is used as {ordered}: the runtime takes ascending ids only", file=sys.stderr)
    return ids


def available(npu: host.NpuKind) -> int:
    """How many devices there are."""
    if npu == "real":
        return len(host.device_nodes())
    count = os.environ.get("CANN_SIM_DEVICES") or str(SIMULATED_DEVICES)
    if not count.isdecimal():
        raise AscendetError(
            "devices-invalid", "CANN_SIM_DEVICES is no number", found=count, hint="unset CANN_SIM_DEVICES"
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
