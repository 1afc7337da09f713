"""Files over HTTP: in ranges, over several connections, resumed after any end, named only when their digest is right.

requests speaks HTTP. Here is the policy: which range to ask for next, what an answer must look like, when to wait, when
to try the next mirror. Bytes of two answers are only put together under a strong validator (RFC 9110, 13.1.5) or under
a digest that the caller knows; whoever calls holds a lock, so that a file has one writer.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
import re
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol

import requests
import urllib3

from ascendet import __version__, files, manifest
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.progress import Meter

_CHUNK = 2**20
_WINDOW = 2**23
_AT_FIRST = 4  # connections
_FULL_DIGEST = {"sha256": 64, "md5": 32}
_UNKNOWN = 2**62  # the end of a file whose size nobody has told yet
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How to behave towards servers. Sizes in bytes, times in seconds."""

    connections: int = 16  # of all files together
    smallest: int = 2**18  # a range
    largest: int = 2**23  # more at once leave the digest behind: it is computed from the front
    tries: int = 6  # rounds without progress until a mirror is given up
    pause: float = 0.5  # after the first; it doubles, with jitter
    longest_pause: float = 60.0
    patience: float = 30.0  # without a byte, or with less than `slowest`
    slowest: int = 1024  # per second and connection
    sync: float = 5.0  # between flushes, what a crash of the machine can cost


@dataclass(frozen=True, kw_only=True)
class File:
    """What to fetch: the final path, mirrors in the order to try, and what is known of the content.

    `digests` maps sha256, md5 or crc32 to lower-case hex, of which a prefix may be all that is known.
    """

    path: Path
    urls: tuple[str, ...]
    size: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> bool:
        """Whether a digest names the content whole, so that bytes of several mirrors may be mixed."""
        return any(len(self.digests.get(name, "")) == length for name, length in _FULL_DIGEST.items())


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What arrived; `received` counts the bytes of this run, which resuming makes fewer."""

    path: Path
    size: int
    sha256: str
    url: str
    received: int


def fetch(wanted: Sequence[File], policy: Policy | None = None, label: str = "") -> list[Fetched]:
    """Fetch all files at once.

    Raises
    ------
    AscendetError
        `fetch-failed` (network, or a server that stays busy), `fetch-refused` (4xx, redirect loop, certificate),
        `fetch-not-the-file` (length, encoding, an HTML page, changes on the way), `fetch-hash-mismatch`, `disk-full`.
        Bytes that are good stay beside the final path in `<name>.part`, and the next call goes on from there.
    """
    if not wanted:
        return []
    policy = policy or Policy()
    downloads = [_Download(file, policy) for file in wanted]
    with files.disk_errors(wanted[0].path.parent):
        _check_space(downloads)
        name = label or (wanted[0].path.name if len(wanted) == 1 else f"{len(wanted)} files")
        try:
            _Pool(downloads, policy).run(name)
        finally:
            for download in downloads:
                if not download.done and not download.present:
                    download.part.remove()
    return [download.result() for download in downloads]


def session() -> requests.Session:
    """A session that asks for plain bytes, and honours proxies, `.netrc` and the user's certificate authorities."""
    new = requests.Session()
    new.headers.update({"Accept-Encoding": "identity", "User-Agent": f"ascendet/{__version__}"})
    new.max_redirects = 10
    # requests itself reads REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, which win; this is OpenSSL's own variable.
    new.verify = os.environ.get("SSL_CERT_FILE") or True
    return new


def fetch_range(urls: Sequence[str], start: int, end: int) -> bytes:
    """The bytes [start, end) of a file, a few megabytes, from the first mirror that has them; nothing verifies them.

    Raises
    ------
    AscendetError
        `fetch-failed`.
    """
    retry = urllib3.Retry(5, backoff_factor=0.5, status_forcelist=_TRANSIENT)
    failures = []
    with session() as connection:
        for scheme in ("https://", "http://"):
            connection.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
        for url in urls:
            try:
                with connection.get(
                    url, headers={"Range": f"bytes={start}-{end - 1}"}, stream=True, timeout=30
                ) as got:
                    stated = got.headers.get("Content-Range", "").partition("/")[0]
                    content = got.raw.read(end - start, decode_content=False)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                failures.append(f"{url}: {_reason(error)}")
                continue
            if stated == f"bytes {start}-{end - 1}" and len(content) == end - start:
                return bytes(content)
            failures.append(f"{url}: {got.status_code}, {len(content)} bytes, Content-Range: {stated}")
    raise AscendetError(
        "fetch-failed",
        f"{urls[0].rpartition('/')[2]}: a part of it could not be fetched",
        expected=f"bytes {start}-{end - 1}",
        found="\n".join(failures),
        hint="check the network (HTTPS_PROXY, REQUESTS_CA_BUNDLE), then run the command again",
    )


