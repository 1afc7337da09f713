"""Show the progress of a transfer on standard error: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_EVERY = 5.0  # seconds between plain lines
_WINDOW = 15.0  # seconds over which the rate is averaged


class Meter:
    """Shows bytes, rate and remaining time of one transfer; `present` bytes were there before it began."""

    def __init__(self, label: str, present: int = 0) -> None:
        self.label = label
        self.samples = deque([(time.monotonic(), present)])
        self.told = time.monotonic()
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=_WINDOW)
            self.task = self.bar.add_task(label, total=None, completed=present)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` bytes have arrived; `total` is None while it is unknown."""
        if self.bar:
            self.bar.update(self.task, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self.told < _EVERY:
            return
        self.told = now
        self.samples.append((now, done))
        while len(self.samples) > 2 and now - self.samples[0][0] > _WINDOW:
            self.samples.popleft()
        since, before = self.samples[0]
        self.say(f"{self.label}: {line(done, total, (done - before) / (now - since))}")

    @staticmethod
    def say(text: str) -> None:
        """Print a line, above the bar if there is one."""
        print(text, file=sys.stderr, flush=True)


def line(done: int, total: int | None, rate: float) -> str:
    """Return the progress as text, from numbers of bytes and a rate in bytes per second.

    >>> line(5_000_000_000, 20_000_000_000, 50e6)
    '25 % of 20.00 GB, 50.0 MB/s, 5:00 left'
    >>> line(5_000_000_000, None, 0.0)
    '5.00 GB, 0.0 MB/s'
    """
    if total is None:
        return f"{done / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"
    text = f"{100 * done // max(total, 1)} % of {total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s"
    if rate <= 0:
        return text
    left = int((total - done) / rate)
    hours, rest = divmod(left, 3600)
    clock = f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
    return f"{text}, {clock} left"
