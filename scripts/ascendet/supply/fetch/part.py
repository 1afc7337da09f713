"""An unfinished file on the disk: its bytes, a journal of the bytes that are there, and its digests."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ascendet.core import manifest

_WINDOW = 2**23  # bytes to hash at once
_UNKNOWN = 2**62  # stands for the end of a file whose size is not known yet


class Part:
    """The folder `<name>.part`: a sparse file `content`, and `progress`, with a row (start, length) for each range.

    A row is updated after each chunk, so a killed process loses nothing that it wrote. After a crash of the machine the
    disk may have rows without their bytes; therefore the manifest names the boot and the bytes flushed during it.
    """

    ROW = struct.Struct("<QQ")

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.facts = manifest.read(folder) or {}
        self.rows = self._load()
        content = folder / "content"
        self.content = content.open("r+b" if content.exists() else "w+b", buffering=0)
        temp = folder / "progress.new"  # shorter: one row per span
        temp.write_bytes(b"".join(self.ROW.pack(*row) for row in self.rows))
        temp.rename(folder / "progress")
        self.progress = (folder / "progress").open("r+b", buffering=0)
        self._flushed = time.monotonic()

    def _load(self) -> list[tuple[int, int]]:
        """Return the rows whose bytes are known to be in `content`."""
        if not (self.folder / "content").exists():
            return []
        if self.facts.get("boot") == _boot():
            with contextlib.suppress(FileNotFoundError):
                raw = (self.folder / "progress").read_bytes()
                whole = raw[: len(raw) // self.ROW.size * self.ROW.size]
                return merge(self.ROW.iter_unpack(whole))
        flushed = self.facts.get("flushed")
        return [(int(start), int(length)) for start, length in flushed] if isinstance(flushed, list) else []

    def begin(self, start: int) -> int:
        """Add a row for bytes from `start` on and return its index."""
        self.rows.append((start, 0))
        return len(self.rows) - 1

    def write(self, row: int, chunk: bytes) -> None:
        """Append a chunk to the bytes of a row."""
        start, length = self.rows[row]
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self.content.fileno(), view, start + length)
            length += written
            view = view[written:]
        os.pwrite(self.progress.fileno(), self.ROW.pack(start, length), row * self.ROW.size)
        self.rows[row] = (start, length)

    def spans(self) -> list[tuple[int, int]]:
        """Return the ranges that have arrived, as sorted, disjoint (start, length)."""
        return merge(self.rows)

    def front(self) -> int:
        """Return the number of bytes before the first gap."""
        spans = self.spans()
        return spans[0][1] if spans and spans[0][0] == 0 else 0

    def describe(self, **facts: object) -> None:
        """Store facts about the content (validator, size) in the manifest."""
        self.facts |= facts
        self.flush(every=0.0)

    def flush(self, every: float) -> None:
        """Flush the content to the disk and record its ranges, unless that was done less than `every` seconds ago."""
        if time.monotonic() - self._flushed >= every:
            spans = self.spans()  # before the flush, which includes at least these
            os.fdatasync(self.content.fileno())
            manifest.write(self.folder, self.facts | {"boot": _boot(), "flushed": spans})
            self._flushed = time.monotonic()

    def remove(self) -> None:
        """Delete the folder. Threads that are still writing keep an unlinked file."""
        shutil.rmtree(self.folder)


def merge(rows: Iterable[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Return sorted, disjoint (start, length) that cover the same bytes as `rows`.

    >>> merge([(4, 2), (0, 3), (3, 1), (9, 0)])
    [(0, 6)]
    """
    merged: list[tuple[int, int]] = []
    for start, length in sorted(rows):
        if merged and start <= sum(merged[-1]):
            first, before = merged[-1]
            merged[-1] = (first, max(before, start + length - first))
        elif length:
            merged.append((start, length))
    return merged


def complement(rows: Iterable[tuple[int, int]], size: int | None) -> list[tuple[int, int]]:
    """Return the ranges of [0, size) that `rows` do not cover, as sorted (start, end).

    >>> complement([(2, 3)], 9)
    [(0, 2), (5, 9)]
    """
    gaps: list[tuple[int, int]] = []
    at, end = 0, _UNKNOWN if size is None else size
    for start, length in merge(rows):
        if at < start:
            gaps.append((at, start))
        at = start + length
    if at < end:
        gaps.append((at, end))
    return gaps


def _boot() -> str:
    """Return the identity of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


# -- digests --


class _Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32:
    """zlib's CRC-32 with hashlib's methods."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


class Digests:
    """Digests of a file, computed from its beginning on; `position` is the number of bytes hashed so far."""

    def __init__(self, names: Iterable[str]) -> None:
        self.position = 0
        self._hashers: dict[str, _Hasher] = {
            name: _Crc32() if name == "crc32" else hashlib.new(name, usedforsecurity=name != "md5")
            for name in names
        }

    def advance(self, descriptor: int, stop: int) -> None:
        """Hash the file's bytes up to `stop`."""
        while self.position < stop:
            skip = self.position % mmap.ALLOCATIONGRANULARITY
            length = skip + min(_WINDOW, stop - self.position)
            # Map the file instead of reading it: this saves a copy, which matters if the network is fast.
            with (
                mmap.mmap(descriptor, length, offset=self.position - skip, access=mmap.ACCESS_READ) as window,
                memoryview(window)[skip:] as view,
            ):
                for hasher in self._hashers.values():
                    hasher.update(view)
            self.position += length - skip

    def hex(self) -> dict[str, str]:
        """Return the digests by name."""
        return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}