# -- what an answer may turn out to be --


class _Transient(Exception):
    """Try again, after `wait` seconds if the server says so."""

    def __init__(self, reason: str, *, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy


class _Changed(Exception):
    """The resource is no longer the one whose bytes we have."""


class _Whole(Exception):
    """Ranges cannot be used here: no support, or no validator that would make them safe."""


class _Useless(Exception):
    """A mirror that does not have the file; `name` is the error's, should all mirrors end so."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class _Stopped(Exception):
    """Nobody needs these bytes any more."""


# -- bytes on disk --


class _Part:
    """The folder `<name>.part`: `content`, sparse, and `progress`, a row (start, length) per range that was begun.

    A row grows with every chunk, after the chunk: a killed process loses nothing that it wrote. After a crash of the
    machine rows may be on the disk whose bytes are not, so the manifest names the boot and what was flushed in it.
    """

    _ROW = struct.Struct("<QQ")

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.facts = manifest.read(folder) or {}
        self.rows = self._load()
        self.content = (folder / "content").open(
            "r+b" if (folder / "content").exists() else "w+b", buffering=0
        )
        temp = folder / "progress.new"  # compact: a row per span
        temp.write_bytes(b"".join(self._ROW.pack(*row) for row in self.rows))
        temp.rename(folder / "progress")
        self.progress = (folder / "progress").open("r+b", buffering=0)
        self._flushed = time.monotonic()

    def _load(self) -> list[list[int]]:
        if not (self.folder / "content").exists():
            return []
        if self.facts.get("boot") == _boot():
            with contextlib.suppress(FileNotFoundError):
                raw = (self.folder / "progress").read_bytes()
                whole = raw[: len(raw) // self._ROW.size * self._ROW.size]
                return _merge(list(row) for row in self._ROW.iter_unpack(whole))
        flushed = self.facts.get("flushed")
        return [list(map(int, row)) for row in flushed] if isinstance(flushed, list) else []

    def begin(self, start: int) -> int:
        """A new row; its index."""
        self.rows.append([start, 0])
        return len(self.rows) - 1

    def write(self, row: int, chunk: bytes) -> None:
        start, length = self.rows[row]
        view = memoryview(chunk)
        while view:
            written = os.pwrite(self.content.fileno(), view, start + length)
            length += written
            view = view[written:]
        os.pwrite(self.progress.fileno(), self._ROW.pack(start, length), row * self._ROW.size)
        self.rows[row][1] = length

    def spans(self) -> list[list[int]]:
        """What is here, as sorted, disjoint (start, length)."""
        return _merge([start, length] for start, length in self.rows)

    def describe(self, **facts: object) -> None:
        """Keep facts about the content (validator, size) with it."""
        self.facts |= facts
        self.flush(every=0.0)

    def flush(self, every: float) -> None:
        """Make what is here survive a crash of the machine, if that was `every` seconds ago."""
        if time.monotonic() - self._flushed >= every:
            spans = self.spans()  # before the flush: it covers these
            os.fdatasync(self.content.fileno())
            manifest.write(self.folder, self.facts | {"boot": _boot(), "flushed": spans})
            self._flushed = time.monotonic()

    def remove(self) -> None:
        """Forget everything. Whoever still writes does so into files without a name."""
        shutil.rmtree(self.folder)


def _merge(rows: object) -> list[list[int]]:
    """Sorted, disjoint (start, length) that cover the same bytes.

    >>> _merge([[4, 2], [0, 3], [3, 1], [9, 0]])
    [[0, 6]]
    """
    merged: list[list[int]] = []
    for start, length in sorted(rows):  # type: ignore[call-overload]
        if merged and start <= sum(merged[-1]):
            merged[-1][1] = max(merged[-1][1], start + length - merged[-1][0])
        elif length:
            merged.append([start, length])
    return merged


def _boot() -> str:
    """The identity of the machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


# -- one file --


@dataclass(eq=False)
class _Piece:
    """A range being fetched: [start, end) from `url` into the row `row` of `part`."""

    part: _Part
    url: str
    start: int
    end: int
    row: int
    received: int = 0

    @property
    def position(self) -> int:
        return self.start + self.received


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


class _Download:
    """The state of one file. All methods but `digest` and `finish` are called with the pool's lock held."""

    def __init__(self, file: File, policy: Policy) -> None:
        self.file = file
        self.policy = policy
        self.mirrors = list(file.urls)
        self.url = self.mirrors.pop(0)  # where a redirect led to, once it did
        self.origin = self.url
        self.failures: list[tuple[str, _Useless]] = []
        self.received = 0
        self.restarts = self.rounds = 0
        self.not_before = 0.0
        self.limit = policy.connections
        self.ranges = True
        self.sha256 = ""
        self.done = False
        self.hashing = threading.Lock()
        self._adopt(_Part(file.path.with_name(f"{file.path.name}.part")))

    def _adopt(self, part: _Part) -> None:
        """Start from what `part` holds."""
        size, here = part.facts.get("size"), part.facts.get("url") == self.origin
        useful = isinstance(size, int) and self.file.size in (None, size) and (here or self.file.named)
        if part.rows and not useful:
            part.remove()
            part = _Part(part.folder)
        self.part = part
        self.size = int(str(size)) if part.rows else self.file.size
        self.validator = str(part.facts["validator"]) if part.rows and here else ""
        self.inherited = bool(part.rows)  # not all of it comes from this mirror in this run
        self.open = False  # somebody has seen the size and the validator of this mirror's file
        self.active: list[_Piece] = []
        self.gaps = _complement(part.rows, self.size)
        self.hashed = 0
        names = {"sha256", *self.file.digests}
        self.hashers: dict[str, _Hasher] = {
            name: _Crc32() if name == "crc32" else hashlib.new(name, usedforsecurity=name != "md5")
            for name in names
        }

    def reset(self) -> None:
        """Begin again with nothing."""
        with self.hashing:
            self.part.remove()
            self._adopt(_Part(self.part.folder))

    @property
    def present(self) -> int:
        """Bytes on disk."""
        return sum(length for _, length in self.part.spans())

    def take(self, now: float) -> _Piece | None:
        """The next range to fetch, or None for now."""
        if self.done or not self.gaps or now < self.not_before or len(self.active) >= self.limit:
            return None
        if not self.open and self.active:
            return None  # that one asks first
        start, end = gap = self.gaps[0]
        stop = end
        if self.ranges:
            # Smaller towards the end, so that all connections finish together.
            left = 0 if self.size is None else sum(end - start for start, end in self.gaps)
            length = min(
                max(left // (2 * self.policy.connections), self.policy.smallest), self.policy.largest
            )
            stop = start + length if end - start > 1.5 * length else end
        if stop == end:
            self.gaps.pop(0)
        else:
            gap[0] = stop
        piece = _Piece(self.part, self.url, start, stop, self.part.begin(start))
        self.active.append(piece)
        return piece

    def give_back(self, piece: _Piece) -> None:
        """The piece is over; what it lacks is a gap again."""
        self.received += piece.received
        if piece.part is not self.part:
            return
        self.active.remove(piece)
        if piece.position < piece.end:
            self.gaps = sorted([*self.gaps, [piece.position, piece.end]])

    def accept(self, piece: _Piece, response: requests.Response, asked_range: bool) -> None:
        """Judge an answer's head; from now on the size, the validator and the piece's end are known."""
        head = response.headers
        _check_status(response, piece)
        encoding = head.get("Content-Encoding", "")
        if encoding not in ("", "identity"):
            raise _Useless(
                "fetch-not-the-file", f"sent with Content-Encoding: {encoding}, though asked not to"
            )
        if not self.file.digests and piece.url.startswith("https:") and response.url.startswith("http:"):
            raise _Useless(
                "fetch-refused", "leads from https to http, and nothing is known that would tell a fake"
            )
        kind = head.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html":
            raise _Useless("fetch-not-the-file", "an HTML page instead of the file")
        length = int(head["Content-Length"]) if head.get("Content-Length", "").isdigit() else None
        validator = strong_validator(head)
        if response.status_code == 206:
            end, total = self._check_range(piece, head, length, asked_range)
        elif piece.start:
            # Either the resource changed (If-Range), or this server knows no ranges.
            raise _Changed if self.validator and validator != self.validator else _Whole
        else:
            whole = length if length is not None else self.file.size
            if whole is None:
                raise _Useless("fetch-not-the-file", "neither the server nor the lock states its length")
            end = total = whole
        if self.file.size not in (None, total):
            raise _Useless("fetch-not-the-file", f"{total} bytes instead of {self.file.size}")
        if self.open and (total != self.size or validator != self.validator):
            raise _Changed
        if response.status_code == 206 and not validator:
            raise _Whole
        if not self.open:
            self._opened(piece, total, end, validator)
        elif end < piece.end:
            self.gaps = sorted([*self.gaps, [end, piece.end]])
        piece.end = end
        if response.status_code == 206 and response.history:
            self.url = response.url  # a redirect per range would cost a round trip each

    def _check_range(
        self, piece: _Piece, head: Mapping[str, str], length: int | None, asked: bool
    ) -> tuple[int, int]:
        stated = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", head.get("Content-Range", ""))
        if not stated or not asked:
            raise _Useless("fetch-not-the-file", f"a 206 with Content-Range: {head.get('Content-Range')}")
        first, last, total = map(int, stated.groups())
        ordered = first == piece.start <= last < min(total, piece.end)
        if not ordered or length not in (None, last - first + 1):
            raise _Useless(
                "fetch-not-the-file",
                f"asked for bytes {piece.start}-{piece.end - 1}, got {length} of {head['Content-Range']}",
            )
        return last + 1, total

    def _opened(self, piece: _Piece, total: int, end: int, validator: str) -> None:
        """The first answer of this mirror."""
        same = total == self.size and validator and validator == self.validator
        if self.part.spans() and not same and not (self.file.named and total == self.size):
            raise _Changed
        self.size, self.validator, self.open = total, validator, True
        self.gaps = _complement([*self.part.spans(), [piece.start, end - piece.start]], total)
        if self.file.size is None:
            _check_space([self])
        if validator and total > self.policy.smallest:
            with self.hashing:  # one writer of the part's manifest
                self.part.describe(size=total, validator=validator, url=self.origin)

    # -- ends --

    def succeed(self, piece: _Piece) -> None:
        self.rounds = 0
        self.limit = min(self.limit + 1, self.policy.connections)

    def wait(self, piece: _Piece, failure: _Transient, now: float) -> str | None:
        """Pause this file; the text to tell people, once per round."""
        if piece.received >= self.policy.smallest // 4:
            self.rounds = 0
        self.url = self.origin  # a redirect's target may have expired
        if now < self.not_before:
            return None
        self.rounds += 1
        if failure.busy:
            self.limit = max(1, min(self.limit, len(self.active) + 1) // 2)
        if self.rounds >= self.policy.tries or failure.wait > 5 * self.policy.longest_pause:
            self.give_up(_Useless("fetch-failed", str(failure)))
            return None
        pause = min(self.policy.pause * 2 ** (self.rounds - 1), self.policy.longest_pause)
        pause = max(pause * random.uniform(0.5, 1.5), failure.wait)  # noqa: S311  # no secret
        self.not_before = now + pause
        return f"{self.file.path.name}: {failure}; again in {pause:.1f} s"

    def change(self) -> None:
        """The resource is another one: begin again, a few times."""
        self.restarts += 1
        if self.restarts > 3:
            self.give_up(_Useless("fetch-not-the-file", "changes while it is being fetched"))
        else:
            self.reset()

    def without_ranges(self) -> None:
        """Fetch it in one go."""
        self.ranges, self.limit = False, 1
        self.reset()

    def give_up(self, failure: _Useless) -> None:
        """Go to the next mirror.

        Raises
        ------
        AscendetError
            There is none left.
        """
        self.failures.append((self.origin, failure))
        if not self.mirrors:
            raise self._error()
        self.url = self.origin = self.mirrors.pop(0)
        self.restarts = self.rounds = 0
        self.not_before, self.limit, self.ranges = 0.0, self.policy.connections, True
        if self.file.named and self.validator:
            self.open, self.inherited, self.validator = False, True, ""
        else:
            self.reset()

    def _error(self) -> AscendetError:
        name = max((failure.name for _, failure in self.failures), key=EXIT_CODES.__getitem__)
        known = [f"{name}:{value}" for name, value in self.file.digests.items()]
        return AscendetError(
            name,
            f"{self.file.path.name} could not be fetched",
            expected="\n".join([f"{self.file.size} bytes"] * (self.file.size is not None) + known) or None,
            found="\n".join(f"{url}: {failure}" for url, failure in self.failures),
            hint="check the network (HTTPS_PROXY, REQUESTS_CA_BUNDLE), run the command again: it goes on from here;\n"
            "or with MIRROR=cn, or MIRROR=https://<a mirror that you have>, which is tried first",
        )

    # -- without the lock --

    def digest(self, at_most: int) -> int:
        """Hash on towards the first gap; the number of bytes done."""
        with self.hashing:
            spans = self.part.spans()
            frontier = spans[0][1] if spans and spans[0][0] == 0 else 0
            begin = self.hashed
            stop = min(frontier, begin + at_most)
            while self.hashed < stop:
                skip = self.hashed % mmap.ALLOCATIONGRANULARITY
                length = skip + min(_WINDOW, stop - self.hashed)
                # Mapped, not read: a copy less, which shows where the network is as fast as memory.
                with (
                    mmap.mmap(
                        self.part.content.fileno(), length, offset=self.hashed - skip, access=mmap.ACCESS_READ
                    ) as window,
                    memoryview(window)[skip:] as view,
                ):
                    for hasher in self.hashers.values():
                        hasher.update(view)
                self.hashed += length - skip
            return self.hashed - begin

    def flush(self) -> None:
        """Let what is here survive a crash of the machine, every few seconds."""
        with self.hashing:
            if self.part.facts and not self.done:
                self.part.flush(self.policy.sync)

    def finish(self) -> None:
        """All bytes are here: verify them and give the file its name, or raise `_Useless`, or `_Changed`."""
        assert self.size is not None
        while self.hashed < self.size:
            self.digest(2**26)
        found = {name: hasher.hexdigest() for name, hasher in self.hashers.items()}
        for name, expected in self.file.digests.items():
            if not found[name].startswith(expected):
                if self.inherited:
                    raise _Changed  # not this mirror's fault alone: once more, from nothing
                raise _Useless("fetch-hash-mismatch", f"{name}:{found[name]} ({self.size} bytes)")
        os.fsync(self.part.content.fileno())
        with self.hashing:
            (self.part.folder / "content").rename(self.file.path)
            self.part.remove()
            files.fsync(self.file.path.parent)
            self.sha256, self.done = found["sha256"], True

    def result(self) -> Fetched:
        assert self.size is not None
        return Fetched(
            path=self.file.path, size=self.size, sha256=self.sha256, url=self.origin, received=self.received
        )


def _complement(rows: list[list[int]], size: int | None) -> list[list[int]]:
    """What is missing of [0, size), as (start, end).

    >>> _complement([[2, 3]], 9)
    [[0, 2], [5, 9]]
    """
    gaps: list[list[int]] = []
    at, end = 0, _UNKNOWN if size is None else size
    for start, length in _merge(rows):
        if at < start:
            gaps.append([at, start])
        at = start + length
    if at < end:
        gaps.append([at, end])
    return gaps


def strong_validator(head: Mapping[str, str]) -> str:
    """What may stand in If-Range: a strong ETag, or a date that is a minute older than the answer; else nothing.

    >>> strong_validator({"ETag": '"a"'}), strong_validator({"ETag": 'W/"a"'})
    ('"a"', '')
    """
    tag = head.get("ETag", "")
    if tag:
        return tag if tag.startswith('"') else ""
    modified = head.get("Last-Modified", "")
    try:
        age = parsedate_to_datetime(head["Date"]) - parsedate_to_datetime(modified)
    except (KeyError, ValueError, TypeError):
        return ""
    return modified if age.total_seconds() >= 60 else ""


def _check_status(response: requests.Response, piece: _Piece) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416 and piece.start:
        raise _Changed  # what we have is longer than the resource
    text = f"{status} {response.reason}"
    if status in _TRANSIENT:
        raise _Transient(text, wait=_retry_after(response.headers), busy=status in (429, 503))
    raise _Useless("fetch-refused", text)


def _retry_after(head: Mapping[str, str]) -> float:
    """Seconds that the server wants us to wait (RFC 9110, 10.2.3), 0 where it does not say."""
    stated = head.get("Retry-After", "")
    if stated.isdigit():
        return float(stated)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    return 0.0


def _check_space(downloads: Sequence[_Download]) -> None:
    """Refuse to begin what the disk cannot hold; what is here already counts.

    Raises
    ------
    AscendetError
        `disk-full`.
    """
    needed = sum((download.size or 0) - download.present for download in downloads if not download.done)
    files.check_space(downloads[0].file.path.parent, needed, "ASCENDET_DATA")


# -- connections --


class _Pool:
    """The connections: threads that take ranges of whichever file has one to give, the first file first."""

    def __init__(self, downloads: list[_Download], policy: Policy) -> None:
        self.downloads = downloads
        self.policy = policy
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self.stopping = False
        self.allowed = min(_AT_FIRST, policy.connections)
        self._clock = (time.monotonic(), time.process_time())

    def run(self, label: str) -> None:
        """Fetch everything; meanwhile this thread hashes, flushes and shows the progress."""
        # Daemons: a process that is told to end does not wait for a server.
        threads = [
            threading.Thread(target=self._guard, args=(self._work,), daemon=True)
            for _ in range(self.policy.connections)
        ]
        for download in self.downloads:
            if not download.gaps:  # killed before its last step
                self._finish(download)
        meter = Meter(label, sum(download.present for download in self.downloads))
        try:
            with meter:
                for thread in threads:
                    thread.start()
                while not self.error and not all(download.done for download in self.downloads):
                    self._tend()
                    meter.show(*self._totals())
        finally:
            self.stopping = True
            deadline = time.monotonic() + 1.0
            for thread in threads:
                if thread.is_alive():
                    thread.join(max(0.0, deadline - time.monotonic()))
        if self.error:
            raise self.error

    def _tend(self) -> None:
        hashed = sum(download.digest(2**26) for download in self.downloads if not download.done)
        for download in self.downloads:
            download.flush()
        self._widen()
        if not hashed:
            with self.changed:
                self.changed.wait(0.1)

    def _widen(self) -> None:
        """Twice the connections, while this process mostly waits for them; a busy one would only divide its time."""
        now, worked = time.monotonic(), time.process_time()
        begin, before = self._clock
        if now - begin >= 0.1 and self.allowed < self.policy.connections:
            if worked - before < 0.5 * (now - begin):
                with self.changed:
                    self.allowed = min(2 * self.allowed, self.policy.connections)
                    self.changed.notify_all()
            self._clock = (now, worked)

    def _totals(self) -> tuple[int, int | None]:
        with self.changed:
            sizes = [download.size for download in self.downloads]
            present = sum(
                download.size or 0 if download.done else download.present for download in self.downloads
            )
        return present, None if None in sizes else sum(size or 0 for size in sizes)

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:
            with self.changed:
                self.error = self.error or error
                self.stopping = True
                self.changed.notify_all()

    def _work(self) -> None:
        connection = session()
        while True:
            with self.changed:
                while (task := self._next()) is None:
                    if self.stopping or all(download.done for download in self.downloads):
                        self.changed.notify_all()
                        return
                    self.changed.wait(0.2)
            self._attempt(connection, *task)

    def _next(self) -> tuple[_Download, _Piece] | None:
        if not self.stopping and sum(len(download.active) for download in self.downloads) < self.allowed:
            now = time.monotonic()
            for download in self.downloads:
                piece = download.take(now)
                if piece:
                    return download, piece
        return None

    def _attempt(self, connection: requests.Session, download: _Download, piece: _Piece) -> None:
        """Fetch one range, and draw the consequences of how that ended."""
        failure: Exception | None = None
        try:
            self._transfer(connection, download, piece)
        except (_Transient, _Changed, _Whole, _Useless, _Stopped) as error:
            failure = error
        with self.changed:
            current = piece.part is download.part  # else it was begun again meanwhile: nothing here matters
            mine = current and piece.url in (download.url, download.origin)
            download.give_back(piece)
            if failure is None and current:
                download.succeed(piece)
            elif mine:
                self._consequence(download, piece, failure)
            complete = current and not download.gaps and not download.active and not download.done
            self.changed.notify_all()
        if complete:
            self._finish(download)

    def _consequence(self, download: _Download, piece: _Piece, failure: Exception | None) -> None:
        if isinstance(failure, _Transient):
            told = download.wait(piece, failure, time.monotonic())
            if told:
                Meter.say(told)
        elif isinstance(failure, _Changed):
            download.change()
        elif isinstance(failure, _Whole):
            download.without_ranges()
        elif isinstance(failure, _Useless) and piece.url != download.origin:
            # Where a redirect led to may have expired.
            self._consequence(download, piece, _Transient(str(failure)))
        elif isinstance(failure, _Useless):
            Meter.say(f"{download.file.path.name}: {piece.url}: {failure}")
            download.give_up(failure)

    def _finish(self, download: _Download) -> None:
        try:
            download.finish()
        except (_Changed, _Useless) as failure:
            with self.changed:
                download.reset()  # not a byte of it is kept
                if isinstance(failure, _Useless):
                    Meter.say(f"{download.file.path.name}: {download.origin}: {failure}")
                    download.give_up(failure)
        with self.changed:
            self.changed.notify_all()

    def _transfer(self, connection: requests.Session, download: _Download, piece: _Piece) -> None:
        headers = {}
        asked_range = download.ranges and not (piece.start == 0 and piece.end == download.size)
        if asked_range:
            headers["Range"] = f"bytes={piece.start}-{piece.end - 1}"
            if download.validator:
                headers["If-Range"] = download.validator
        try:
            response = connection.get(
                piece.url, headers=headers, stream=True, timeout=(self.policy.patience, self.policy.patience)
            )
        except (requests.RequestException, UnicodeError) as error:
            passing = isinstance(error, requests.ConnectionError | requests.Timeout)
            if passing and "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise _Transient(_reason(error)) from error
            raise _Useless("fetch-refused", _reason(error)) from error
        with response:
            with self.changed:
                if piece.part is not download.part or piece.url not in (download.url, download.origin):
                    raise _Stopped  # asked before the last reset, or the last change of mirrors
                download.accept(piece, response, asked_range)
                self.changed.notify_all()  # others may begin now
            self._receive(download, piece, response.raw)

    def _receive(self, download: _Download, piece: _Piece, raw: urllib3.HTTPResponse) -> None:
        """Write the body where it belongs, as it comes."""
        looked, seen = time.monotonic(), 0
        while piece.position < piece.end:
            chunk = _read(raw, min(_CHUNK, piece.end - piece.position))
            if not chunk:
                raise _Transient(f"the connection ended {piece.end - piece.position} bytes early")
            if self.stopping or piece.part is not download.part:
                raise _Stopped
            piece.part.write(piece.row, chunk)
            piece.received += len(chunk)
            now = time.monotonic()
            if now - looked > self.policy.patience:
                if piece.received - seen < self.policy.slowest * self.policy.patience:
                    raise _Transient(f"stalled: {piece.received - seen} bytes in {now - looked:.0f} s")
                looked, seen = now, piece.received
        if _read(raw, 1, whole=True):  # not read1: this gives the connection back for the next range
            raise _Useless("fetch-not-the-file", f"goes on after its {piece.end} bytes")


def _read(raw: urllib3.HTTPResponse, amount: int, *, whole: bool = False) -> bytes:
    """What is there, at most `amount` bytes, or all of these; nothing at the end."""
    try:
        return (raw.read if whole else raw.read1)(amount, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _Transient(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """The innermost exception's text, which is the one that people can use."""
    while True:
        inner = error.__cause__ or getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return f"{type(error).__name__}: {error}"[:300]
        error = inner
