"""Request a range from a server, check the answer, and decide when to retry."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests
import urllib3

from ascendet import __version__
from ascendet.core.progress import Meter

_CHUNK = 2**20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Limits for requests to servers. Sizes are in bytes, times in seconds."""

    connections: int = 16  # for all files together
    smallest: int = 2**18  # smallest range
    largest: int = 2**23  # largest range; larger ones would delay hashing, which runs front to back
    tries: int = 6  # rounds without progress before a mirror is given up
    pause: float = 0.5  # after the first failure; doubled after each further one, with jitter
    longest_pause: float = 60.0
    patience: float = 30.0  # without a byte, or slower than `slowest`, before a connection is given up
    slowest: int = 1024  # bytes per second and connection
    sync: float = 5.0  # between flushes to the disk; a crash of the machine loses at most this time


class Failure(Exception):
    """A request did not return its bytes; the subclass says how to react."""


class Transient(Failure):
    """The request may succeed later: retry, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, *, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy


class Changed(Failure):
    """The file on the server is no longer the one whose bytes are here."""


class NoRanges(Failure):
    """The server does not support ranges, or sends no validator that would make them safe."""


class Useless(Failure):
    """A mirror does not have the file; `name` is the name of the error if all mirrors fail."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Retries:
    """When to retry a mirror: after an exponential back-off with jitter, or later if the server says so."""

    def __init__(self, policy: Policy, name: str) -> None:
        self._policy = policy
        self._name = name
        self._rounds = 0

    def forget(self) -> None:
        """Start counting again, after progress."""
        self._rounds = 0

    def pause(self, failure: Transient) -> float | None:
        """Print the failure, and return the seconds to wait before the retry, or None to give the mirror up."""
        policy = self._policy
        self._rounds += 1
        if self._rounds >= policy.tries or failure.wait > 5 * policy.longest_pause:
            return None
        pause = min(policy.pause * 2.0 ** (self._rounds - 1), policy.longest_pause)
        pause = max(pause * random.uniform(0.5, 1.5), failure.wait)  # noqa: S311  # no secret
        Meter.say(f"{self._name}: {failure}; retry in {pause:.1f} s")
        return pause


# -- requests --


def session() -> requests.Session:
    """Return a session that requests plain bytes and uses the user's proxies, `.netrc` and certificates."""
    new = requests.Session()
    new.headers.update({"Accept-Encoding": "identity", "User-Agent": f"ascendet/{__version__}"})
    new.max_redirects = 10
    # requests itself reads REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, which have priority; this is OpenSSL's variable.
    new.verify = os.environ.get("SSL_CERT_FILE") or True
    return new


def ask(connection: requests.Session, url: str, headers: dict[str, str], policy: Policy) -> requests.Response:
    """Send the request and return the answer; only its head has been read.

    Raises
    ------
    Transient
        The network failed.
    Useless
        There is a redirect loop, the certificate is not trusted, or the address is invalid.
    """
    try:
        return connection.get(url, headers=headers, stream=True, timeout=(policy.patience, policy.patience))
    except (requests.RequestException, UnicodeError) as error:
        passing = isinstance(error, requests.ConnectionError | requests.Timeout)
        if passing and "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise Transient(_reason(error)) from error
        raise Useless("fetch-refused", _reason(error)) from error


def chunks(raw: urllib3.HTTPResponse, length: int, policy: Policy) -> Iterator[bytes]:
    """Yield the `length` bytes of a body as they arrive.

    Raises
    ------
    Transient
        The body ends early, or arrives too slowly.
    Useless
        The body is longer than `length`.
    """
    received, looked, seen = 0, time.monotonic(), 0
    while received < length:
        chunk = _read(raw, min(_CHUNK, length - received))
        if not chunk:
            raise Transient(f"the connection ended {length - received} bytes early")
        received += len(chunk)
        yield chunk
        now = time.monotonic()
        if now - looked > policy.patience:
            if received - seen < policy.slowest * policy.patience:
                raise Transient(f"stalled: {received - seen} bytes in {now - looked:.0f} s")
            looked, seen = now, received
    if _read(raw, 1, whole=True):  # not read1: read releases the connection for the next range
        raise Useless("fetch-not-the-file", f"the body is longer than its {length} bytes")


def _read(raw: urllib3.HTTPResponse, amount: int, *, whole: bool = False) -> bytes:
    """Return the bytes that have arrived, at most `amount`; wait for all `amount` if `whole`. b"" means the end."""
    try:
        return (raw.read if whole else raw.read1)(amount, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return the text of the innermost exception, which is the most useful one."""
    while True:
        inner = error.__cause__ or getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return f"{type(error).__name__}: {error}"[:300]
        error = inner


# -- answers --


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The head of an accepted answer; `end` and `total` are None if it does not state the length."""

    partial: bool
    end: int | None
    total: int | None
    validator: str


def judge(response: requests.Response, start: int, end: int, *, ranged: bool) -> Answer:
    """Check an answer's head and return it. `ranged` says whether the request was for [start, end) or the whole file.

    Raises
    ------
    Transient, Changed, Useless
        The answer cannot be accepted.
    """
    head = response.headers
    _check_status(response, start)
    encoding = head.get("Content-Encoding", "")
    if encoding not in ("", "identity"):
        raise Useless("fetch-not-the-file", f"Content-Encoding: {encoding}, although the request excluded it")
    if head.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise Useless("fetch-not-the-file", "an HTML page instead of the file")
    length = int(head["Content-Length"]) if head.get("Content-Length", "").isdigit() else None
    validator = strong_validator(head)
    if response.status_code == 200:
        return Answer(partial=False, end=length, total=length, validator=validator)
    stated = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", head.get("Content-Range", ""))
    if not stated or not ranged:
        raise Useless("fetch-not-the-file", f"status 206 with Content-Range: {head.get('Content-Range')}")
    first, last, total = map(int, stated.groups())
    ordered = first == start <= last < min(total, end)
    if not ordered or length not in (None, last - first + 1):
        raise Useless(
            "fetch-not-the-file",
            f"requested bytes {start}-{end - 1}, received {length} of {head['Content-Range']}",
        )
    return Answer(partial=True, end=last + 1, total=total, validator=validator)


def _check_status(response: requests.Response, start: int) -> None:
    """Raise the failure that an answer's status means, unless it is 200 or 206."""
    status = response.status_code
    if status in (200, 206):
        return
    text = f"{status} {response.reason}"
    if status == 416 and start:
        raise Changed(text)  # the bytes that are here are more than the file on the server has
    if status in _TRANSIENT:
        raise Transient(text, wait=_retry_after(response.headers), busy=status in (429, 503))
    raise Useless("fetch-refused", text)


def strong_validator(head: Mapping[str, str]) -> str:
    """Return a value for If-Range: a strong ETag, or a date at least a minute older than the answer, else "".

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


def _retry_after(head: Mapping[str, str]) -> float:
    """Return the seconds that the server asks clients to wait (RFC 9110, 10.2.3), 0 if it does not say."""
    stated = head.get("Retry-After", "")
    if stated.isdigit():
        return float(stated)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    return 0.0
