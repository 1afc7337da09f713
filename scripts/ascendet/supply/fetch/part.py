"""The bytes of an unfinished file on disk: the journal that says which are there, and their digests."""

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

_WINDOW = 2**23  # bytes that are hashed at once
_UNKNOWN = 2**62  # the end of a file whose size nobody has told yet


class Part:
    """The folder `<name>.part`: `content`, sparse, and `progress`, a row (start, length) per range that was begun.

    A row grows with every chunk, after the chunk: a killed process loses nothing that it wrote. After a crash of the
    machine rows may be on the disk whose bytes are not, so the manifest names the boot and what was flushed in it.
    """

    ROW = struct.Struct("<QQ")

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.facts = manifest.read(folder) or {}
        self.rows = self._load()
        content = folder / "content"
        self.content = content.open("r+b" if content.exists() else "w+b", buffering=0)
        temp = folder / "progress.new"  # compact: a row per span
        temp.write_bytes(b"".join(self.ROW.pack(*row) for row in self.rows))
        temp.rename(folder / "progress")
        self.progress = (folder / "progress").open("r+b", buffering=0)
        self._flushed = time.monotonic()

    def _load(self) -> list[tuple[int, int]]:
        """Return the rows whose bytes are certainly in `content`."""
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
        """Add a row for bytes from `start` on; return its index."""
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
        """Return what is here, as sorted, disjoint (start, length)."""
        return merge(self.rows)

    def front(self) -> int:
        """Return the number of bytes before the first gap."""
        spans = self.spans()
        return spans[0][1] if spans and spans[0][0] == 0 else 0

    def describe(self, **facts: object) -> None:
        """Keep facts about the content (validator, size) with it."""
        self.facts |= facts
        self.flush(every=0.0)

    def flush(self, every: float) -> None:
        """Make what is here survive a crash of the machine, unless that was done less than `every` seconds ago."""
        if time.monotonic() - self._flushed >= every:
            spans = self.spans()  # before the flush: it covers these
            os.fdatasync(self.content.fileno())
            manifest.write(self.folder, self.facts | {"boot": _boot(), "flushed": spans})
            self._flushed = time.monotonic()

    def remove(self) -> None:
        """Delete the folder. Threads that still write into it keep files without a name."""
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
    """Return what is missing of [0, size), as sorted (start, end).

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
    """Digests of a file that grows at its front; `position` is how far they are."""

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
            # Mapped, not read: a copy less, which shows where the network is as fast as memory.
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
