"""Every way in which a server can misbehave ends in the right file or in a named error, never in a wrong file."""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ascendet.errors import AscendetError
from ascendet.supply.fetch import File, Policy, fetch, fetch_range
from servers import QUICK, HostileServer, Request, noise, wanted

SIZE = 300_000
CONTENT = noise(SIZE)
OTHER = noise(SIZE, seed=1)


@pytest.fixture
def url(server: HostileServer) -> str:
    server.files["/file.bin"] = CONTENT
    return f"{server.base}/file.bin"


def arrives(file: File) -> None:
    (one,) = fetch([file], QUICK)
    assert file.path.read_bytes() == CONTENT
    assert one.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def fails(name: str, file: File, policy: Policy = QUICK) -> AscendetError:
    with pytest.raises(AscendetError) as caught:
        fetch([file], policy)
    assert caught.value.name == name, caught.value.render()
    assert not file.path.exists()
    assert caught.value.found
    assert caught.value.hint
    return caught.value


def once(server: HostileServer, misbehave: Callable[[Request], object], times: int = 1) -> None:
    """Misbehave in the first answers only."""
    count = itertools.count()
    server.behave = lambda request: next(count) < times and (misbehave(request), True)


def always(server: HostileServer, misbehave: Callable[[Request], object]) -> None:
    server.behave = lambda request: (misbehave(request), True)


# -- a good server --


def test_ranges_over_several_connections(server: HostileServer, url: str, tmp_path: Path) -> None:
    arrives(wanted(tmp_path / "d", CONTENT, url))
    ranges = [headers["Range"] for _, headers in server.seen]
    assert len(ranges) > 4
    assert len(set(ranges)) == len(ranges)
    assert server.sent == SIZE, "not a byte twice"
    assert all(headers["If-Range"] == '"one"' for _, headers in server.seen[1:])
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in server.seen)


def test_nothing_known_but_a_prefix(url: str, tmp_path: Path) -> None:
    prefix = hashlib.sha256(CONTENT).hexdigest()[:8]
    arrives(File(path=tmp_path / "d" / "file.bin", urls=(url,), digests={"sha256": prefix}))
    fails(
        "fetch-hash-mismatch",
        File(path=tmp_path / "e" / "file.bin", urls=(url,), digests={"sha256": "00000000"}),
    )


def test_md5_and_crc_are_digests(url: str, tmp_path: Path) -> None:
    arrives(
        File(path=tmp_path / "d" / "file.bin", urls=(url,), digests={"md5": hashlib.md5(CONTENT).hexdigest()})
    )
    error = fails(
        "fetch-hash-mismatch", File(path=tmp_path / "e" / "f", urls=(url,), digests={"crc32": "00000000"})
    )
    assert "crc32:" in str(error.found)


def test_small_files_come_in_one_request_each(server: HostileServer, tmp_path: Path) -> None:
    contents = {f"/{number}.jpg": noise(5000 + number, number) for number in range(60)}
    server.files |= contents
    files = [
        wanted(tmp_path / "d", body, server.base + path, name=path[1:]) for path, body in contents.items()
    ]
    fetch(files, QUICK)
    assert {f"/{path.name}": path.read_bytes() for path in (tmp_path / "d").iterdir()} == contents
    assert len(server.seen) == 60
    assert not any("Range" in headers for _, headers in server.seen)
    assert server.connections <= QUICK.connections, "which are used again"


def test_an_empty_file(server: HostileServer, tmp_path: Path) -> None:
    server.files["/empty"] = b""
    server.behave = lambda request: request.serve(ranges=False) or True
    fetch([File(path=tmp_path / "d" / "empty", urls=(f"{server.base}/empty",))], QUICK)
    assert (tmp_path / "d" / "empty").read_bytes() == b""


# -- wrong content --


def test_wrong_length(server: HostileServer, url: str, tmp_path: Path) -> None:
    server.files["/file.bin"] = CONTENT + b"x"
    error = fails("fetch-not-the-file", wanted(tmp_path / "d", CONTENT, url))
    assert f"{SIZE + 1} bytes instead of {SIZE}" in str(error.found)


