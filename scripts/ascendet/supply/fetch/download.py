"""The state of one file while it is fetched: its missing ranges, its mirror, and its digests."""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests

from ascendet.core import files
from ascendet.core.progress import Meter
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.supply.fetch import answer as answers
from ascendet.supply.fetch.answer import Changed, Failure, NoRanges, Policy, Retries, Transient, Useless
from ascendet.supply.fetch.part import Digests, Part, complement

_FULL_DIGEST = {"sha256": 64, "md5": 32}


@dataclass(frozen=True, kw_only=True)
class File:
    """A file to fetch: its final path, its mirrors in the order to try, and the known facts about its content.

    `digests` maps sha256, md5 or crc32 to lower-case hex, which may be only the beginning of the digest.
    """

    path: Path
    urls: tuple[str, ...]
    size: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def identified(self) -> bool:
        """Whether a full digest identifies the content, so that bytes of several mirrors may be mixed."""
        return any(len(self.digests.get(name, "")) == length for name, length in _FULL_DIGEST.items())


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file that was fetched; `received` counts only the bytes of this run, not those before it was resumed."""

    path: Path
    size: int
    sha256: str
    url: str
    received: int


@dataclass(eq=False)
class Piece:
    """A range that is being fetched: [start, end) from `url`, written to the row `row` of `part`."""

    part: Part
    url: str
    start: int
    end: int
    row: int
    received: int = 0

    @property
    def position(self) -> int:
        """The position of the next byte in the file."""
        return self.start + self.received

    def write(self, chunk: bytes) -> None:
        """Write the next bytes at their position."""
        self.part.write(self.row, chunk)
        self.received += len(chunk)


class Download:
    """The state of one file. The caller of all methods except `digest`, `flush` and `finish` holds the pool's lock."""

    def __init__(self, file: File, policy: Policy) -> None:
        self.file = file
        self.policy = policy
        self.failures: list[tuple[str, Useless]] = []
        self.received = 0
        self.sha256 = ""
        self.done = False
        self.hashing = threading.Lock()
        self.mirrors = list(file.urls)
        self._turn_to(self.mirrors.pop(0))
        self._adopt(Part(file.path.with_name(f"{file.path.name}.part")))

    def _turn_to(self, mirror: str) -> None:
        """Use this mirror from now on, without failures so far."""
        self.origin = mirror
        self.url = mirror  # after a redirect, its target
        self.retries = Retries(self.policy, self.file.path.name)
        self.restarts = 0
        self.not_before = 0.0
        self.limit = self.policy.connections
        self.ranges = True

    def _adopt(self, part: Part) -> None:
        """Continue from the bytes in `part`, if they can belong to this file."""
        size, here = part.facts.get("size"), part.facts.get("url") == self.origin
        fits = isinstance(size, int) and self.file.size in (None, size) and (here or self.file.identified)
        if part.rows and not fits:
            part.remove()
            part = Part(part.folder)
        self.part = part
        self.size = int(str(size)) if part.rows else self.file.size
        self.validator = str(part.facts["validator"]) if part.rows and here else ""
        self.inherited = bool(part.rows)  # some bytes come from another mirror or an earlier run
        self.open = False  # whether an answer of this mirror has given the size and the validator
        self.active: list[Piece] = []
        self.gaps = complement(part.rows, self.size)
        self.digests = Digests({"sha256", *self.file.digests})

    def reset(self) -> None:
        """Discard all bytes and start again."""
        with self.hashing:
            self.part.remove()
            self._adopt(Part(self.part.folder))

    @property
    def present(self) -> int:
        """Bytes on disk."""
        return sum(length for _, length in self.part.spans())

    # -- ranges --

    def take(self, now: float) -> Piece | None:
        """Return the next range to fetch, or None for now."""
        if self.done or not self.gaps or now < self.not_before or len(self.active) >= self.limit:
            return None
        if not self.open and self.active:
            return None  # its answer must come first
        start, end = self.gaps.pop(0)
        stop = self._stop(start, end)
        if stop < end:
            self.gaps.insert(0, (stop, end))
        piece = Piece(self.part, self.url, start, stop, self.part.begin(start))
        self.active.append(piece)
        return piece

    def _stop(self, start: int, end: int) -> int:
        """Return the end of the range to request at the beginning of the gap [start, end)."""
        if not self.ranges:
            return end
        # Ranges get smaller towards the end, so that all connections finish at about the same time.
        left = 0 if self.size is None else end - start + sum(after - before for before, after in self.gaps)
        policy = self.policy
        length = min(max(left // (2 * policy.connections), policy.smallest), policy.largest)
        return start + length if end - start > 1.5 * length else end

    def wants(self, piece: Piece) -> bool:
        """Return whether the answer to a request is still useful: part and mirror have not changed since."""
        return piece.part is self.part and piece.url in (self.url, self.origin)

    def accept(self, piece: Piece, response: requests.Response, *, ranged: bool) -> None:
        """Check an answer's head, and set the size, the validator and the piece's end from it."""
        answer = answers.judge(response, piece.start, piece.end, ranged=ranged)
        if not self.file.digests and piece.url.startswith("https:") and response.url.startswith("http:"):
            raise Useless(
                "fetch-refused",
                "redirected from https to http, and no digest is known that would reveal a fake",
            )
        if not answer.partial and piece.start:
            # Either the file on the server changed (If-Range), or the server does not support ranges.
            changed = self.validator and answer.validator != self.validator
            raise Changed("another validator") if changed else NoRanges("the whole file instead of a range")
        total = self.file.size if answer.total is None else answer.total
        if total is None:
            raise Useless("fetch-not-the-file", "neither the server nor the lock states its length")
        if self.file.size not in (None, total):
            raise Useless("fetch-not-the-file", f"{total} bytes instead of {self.file.size}")
        if self.open and (total != self.size or answer.validator != self.validator):
            raise Changed("another length or validator")
        if answer.partial and not answer.validator:
            raise NoRanges("no validator")
        end = total if answer.end is None else answer.end
        if not self.open:
            self._open(piece, total, end, answer.validator)
        elif end < piece.end:
            bisect.insort(self.gaps, (end, piece.end))
        piece.end = end
        if answer.partial and response.history:
            self.url = response.url  # otherwise each range would cost a round trip for the redirect

    def _open(self, piece: Piece, total: int, end: int, validator: str) -> None:
        """Set the size and the validator from the first answer of this mirror."""
        same = total == self.size and validator and validator == self.validator
        if self.part.spans() and not same and not (self.file.identified and total == self.size):
            raise Changed("another length or validator than those of the bytes that were fetched before")
        self.size, self.validator, self.open = total, validator, True
        self.gaps = complement([*self.part.spans(), (piece.start, end - piece.start)], total)
        if self.file.size is None:
            check_space([self])
        if validator and total > self.policy.smallest:
            with self.hashing:  # the part's manifest must have one writer
                self.part.describe(size=total, validator=validator, url=self.origin)

    # -- the end of a range --

    def settle(self, piece: Piece, failure: Failure | None) -> bool:
        """Take back a piece that ended, react to its failure if any, and return whether all bytes have arrived.

        Raises
        ------
        AscendetError
            No mirror is left.
        """
        self.received += piece.received
        if piece.part is not self.part:
            return False  # the file was started again meanwhile, so this piece is of no use
        self.active.remove(piece)
        if piece.position < piece.end:
            bisect.insort(self.gaps, (piece.position, piece.end))
        elif not failure:
            self.retries.forget()
            self.limit = min(self.limit + 1, self.policy.connections)
        if failure and self.wants(piece):
            self._react(piece, failure)
        return not self.gaps and not self.active and not self.done

    def _react(self, piece: Piece, failure: Failure) -> None:
        if isinstance(failure, Useless) and piece.url != self.origin:
            failure = Transient(str(failure))  # a redirect's target may have expired
        match failure:
            case Transient():
                self._wait(piece, failure)
            case Changed():
                self._restart()
            case NoRanges():
                self.ranges, self.limit = False, 1
                self.reset()
            case Useless():
                self._refuse(failure)

    def _wait(self, piece: Piece, failure: Transient) -> None:
        """Pause this file for a while."""
        if piece.received >= self.policy.smallest // 4:
            self.retries.forget()
        self.url = self.origin  # a redirect's target may have expired
        if time.monotonic() < self.not_before:
            return  # another connection has already failed in this round
        if failure.busy:
            self.limit = max(1, min(self.limit, len(self.active) + 1) // 2)
        pause = self.retries.pause(failure)
        if pause is None:
            self._give_up(Useless("fetch-failed", str(failure)))
        else:
            self.not_before = time.monotonic() + pause

    def _restart(self) -> None:
        """Start again because the file on the server changed; give the mirror up after a few times."""
        self.restarts += 1
        if self.restarts > 3:
            self._give_up(Useless("fetch-not-the-file", "the file changes while it is being fetched"))
        else:
            self.reset()

    def _refuse(self, failure: Useless) -> None:
        Meter.say(f"{self.file.path.name}: {self.origin}: {failure}")
        self._give_up(failure)

    def _give_up(self, failure: Useless) -> None:
        """Switch to the next mirror, or raise the error if there is none."""
        self.failures.append((self.origin, failure))
        if not self.mirrors:
            self.limit = 0  # until the other connections know, they ask for nothing more
            raise self._error()
        self._turn_to(self.mirrors.pop(0))
        if self.file.identified and self.validator:
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
            hint="check the network (HTTPS_PROXY, REQUESTS_CA_BUNDLE), then run the command again: it resumes;\n"
            "or add MIRROR=cn or MIRROR=https://<your mirror>, which is tried first",
        )

    # -- without the pool's lock --

    def digest(self, at_most: int) -> int:
        """Hash further bytes before the first gap; return the number of bytes hashed."""
        with self.hashing:
            begin = self.digests.position
            self.digests.advance(self.part.content.fileno(), min(self.part.front(), begin + at_most))
            return self.digests.position - begin

    def flush(self) -> None:
        """Flush the bytes to the disk, unless that was done a few seconds ago."""
        with self.hashing:
            if self.part.facts and not self.done:
                self.part.flush(self.policy.sync)

    def finish(self) -> str:
        """Verify the complete content and rename the file; return the wrong digest instead, if there is one."""
        assert self.size is not None
        while self.digests.position < self.size:
            self.digest(2**26)
        found = self.digests.hex()
        for name, expected in self.file.digests.items():
            if not found[name].startswith(expected):
                return f"{name}:{found[name]} ({self.size} bytes)"
        os.fsync(self.part.content.fileno())
        with self.hashing:
            (self.part.folder / "content").rename(self.file.path)
            self.part.remove()
            files.fsync(self.file.path.parent)
            self.sha256, self.done = found["sha256"], True
        return ""

    def discard(self, wrong: str) -> None:
        """Discard a content whose digest is wrong; give the mirror up if all bytes came from it."""
        inherited = self.inherited
        self.reset()
        if not inherited:  # otherwise this mirror is tried once more, from the beginning
            self._refuse(Useless("fetch-hash-mismatch", wrong))

    def result(self) -> Fetched:
        """Return the facts about the finished file."""
        assert self.size is not None
        return Fetched(
            path=self.file.path, size=self.size, sha256=self.sha256, url=self.origin, received=self.received
        )


def check_space(downloads: Sequence[Download]) -> None:
    """Check that the disk has room for the bytes that are still missing.

    Raises
    ------
    AscendetError
        `disk-full`.
    """
    needed = sum((download.size or 0) - download.present for download in downloads if not download.done)
    files.check_space(downloads[0].file.path.parent, needed, "ASCENDET_DATA")
