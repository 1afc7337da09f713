"""Ranks of a training that end together: after the same step, with one message."""

from __future__ import annotations

import signal
from types import FrameType

from torch import distributed

_LAST, _MESSAGE = "ascendet/last", "ascendet/loss"


class Interruption:
    """Take SIGTERM (an operator's, Kubernetes' pre-emption, torchrun's), and agree on the step to end after.

    Ranks get the signal at different moments, or on one machine only, and must end after the same step: none may wait
    for another's gradients. The first one to see it names, in the process group's store, the second end of a step from
    now. No rank can be past that: its last forward pass needed weights from the step before, and these the gradients of
    the rank that had named it. It costs a question to the store per step and nothing on the device.
    """

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def is_last(self, done: int, length: int = 1) -> bool:
        """Return whether the step that ends with `done` is the last one; steps are of `length` in its unit."""
        if world_size() == 1:
            return self.asked
        store = distributed.distributed_c10d._get_default_store()
        if self.asked:
            store.compare_set(_LAST, "", str(done + 2 * length))
        return bool(store.check([_LAST]) and done >= int(store.get(_LAST)))


def world_size() -> int:
    """Return how many ranks there are; 1 where there is no process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(message: str | None) -> str | None:
    """Return the message that one of the ranks has; all of them call it, and one, at least, has one."""
    if world_size() > 1:
        store = distributed.distributed_c10d._get_default_store()
        if message is not None:
            store.set(_MESSAGE, message)
        message = store.get(_MESSAGE).decode()
        distributed.barrier()  # the store may live in a rank
    return message