def test_wrong_digest_leaves_nothing(server: HostileServer, url: str, tmp_path: Path) -> None:
    server.files["/file.bin"] = OTHER
    error = fails("fetch-hash-mismatch", wanted(tmp_path / "d", CONTENT, url))
    assert hashlib.sha256(OTHER).hexdigest() in str(error.found)
    assert hashlib.sha256(CONTENT).hexdigest() in str(error.expected)
    assert not list((tmp_path / "d").iterdir()), "not a byte of it is kept"


def test_truncated_once_goes_on_from_there(server: HostileServer, url: str, tmp_path: Path) -> None:
    def cut(request: Request) -> None:
        request.serve(send=lambda body: request.wfile.write(body[: len(body) // 2]))
        request.hang_up()

    once(server, cut)
    arrives(wanted(tmp_path / "d", CONTENT, url))


def test_truncated_always(server: HostileServer, url: str, tmp_path: Path) -> None:
    always(server, lambda request: (request.serve(ranges=False, send=lambda body: None), request.hang_up()))
    fails("fetch-failed", wanted(tmp_path / "d", CONTENT, url))


def test_endless_body(server: HostileServer, url: str, tmp_path: Path) -> None:
    def endless(request: Request) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        while True:
            request.wfile.write(bytes(2**16))

    always(server, endless)
    fails("fetch-not-the-file", wanted(tmp_path / "d", CONTENT, url))
    fails("fetch-not-the-file", File(path=tmp_path / "e" / "f", urls=(url,)))


def test_gzip_surprise(server: HostileServer, url: str, tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    always(server, lambda request: request.answer(200, packed, {"Content-Encoding": "gzip"}))
    assert "gzip" in str(fails("fetch-not-the-file", wanted(tmp_path / "d", CONTENT, url)).found)


def test_html_page_instead_of_the_file(server: HostileServer, url: str, tmp_path: Path) -> None:
    page = b"<html>Please log in</html>"
    always(server, lambda request: request.answer(200, page, {"Content-Type": "text/html; charset=utf-8"}))
    for file in (wanted(tmp_path / "d", CONTENT, url), File(path=tmp_path / "e" / "f", urls=(url,))):
        assert "HTML" in str(fails("fetch-not-the-file", file).found)


def test_html_page_that_says_to_be_a_file(server: HostileServer, url: str, tmp_path: Path) -> None:
    always(server, lambda request: request.answer(200, b"<html>Please log in</html>"))
    fails("fetch-not-the-file", wanted(tmp_path / "d", CONTENT, url))


# -- statuses --


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451, 300, 204])
def test_refused_at_once(server: HostileServer, url: str, tmp_path: Path, status: int) -> None:
    always(server, lambda request: request.answer(status, b""))
    error = fails("fetch-refused", wanted(tmp_path / "d", CONTENT, url))
    assert str(status) in str(error.found)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: HostileServer, url: str, tmp_path: Path, status: int) -> None:
    once(server, lambda request: request.answer(status, b"busy"), times=2)
    arrives(wanted(tmp_path / "d", CONTENT, url))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_but_not_for_ever(server: HostileServer, url: str, tmp_path: Path, status: int) -> None:
    always(server, lambda request: request.answer(status, b"busy", {"Retry-After": "0"}))
    assert str(status) in str(fails("fetch-failed", wanted(tmp_path / "d", CONTENT, url)).found)
    assert len(server.seen) == QUICK.tries


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(server: HostileServer, url: str, tmp_path: Path, form: str) -> None:
    times: list[float] = []

    def busy(request: Request) -> None:
        later = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
        times.append(time.monotonic())
        request.answer(503, b"", {"Retry-After": later})

    once(server, busy)
    (one,) = fetch([wanted(tmp_path / "d", CONTENT, url)], replace(QUICK, longest_pause=10))
    assert one.size == SIZE
    assert time.monotonic() - times[0] >= 0.95


def test_a_retry_after_of_a_day_is_a_failure(server: HostileServer, url: str, tmp_path: Path) -> None:
    always(server, lambda request: request.answer(503, b"", {"Retry-After": "86400"}))
    fails("fetch-failed", wanted(tmp_path / "d", CONTENT, url))
    assert len(server.seen) == 1


def test_a_busy_server_gets_fewer_connections(server: HostileServer, url: str, tmp_path: Path) -> None:
    """One that serves only one connection at a time is served out, by one connection."""
    serving = itertools.count(1)
    busy: list[int] = []

    def behave(request: Request) -> bool:
        busy.append(next(serving))
        try:
            if len(busy) > 1:
                request.answer(429, b"")
                return True
            request.serve(send=lambda body: (time.sleep(0.02), request.wfile.write(body)))
            return True
        finally:
            busy.pop()

    server.behave = behave
    arrives(wanted(tmp_path / "d", CONTENT, url))


def test_redirects_are_followed_once_per_file(server: HostileServer, url: str, tmp_path: Path) -> None:
    server.behave = lambda request: (
        request.path == "/old" and (request.answer(302, b"", {"Location": "/file.bin"}), True)
    )
    arrives(wanted(tmp_path / "d", CONTENT, f"{server.base}/old"))
    assert [path for path, _ in server.seen].count("/old") == 1


def test_a_redirects_target_that_expires_is_asked_for_again(
    server: HostileServer, url: str, tmp_path: Path
) -> None:
    tokens = itertools.count()
    uses: dict[str, int] = {}

    def behave(request: Request) -> bool:
        if request.path == "/old":
            request.answer(302, b"", {"Location": f"/signed/{next(tokens)}"})
            return True
        uses[request.path] = uses.get(request.path, 0) + 1
        if uses[request.path] > 3:
            request.answer(403, b"expired")
            return True
        request.path = "/file.bin"
        return False

    server.behave = behave
    arrives(wanted(tmp_path / "d", CONTENT, f"{server.base}/old"))


def test_redirect_loop(server: HostileServer, url: str, tmp_path: Path) -> None:
    always(server, lambda request: request.answer(302, b"", {"Location": request.path}))
    assert "redirects" in str(fails("fetch-refused", wanted(tmp_path / "d", CONTENT, url)).found)


# -- ranges and validators --


def test_the_resource_changes_between_ranges(server: HostileServer, url: str, tmp_path: Path) -> None:
    """Bytes of the old one are not mixed with those of the new one."""
    count = itertools.count()

    def behave(request: Request) -> bool:
        if next(count) < 3:
            request.serve(OTHER, tag='"old"')
        else:
            request.serve(tag='"new"')
        return True

    server.behave = behave
    file = File(path=tmp_path / "d" / "file.bin", urls=(url,), size=SIZE)  # no digest that would notice
    arrives(file)


def test_it_changes_with_every_answer(server: HostileServer, url: str, tmp_path: Path) -> None:
    count = itertools.count()
    always(server, lambda request: request.serve(tag=f'"{next(count)}"'))
    assert "changes" in str(fails("fetch-not-the-file", wanted(tmp_path / "d", CONTENT, url)).found)


def test_if_range_ignored_by_the_server(server: HostileServer, url: str, tmp_path: Path) -> None:
    """A 206 with another ETag than the one asked for is not believed."""
    count = itertools.count()

    def behave(request: Request) -> bool:
        del request.headers["If-Range"]
        request.serve(tag='"old"' if next(count) < 2 else '"new"')
        return True

    server.behave = behave
    arrives(wanted(tmp_path / "d", CONTENT, url))


def test_no_ranges(server: HostileServer, url: str, tmp_path: Path) -> None:
    always(server, lambda request: request.serve(ranges=False))
    arrives(wanted(tmp_path / "d", CONTENT, url))
    assert len(server.seen) == 1


@pytest.mark.parametrize("tag", ['W/"weak"', None])
def test_without_a_strong_validator_it_comes_in_one_piece(
    server: HostileServer, url: str, tmp_path: Path, tag: str | None
) -> None:
    always(server, lambda request: request.serve(tag=tag))
    arrives(wanted(tmp_path / "d", CONTENT, url))
    assert sum("Range" in headers for _, headers in server.seen) == 1
    assert len(server.seen) == 2


def test_a_date_a_minute_old_is_a_strong_validator(server: HostileServer, url: str, tmp_path: Path) -> None:
    dates = {"Last-Modified": email.utils.formatdate(time.time() - 3600, usegmt=True)}
    server.behave = lambda request: (
        request.headers.__delitem__("If-Range"),
        request.serve(tag=None, headers=dates),
        True,
    )
    arrives(wanted(tmp_path / "d", CONTENT, url))
    assert len(server.seen) > 4


@pytest.mark.parametrize(
    "stated",
    ["bytes 5-99/300000", "bytes 0-16383/299999", "bytes 0-16383/*", "garbage", "", "bytes 0-299999/300000"],
)
def test_a_206_that_is_not_what_was_asked_for(
    server: HostileServer, url: str, tmp_path: Path, stated: str
) -> None:
    lie = {"Content-Range": stated, "ETag": '"one"'}
    always(server, lambda request: request.answer(206, CONTENT[:16384], lie))
    fails("fetch-not-the-file", wanted(tmp_path / "d", CONTENT, url))


def test_416_means_to_begin_again(server: HostileServer, url: str, tmp_path: Path) -> None:
    count = itertools.count()
    server.behave = lambda request: next(count) == 2 and (request.answer(416, b""), True)
    arrives(wanted(tmp_path / "d", CONTENT, url))


def test_416_always(server: HostileServer, url: str, tmp_path: Path) -> None:
    always(server, lambda request: request.answer(416, b""))
    fails("fetch-refused", wanted(tmp_path / "d", CONTENT, url))


# -- connections --


def test_nobody_listens(tmp_path: Path) -> None:
    fails("fetch-failed", wanted(tmp_path / "d", CONTENT, "http://127.0.0.1:9/file.bin"))


def test_no_such_scheme(tmp_path: Path) -> None:
    fails("fetch-refused", wanted(tmp_path / "d", CONTENT, "gopher://127.0.0.1/file.bin"))


def test_a_stall_is_noticed(server: HostileServer, url: str, tmp_path: Path) -> None:
    def stall(request: Request) -> None:
        request.serve(
            send=lambda body: (request.wfile.write(body[:100]), request.wfile.flush(), time.sleep(1.5))
        )
        request.hang_up()

    once(server, stall)
    began = time.monotonic()
    arrives(wanted(tmp_path / "d", CONTENT, url))
    assert time.monotonic() - began < 1.5, "another connection took over"


def test_a_dripping_server_is_a_stall(server: HostileServer, url: str, tmp_path: Path) -> None:
    def drip(body: bytes, request: Request) -> None:
        for byte in body:
            request.wfile.write(bytes([byte]))
            time.sleep(0.02)

    always(server, lambda request: request.serve(ranges=False, send=lambda body: drip(body, request)))
    impatient = replace(QUICK, patience=0.2)
    assert "stalled" in str(fails("fetch-failed", wanted(tmp_path / "d", CONTENT, url), impatient).found)


def test_connections_that_break_at_random(server: HostileServer, url: str, tmp_path: Path) -> None:
    count = itertools.count()

    def behave(request: Request) -> bool:
        number = next(count)
        if number % 3 == 1:
            request.serve(send=lambda body: request.wfile.write(body[: number * 1000 % len(body)]))
            request.hang_up()
            return True
        return False

    server.behave = behave
    arrives(wanted(tmp_path / "d", CONTENT, url))


# -- mirrors --


def test_the_next_mirror_is_tried(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    other.behave = lambda request: (request.answer(404, b""), True)
    arrives(wanted(tmp_path / "d", CONTENT, f"{other.base}/file.bin", url))
    assert len(other.seen) == 1


def test_what_a_mirror_sent_before_it_died_is_kept(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    other.files["/file.bin"] = CONTENT
    count = itertools.count()
    other.behave = lambda request: next(count) >= 6 and (request.hang_up(), True)
    arrives(wanted(tmp_path / "d", CONTENT, f"{other.base}/file.bin", url))
    assert other.sent > 0
    assert server.sent + other.sent == SIZE


def test_a_mirror_with_other_content_spoils_nothing(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    other.files["/file.bin"] = OTHER
    arrives(wanted(tmp_path / "d", CONTENT, f"{other.base}/file.bin", url))


def test_nor_one_that_dies_half_way(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    other.files["/file.bin"] = OTHER
    other.lose_files_after(3)
    arrives(wanted(tmp_path / "d", CONTENT, f"{other.base}/file.bin", url))


def test_without_a_digest_mirrors_are_not_mixed(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    other.files["/file.bin"] = OTHER
    other.lose_files_after(3)
    arrives(File(path=tmp_path / "d" / "file.bin", urls=(f"{other.base}/file.bin", url)))


def test_all_mirrors_reasons_are_told(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    server.behave = lambda request: (request.answer(404, b""), True)
    other.files["/file.bin"] = OTHER
    error = fails("fetch-hash-mismatch", wanted(tmp_path / "d", CONTENT, f"{other.base}/file.bin", url))
    assert "404" in str(error.found)
    assert "sha256:" in str(error.found)


# -- proxies, certificates --


def test_a_proxy_is_honoured(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["http://far.example/file.bin"] = CONTENT  # what a proxy is asked for
    monkeypatch.setenv("HTTP_PROXY", server.base)
    arrives(wanted(tmp_path / "d", CONTENT, "http://far.example/file.bin"))


def test_what_is_under_way_when_a_mirror_is_given_up_may_complete_the_file(
    server: HostileServer, other: HostileServer, url: str, tmp_path: Path
) -> None:
    """The last range fails for good while the others are still coming, and arrives from elsewhere, or was the last."""
    other.files["/file.bin"] = CONTENT
    count = itertools.count()

    def behave(request: Request) -> bool:
        number = next(count)
        if number == 6:
            request.answer(404, b"")
            return True
        request.serve(send=lambda body: (time.sleep(0.1 if number > 3 else 0), request.wfile.write(body)))
        return True

    other.behave = behave
    arrives(wanted(tmp_path / "d", CONTENT, f"{other.base}/file.bin", url))
    assert server.sent + other.sent <= SIZE + QUICK.connections * QUICK.largest, (
        "at most what was asked just then"
    )


# -- a range --


def test_a_range_is_asked_for_as_patiently_as_a_file(server: HostileServer, url: str) -> None:
    count = itertools.count()

    def behave(request: Request) -> bool:
        number = next(count)
        if number == 0:
            request.answer(503, b"busy")
        elif number == 1:
            request.serve(send=lambda body: request.wfile.write(body[:50]))
            request.hang_up()
        return number < 2

    server.behave = behave
    assert fetch_range([url], 100, 300, QUICK) == CONTENT[100:300]
    assert [headers["Range"] for _, headers in server.seen] == ["bytes=100-299"] * 3


def test_a_range_comes_from_the_next_mirror(server: HostileServer, other: HostileServer, url: str) -> None:
    always(other, lambda request: request.serve(CONTENT, ranges=False))
    missing = f"{server.base}/nothing"
    assert fetch_range([missing, f"{other.base}/file.bin", url], 0, SIZE, QUICK) == CONTENT
    assert len(other.seen) == 1, "the whole file is no answer"
    with pytest.raises(AscendetError, match="fetch-failed") as caught:
        fetch_range([missing, f"{other.base}/file.bin"], 5, 9, QUICK)
    assert f"{missing}: 404" in str(caught.value.found)
    assert f"{other.base}/file.bin: 200" in str(caught.value.found)


def test_a_range_is_whole_or_an_error(server: HostileServer, url: str) -> None:
    for start, end in ((SIZE - 10, SIZE + 1), (SIZE, SIZE + 5)):
        with pytest.raises(AscendetError, match="fetch-failed"):
            fetch_range([url], start, end, QUICK)
    always(server, lambda request: request.answer(503, b""))
    server.seen.clear()
    with pytest.raises(AscendetError, match="fetch-failed"):
        fetch_range([url], 0, 5, QUICK)
    assert len(server.seen) == QUICK.tries
