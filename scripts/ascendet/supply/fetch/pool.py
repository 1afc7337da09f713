"""Fetch files with several connections, each a thread; and `fetch_range`, for a part of a file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import requests

from ascendet.core import files
from ascendet.core.progress import Meter
from ascendet.errors import AscendetError
from ascendet.supply.fetch.answer import (
    Failure,
    Policy,
    Retries,
    Transient,
    Useless,
    ask,
    chunks,
    judge,
    session,
)
from ascendet.supply.fetch.download import Download, Fetched, File, Piece, check_space

_AT_FIRST = 4  # connections


def fetch(wanted: Sequence[File], policy: Policy | None = None, label: str = "") -> list[Fetched]:
    """Fetch all files at the same time and return facts about them, in the order of `wanted`.

    Raises
    ------
    AscendetError
        `fetch-failed` (network, or a server that stays busy), `fetch-refused` (4xx, redirect loop, certificate),
        `fetch-not-the-file` (length, encoding, an HTML page, changes meanwhile), `fetch-hash-mismatch`, `disk-full`.
        Good bytes stay beside the final path in `<name>.part`, and the next call resumes from them.
    """
    if not wanted:
        return []
    policy = policy or Policy()
    downloads = [Download(file, policy) for file in wanted]
    with files.disk_errors(wanted[0].path.parent):
        check_space(downloads)
        name = label or (wanted[0].path.name if len(wanted) == 1 else f"{len(wanted)} files")
        try:
            _Pool(downloads, policy).run(name)
        finally:
            for download in downloads:
                if not download.done and not download.present:
                    download.part.remove()
    return [download.result() for download in downloads]


def fetch_range(urls: Sequence[str], start: int, end: int, policy: Policy | None = None) -> bytes:
    """Return the bytes [start, end) of a file, a few megabytes, unverified, from the first mirror that has them.

    Raises
    ------
    AscendetError
        `fetch-failed`.
    """
    policy = policy or Policy()
    failures = []
    with session() as connection:
        for url in urls:
            try:
                return _ask_until_answered(connection, url, start, end, policy)
            except Failure as failure:
                failures.append(f"{url}: {failure}")
    raise AscendetError(
        "fetch-failed",
        f"a part of {urls[0].rpartition('/')[2]} could not be fetched",
        expected=f"bytes {start}-{end - 1}",
        found="\n".join(failures),
        hint="check the network (HTTPS_PROXY, REQUESTS_CA_BUNDLE), then run the command again",
    )


def _ask_until_answered(
    connection: requests.Session, url: str, start: int, end: int, policy: Policy
) -> bytes:
    """Return the bytes [start, end), retrying; raise the last `Failure` if this mirror must be given up."""
    retries = Retries(policy, url.rpartition("/")[2])
    while True:
        try:
            with ask(connection, url, {"Range": f"bytes={start}-{end - 1}"}, policy) as response:
                answer = judge(response, start, end, ranged=True)
                if not answer.partial or answer.end != end:
                    stated = response.headers.get("Content-Range")
                    raise Useless("fetch-failed", f"{response.status_code}, Content-Range: {stated}")
                return b"".join(chunks(response.raw, end - start, policy))
        except Transient as failure:
            pause = retries.pause(failure)
            if pause is None:
                raise
        time.sleep(pause)


class _Pool:
    """The connections: threads that fetch the next range of any file, with priority for the first file."""

    def __init__(self, downloads: list[Download], policy: Policy) -> None:
        self.downloads = downloads
        self.policy = policy
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self.stopping = False
        self.allowed = min(_AT_FIRST, policy.connections)
        self._clock = (time.monotonic(), time.process_time())

    def run(self, label: str) -> None:
        """Fetch all files. Meanwhile this thread hashes, flushes and shows the progress."""
        # Daemon threads, so that a process that must end does not wait for a server.
        threads = [
            threading.Thread(target=self._guard, args=(self._work,), daemon=True)
            for _ in range(self.policy.connections)
        ]
        for download in self.downloads:
            if not download.gaps:  # an earlier process was killed before its last step
                self._finish(download)
        meter = Meter(label, sum(download.present for download in self.downloads))
        try:
            with meter:
                for thread in threads:
                    thread.start()
                while not self.error and not self._all_done():
                    self._tend()
                    meter.show(*self._totals())
        finally:
            self._stop()
            deadline = time.monotonic() + 1.0
            for thread in threads:
                if thread.is_alive():
                    thread.join(max(0.0, deadline - time.monotonic()))
        if self.error:
            raise self.error

    def _all_done(self) -> bool:
        return all(download.done for download in self.downloads)

    # -- the main thread --

    def _tend(self) -> None:
        """Hash and flush the bytes that have arrived; wait a moment if there was nothing to hash."""
        hashed = sum(download.digest(2**26) for download in self.downloads if not download.done)
        for download in self.downloads:
            download.flush()
        self._widen()
        if not hashed:
            with self.changed:
                self.changed.wait(0.1)

    def _widen(self) -> None:
        """Double the connections if this process mostly waits for them; if it is busy, more would not help."""
        now, worked = time.monotonic(), time.process_time()
        begin, before = self._clock
        if now - begin < 0.1 or self.allowed == self.policy.connections:
            return
        if worked - before < 0.5 * (now - begin):
            with self.changed:
                self.allowed = min(2 * self.allowed, self.policy.connections)
                self.changed.notify_all()
        self._clock = (now, worked)

    def _totals(self) -> tuple[int, int | None]:
        """Return the number of bytes that have arrived, and the total, None while a size is unknown."""
        with self.changed:
            sizes = [download.size for download in self.downloads]
            present = sum(
                download.size or 0 if download.done else download.present for download in self.downloads
            )
        return present, None if None in sizes else sum(size or 0 for size in sizes)

    # -- the connections' threads --

    def _stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def _guard(self, body: Callable[[], None]) -> None:
        """Run a thread's body; an exception in it ends the fetch."""
        try:
            body()
        except BaseException as error:
            self.error = self.error or error
            self._stop()

    def _work(self) -> None:
        with session() as connection:
            while task := self._wait_for_task():
                self._attempt(connection, *task)

    def _wait_for_task(self) -> tuple[Download, Piece] | None:
        """Wait for the next range to fetch and return it; return None when all files are done."""
        with self.changed:
            while not self.stopping and not self._all_done():
                now = time.monotonic()
                if task := self._next(now):
                    return task
                pauses = [download.not_before - now for download in self.downloads]
                self.changed.wait(min((pause for pause in pauses if pause > 0), default=None))
        return None

    def _next(self, now: float) -> tuple[Download, Piece] | None:
        if sum(len(download.active) for download in self.downloads) >= self.allowed:
            return None
        for download in self.downloads:
            if piece := download.take(now):
                return download, piece
        return None

    def _attempt(self, connection: requests.Session, download: Download, piece: Piece) -> None:
        """Fetch one range, and finish the file if it was the last one."""
        failure: Failure | None = None
        try:
            self._transfer(connection, download, piece)
        except Failure as error:
            failure = error
        with self.changed:
            complete = download.settle(piece, failure)
            self.changed.notify_all()
        if complete:
            self._finish(download)

    def _finish(self, download: Download) -> None:
        wrong = download.finish()
        with self.changed:
            if wrong:
                download.discard(wrong)
            self.changed.notify_all()

    def _transfer(self, connection: requests.Session, download: Download, piece: Piece) -> None:
        """Request a range and write its bytes; return early if they are no longer needed."""
        headers = {}
        ranged = download.ranges and not (piece.start == 0 and piece.end == download.size)
        if ranged:
            headers["Range"] = f"bytes={piece.start}-{piece.end - 1}"
            if download.validator:
                headers["If-Range"] = download.validator
        with ask(connection, piece.url, headers, self.policy) as response:
            with self.changed:
                if not download.wants(piece):
                    return
                download.accept(piece, response, ranged=ranged)
                self.changed.notify_all()  # other connections may start now
            for chunk in chunks(response.raw, piece.end - piece.start, self.policy):
                if self.stopping or piece.part is not download.part:
                    return
                piece.write(chunk)
