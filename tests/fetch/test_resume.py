"""A fetch that is killed, interrupted, out of space or in company goes on where it stopped."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
from ascendet.errors import AscendetError
from ascendet.supply.fetch import File, Policy, answer, download, fetch
from ascendet.supply.fetch import part as journal
from servers import QUICK, HostileServer, Nginx, noise, wanted

FORK = multiprocessing.get_context("fork")


def present(folder: Path) -> int:
    """The bytes in a part folder, as a killed process left them."""
    progress = folder / "progress"
    raw = progress.read_bytes() if progress.exists() else b""
    return sum(length for _, length in journal.Part.ROW.iter_unpack(raw[: len(raw) // 16 * 16]))


def interruptible(files: list[File], policy: Policy) -> None:
    # A job in the background inherits that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fetch(files, policy)


def start(file: File, policy: Policy) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=interruptible, args=([file], policy), daemon=True)
    process.start()
    return process


def count_received(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count what all processes read from their connections, in memory that outlives them; a slot per thread."""
    slots = multiprocessing.RawArray("Q", 4096)
    real = answer._read

    def read(raw: urllib3.HTTPResponse, amount: int, *, whole: bool = False) -> bytes:
        chunk = real(raw, amount, whole=whole)
        slots[threading.get_native_id() % len(slots)] += len(chunk)
        return chunk

    monkeypatch.setattr(answer, "_read", read)
    return lambda: sum(slots)


