"""Ranks of a training that end together: after the same step, with one message."""

from __future__ import annotations

import signal
from types import FrameType

from torch import distributed

_LAST, _MESSAGE = "ascendet/last", "ascendet/loss"


class Interruption:
    """The reaction to SIGTERM, from an operator, Kubernetes or torchrun: the ranks agree on the last step.

    Ranks receive the signal at different times, or only on one node, but must end after the same step, or some would
    wait for the gradients of others. The first rank that sees the signal writes the number of the last step into the
    process group's store: the second end of an optimizer step from now. No rank can be past it, because a forward pass
    needs the weights of the step before, and these need the gradients of the rank that wrote the number. This costs one
    request to the store per step, and nothing on the device.
    """

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def is_last(self, done: int, length: int = 1) -> bool:
        """Return whether to end after the step that ends at `done`; `length` is a step's length in its unit."""
        if world_size() == 1:
            return self.asked
        store = distributed.distributed_c10d._get_default_store()
        if self.asked:
            store.compare_set(_LAST, "", str(done + 2 * length))
        return bool(store.check([_LAST]) and done >= int(store.get(_LAST)))


def world_size() -> int:
    """Return the number of ranks, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(message: str | None) -> str | None:
    """Return the message of one of the ranks on all of them; every rank must call this, at least one with a message."""
    if world_size() > 1:
        store = distributed.distributed_c10d._get_default_store()
        if message is not None:
            store.set(_MESSAGE, message)
        message = store.get(_MESSAGE).decode()
        distributed.barrier()  # a rank may hold the store: it must not end before the others have read
    return message
