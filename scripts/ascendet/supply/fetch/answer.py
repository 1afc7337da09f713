"""Asking a server for a range, judging its answer, and when to ask again."""

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
    """How to behave towards servers. Sizes in bytes, times in seconds."""

    connections: int = 16  # of all files together
    smallest: int = 2**18  # a range
    largest: int = 2**23  # larger ranges would delay hashing, which runs front to back
    tries: int = 6  # rounds without progress until a mirror is given up
    pause: float = 0.5  # after the first; it doubles, with jitter
    longest_pause: float = 60.0
    patience: float = 30.0  # without a byte, or with less than `slowest`
    slowest: int = 1024  # per second and connection
    sync: float = 5.0  # between flushes, what a crash of the machine can cost


class Failure(Exception):
    """A request did not bring the bytes that it was for; the subclass says what to do."""


class Transient(Failure):
    """Try again, after `wait` seconds if the server says so."""

    def __init__(self, reason: str, *, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.busy = busy


class Changed(Failure):
    """The resource is no longer the one whose bytes we have."""


class NoRanges(Failure):
    """The server has no ranges, or no validator that would make them safe."""


class Useless(Failure):
    """A mirror does not have the file; `name` is the error's, should all mirrors end so."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Retries:
    """The one rule for asking a mirror again: exponential back-off with jitter, or longer if the server says so."""

    def __init__(self, policy: Policy, name: str) -> None:
        self._policy = policy
        self._name = name
        self._rounds = 0

    def forget(self) -> None:
        """Start counting again: there was progress."""
        self._rounds = 0

    def pause(self, failure: Transient) -> float | None:
        """Tell people, and return the seconds to wait before the next round; None if the mirror is to be given up."""
        policy = self._policy
        self._rounds += 1
        if self._rounds >= policy.tries or failure.wait > 5 * policy.longest_pause:
            return None
        pause = min(policy.pause * 2.0 ** (self._rounds - 1), policy.longest_pause)
        pause = max(pause * random.uniform(0.5, 1.5), failure.wait)  # noqa: S311  # no secret
        Meter.say(f"{self._name}: {failure}; again in {pause:.1f} s")
        return pause


# -- asking --


def session() -> requests.Session:
    """Return a session that asks for plain bytes and honours proxies, `.netrc` and the user's certificates."""
    new = requests.Session()
    new.headers.update({"Accept-Encoding": "identity", "User-Agent": f"ascendet/{__version__}"})
    new.max_redirects = 10
    # requests itself reads REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, which win; this is OpenSSL's own variable.
    new.verify = os.environ.get("SSL_CERT_FILE") or True
    return new


def ask(connection: requests.Session, url: str, headers: dict[str, str], policy: Policy) -> requests.Response:
    """Send the request and return the answer, of which only the head was read.

    Raises
    ------
    Transient
        The network failed.
    Useless
        A redirect loop, a certificate that is not trusted, an address that is none.
    """
    try:
        return connection.get(url, headers=headers, stream=True, timeout=(policy.patience, policy.patience))
    except (requests.RequestException, UnicodeError) as error:
        passing = isinstance(error, requests.ConnectionError | requests.Timeout)
        if passing and "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise Transient(_reason(error)) from error
        raise Useless("fetch-refused", _reason(error)) from error


def chunks(raw: urllib3.HTTPResponse, length: int, policy: Policy) -> Iterator[bytes]:
    """Yield the `length` bytes of a body as they come.

    Raises
    ------
    Transient
        The body ends early, or comes too slowly.
    Useless
        It goes on after its end.
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
    if _read(raw, 1, whole=True):  # not read1: this gives the connection back for the next range
        raise Useless("fetch-not-the-file", f"goes on after its {length} bytes")


def _read(raw: urllib3.HTTPResponse, amount: int, *, whole: bool = False) -> bytes:
    """Return what is there, at most `amount` bytes, or all of these if `whole`; nothing at the end."""
    try:
        return (raw.read if whole else raw.read1)(amount, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Transient(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return the innermost exception's text, which is the one that people can use."""
    while True:
        inner = error.__cause__ or getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return f"{type(error).__name__}: {error}"[:300]
        error = inner


# -- judging --


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the head of a believable answer says; `end` and `total` are None where it does not say the length."""

    partial: bool
    end: int | None
    total: int | None
    validator: str


def judge(response: requests.Response, start: int, end: int, *, ranged: bool) -> Answer:
    """Judge an answer's head. `ranged` says whether the request was for [start, end) or for everything.

    Raises
    ------
    Transient, Changed, Useless
        What is wrong with it.
    """
    head = response.headers
    _check_status(response, start)
    encoding = head.get("Content-Encoding", "")
    if encoding not in ("", "identity"):
        raise Useless("fetch-not-the-file", f"sent with Content-Encoding: {encoding}, though asked not to")
    if head.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise Useless("fetch-not-the-file", "an HTML page instead of the file")
    length = int(head["Content-Length"]) if head.get("Content-Length", "").isdigit() else None
    validator = strong_validator(head)
    if response.status_code == 200:
        return Answer(partial=False, end=length, total=length, validator=validator)
    stated = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", head.get("Content-Range", ""))
    if not stated or not ranged:
        raise Useless("fetch-not-the-file", f"a 206 with Content-Range: {head.get('Content-Range')}")
    first, last, total = map(int, stated.groups())
    ordered = first == start <= last < min(total, end)
    if not ordered or length not in (None, last - first + 1):
        raise Useless(
            "fetch-not-the-file",
            f"asked for bytes {start}-{end - 1}, got {length} of {head['Content-Range']}",
        )
    return Answer(partial=True, end=last + 1, total=total, validator=validator)


def _check_status(response: requests.Response, start: int) -> None:
    """Let only 200 and 206 pass."""
    status = response.status_code
    if status in (200, 206):
        return
    text = f"{status} {response.reason}"
    if status == 416 and start:
        raise Changed(text)  # what we have is longer than the resource
    if status in _TRANSIENT:
        raise Transient(text, wait=_retry_after(response.headers), busy=status in (429, 503))
    raise Useless("fetch-refused", text)


def strong_validator(head: Mapping[str, str]) -> str:
    """Return what may stand in If-Range: a strong ETag, or a date a minute older than the answer; else nothing.

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
    """Return the seconds that the server wants us to wait (RFC 9110, 10.2.3), 0 where it does not say."""
    stated = head.get("Retry-After", "")
    if stated.isdigit():
        return float(stated)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(stated) - datetime.now(UTC)).total_seconds())
    return 0.0