def test_killed_at_20_random_points(
    nginx: Callable[..., Nginx], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One download, killed 20 times in all: it reads at most 2 % twice, and the digest is right."""
    received = count_received(monkeypatch)
    server = nginx("set $limit 60k; if (-f $document_root/unlimited) { set $limit 0; } limit_rate $limit;")
    content = noise(24 * 2**20)
    (server.root / "file.bin").write_bytes(content)
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")
    part = tmp_path / "d" / "file.bin.part"
    random_ = random.Random()
    for _ in range(20):
        before = present(part)
        process = start(file, Policy())
        while present(part) == before and process.is_alive():
            time.sleep(0.005)
        time.sleep(random_.uniform(0.0, 0.3))
        assert process.is_alive(), "it ended before it was killed"
        process.kill()
        process.join()
    (server.root / "unlimited").touch()
    (one,) = fetch([file], Policy())
    assert file.path.read_bytes() == content
    assert one.received < len(content)
    again = received() - len(content)
    print(f"\n20 kills: {100 * again / len(content):.2f} % of the file fetched again")
    assert 0 <= again <= len(content) // 50
    assert not part.exists()


def test_after_a_crash_of_the_machine_only_what_was_flushed_counts(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(400_000)
    server.files["/file.bin"] = content
    server.lose_files_after(6)
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")
    with pytest.raises(AscendetError):
        fetch([file], QUICK)
    part = tmp_path / "d" / "file.bin.part"
    flushed = sum(length for _, length in journal.Part(part).facts["flushed"])  # type: ignore[misc]
    assert present(part) > flushed
    # What was written and not flushed is lost in the crash, though the rows were not.
    (part / "content").write_bytes(bytes(len(content)))
    monkeypatch.setattr(journal, "_boot", lambda: "another boot")
    server.behave = lambda request: False
    (one,) = fetch([file], QUICK)
    assert file.path.read_bytes() == content
    assert one.received >= len(content) - flushed


@pytest.mark.parametrize("lost", ["progress", "manifest.json", "content"])
def test_a_torn_part_is_begun_again(server: HostileServer, tmp_path: Path, lost: str) -> None:
    content = noise(300_000)
    server.files["/file.bin"] = content
    server.lose_files_after(5)
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")
    with pytest.raises(AscendetError):
        fetch([file], QUICK)
    (tmp_path / "d" / "file.bin.part" / lost).unlink()
    server.behave = lambda request: False
    fetch([file], QUICK)
    assert file.path.read_bytes() == content


def test_bytes_that_rot_on_disk_are_fetched_again(server: HostileServer, tmp_path: Path) -> None:
    content = noise(300_000)
    server.files["/file.bin"] = content
    server.lose_files_after(5)
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")
    with pytest.raises(AscendetError):
        fetch([file], QUICK)
    with (tmp_path / "d" / "file.bin.part" / "content").open("r+b") as part:
        part.write(bytes(100))
    server.behave = lambda request: False
    fetch([file], QUICK)
    assert file.path.read_bytes() == content


def test_killed_before_the_last_step(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(300_000)
    server.files["/file.bin"] = content
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")

    def die(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download.Download, "finish", die)
        fetch([file], QUICK)
    asked = len(server.seen)
    (one,) = fetch([file], QUICK)
    assert len(server.seen) == asked, "everything was here"
    assert one.received == 0
    assert file.path.read_bytes() == content


def test_interrupted_by_the_user(nginx: Callable[..., Nginx], tmp_path: Path) -> None:
    server = nginx("limit_rate 200k;")
    content = noise(30 * 2**20)
    (server.root / "file.bin").write_bytes(content)
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")
    part = tmp_path / "d" / "file.bin.part"
    process = start(file, Policy())
    while present(part) < 2**20 and process.is_alive():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    began = time.monotonic()
    process.join(10)
    assert process.exitcode not in (0, None)
    assert time.monotonic() - began < 5
    assert not file.path.exists()
    assert present(part) >= 2**20


def test_a_full_disk_has_a_name_and_loses_nothing(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(400_000)
    server.files["/file.bin"] = content
    file = wanted(tmp_path / "d", content, f"{server.base}/file.bin")
    real, left = os.pwrite, [100_000]

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(data)
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch, pytest.raises(AscendetError) as caught:
        patch.setattr(os, "pwrite", full)
        fetch([file], QUICK)
    assert caught.value.name == "disk-full"
    (one,) = fetch([file], QUICK)
    # Of 100,000 bytes on the disk, those of a connection that had not noted them yet may come again.
    assert one.received <= len(content) - 50_000
    assert file.path.read_bytes() == content


def test_too_little_space_is_told_before(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    for size in (2 * 10**6, None):
        server.files["/file.bin"] = bytes(2 * 10**6)
        with pytest.raises(AscendetError) as caught:
            fetch([File(path=tmp_path / "d" / "f", urls=(f"{server.base}/file.bin",), size=size)], QUICK)
        assert caught.value.name == "disk-full"
        assert server.sent == 0 or size is None


def test_a_custom_certificate_authority(
    server: HostileServer, other: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "ca.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.files["/file.bin"] = content = noise(100_000)
    url = f"{server.base.replace('http', 'https')}/file.bin"
    with pytest.raises(AscendetError) as caught:
        fetch([wanted(tmp_path / "d", content, url)], QUICK)
    assert caught.value.name == "fetch-refused"
    assert "certificate" in str(caught.value.found)
    for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(certificate))
            fetch([wanted(tmp_path / variable, content, url)], QUICK)
        assert (tmp_path / variable / "file.bin").read_bytes() == content
    server.behave = lambda request: (request.answer(302, b"", {"Location": f"{other.base}/f"}), True)
    other.files["/f"] = content
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fetch([wanted(tmp_path / "known", content, url)], QUICK)
    with pytest.raises(AscendetError, match="fetch-refused"):
        fetch([File(path=tmp_path / "unknown", urls=(url,))], QUICK)


def test_progress_is_told_in_plain_lines(
    nginx: Callable[..., Nginx],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ascendet.core import progress

    monkeypatch.setattr(progress, "_EVERY", 0.05)
    server = nginx("limit_rate 200k;")
    content = noise(2**20)
    (server.root / "file.bin").write_bytes(content)
    fetch([wanted(tmp_path / "d", content, f"{server.base}/file.bin")], Policy())
    lines = capsys.readouterr().err.splitlines()
    assert any("file.bin: " in line and " MB/s, 0:0" in line for line in lines), lines


def test_threads_end_with_the_fetch(server: HostileServer, tmp_path: Path) -> None:
    server.files["/file.bin"] = content = noise(200_000)
    fetch([wanted(tmp_path / "d", content, f"{server.base}/file.bin")], QUICK)
    assert not [thread for thread in threading.enumerate() if "_guard" in thread.name]
