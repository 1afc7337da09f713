"""Fetching beside curl and wget, in one run, from Debian's nginx on this machine; prints the figures.

    make bench-fetch

Per-connection limit, no limit, 200 small files with 50 ms of latency, memory for 5 GB, and
one download killed 20 times. curl and wget only store; ours also hashes and flushes to the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

sys.path[:0] = [str(Path(__file__).parents[1] / "fetch")]

from ascendet.supply.fetch import File, Policy, answer, fetch  # noqa: E402
from servers import Nginx  # noqa: E402

MB = 10**6
FORK = multiprocessing.get_context("fork")


def main() -> None:
    """Measure and print."""
    print(f"{os.cpu_count()} processors ({platform.machine()}), load {os.getloadavg()[0]:.1f} at the start")
    base = Path("/dev/shm") if shutil.disk_usage("/dev/shm").free > 6 * 10**9 else None
    wanted = sys.argv[1:]
    for measure in (limited, unlimited, small_files, memory, kills):
        if not wanted or measure.__name__ in wanted:
            disk = None if measure is memory else base
            with tempfile.TemporaryDirectory(prefix="bench-fetch-", dir=disk) as folder:
                print(f"\n{measure.__name__}: {(measure.__doc__ or '').splitlines()[0]}", flush=True)
                measure(Path(folder))


@contextlib.contextmanager
def nginx(folder: Path, settings: str = "", address: str = "127.0.0.1") -> Iterator[Nginx]:
    """Debian's nginx with more settings for its server block."""
    one = Nginx(folder / "nginx", settings, address)
    try:
        yield one
    finally:
        one.stop()


def make_file(path: Path, size: int) -> File:
    """A file of noise below nginx's root, and what is known about it."""
    hasher = hashlib.sha256()
    source = random.Random(0)
    with path.open("wb") as file:
        for _ in range(size // MB):
            chunk = source.randbytes(MB)
            hasher.update(chunk)
            file.write(chunk)
    return File(path=path, urls=(), size=size, digests={"sha256": hasher.hexdigest()})


def ours(file: File, target: Path, *urls: str) -> float:
    """Seconds that fetching into `target` takes, in a process of its own like curl's."""
    wanted = File(path=target, urls=urls, size=file.size, digests=file.digests)
    begin = time.perf_counter()
    process = FORK.Process(target=fetch, args=([wanted],))
    process.start()
    process.join()
    seconds = time.perf_counter() - begin
    assert process.exitcode == 0
    return seconds


def tool(command: list[str], target: Path, stop: float | None = None) -> float:
    """Bytes per second of curl or wget, stopped after `stop` seconds."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(stop)
    seconds = time.perf_counter() - begin
    process.kill()
    process.wait()
    rate = target.stat().st_size / seconds
    target.unlink()
    return rate


def curl(url: str, target: Path) -> list[str]:
    return ["curl", "--silent", "--show-error", "--output", str(target), url]


def wget(url: str, target: Path) -> list[str]:
    return ["wget", "--quiet", "--output-document", str(target), url]


def limited(folder: Path) -> None:
    """nginx limits each connection to 1 MB/s (limit_rate, which lets a second's worth through at once)."""
    size, limit = 400 * MB, MB
    with nginx(folder, f"limit_rate {limit};") as server:
        file = make_file(server.root / "file", size)
        url, target = f"{server.base}/file", folder / "out"
        rates = {"curl": tool(curl(url, target), target, 20.0), "wget": tool(wget(url, target), target, 20.0)}
        rate = size / ours(file, target, url)
    most = Policy().connections * limit
    for name, value in rates.items():
        print(f"  {name:<8} {value / MB:8.2f} MB/s    ours / {name} {rate / value:.1f}x")
    print(
        f"  ours     {rate / MB:8.2f} MB/s    of {most / MB:.0f} MB/s (connections x limit) {100 * rate / most:.0f} %"
    )


def unlimited(folder: Path) -> None:
    """1 GB on loopback without a limit, best of 5, in turn."""
    size = 1000 * MB
    best = {"curl": 0.0, "wget": 0.0, "curl, then sha256sum": 0.0, "ours": 0.0}
    with nginx(folder) as server:
        file = make_file(server.root / "file", size)
        url, target = f"{server.base}/file", folder / "out"
        for _ in range(5):
            best["curl"] = max(best["curl"], tool(curl(url, target), target))
            best["wget"] = max(best["wget"], tool(wget(url, target), target))
            verified = [
                "sh",
                "-c",
                shlex.join(curl(url, target)) + ' && sha256sum "$0" >"$0.sha256"',
                str(target),
            ]
            best["curl, then sha256sum"] = max(best["curl, then sha256sum"], tool(verified, target))
            best["ours"] = max(best["ours"], size / ours(file, target, url))
            target.unlink()
    for name, value in best.items():
        print(f"  {name:<20} {value / MB:8.0f} MB/s    ours / {name} {best['ours'] / value:.2f}x")


def small_files(folder: Path) -> None:
    """200 files of 160 kB; a relay delays connections by 50 ms and bytes by 25 ms each way."""
    with nginx(folder) as server:
        files = []
        port = server.port + 1
        relay = FORK.Process(target=lambda: asyncio.run(delay(server.port, port)), daemon=True)
        relay.start()
        time.sleep(0.5)
        for number in range(200):
            (server.root / str(number)).write_bytes(content := random.Random(number).randbytes(160_000))
            digests = {"sha256": hashlib.sha256(content).hexdigest()}
            urls = (f"http://127.0.0.1:{port}/{number}",)
            files.append(
                File(path=folder / "out" / str(number), urls=urls, size=len(content), digests=digests)
            )
        times = {
            "requests.get, one after the other": clock(lambda: loop(files, requests.get)),
            "the same with a session": clock(lambda: loop(files, requests.Session().get)),
        }
        seconds = clock(lambda: fetch(files))
        relay.kill()
    for label, value in times.items():
        print(f"  {label:<34} {value:6.2f} s    ours is {value / seconds:.1f}x as fast")
    print(f"  {'ours':<34} {seconds:6.2f} s")


async def delay(target: int, port: int) -> None:
    """Relay connections from one port to another, with 50 ms of latency; bandwidth is not limited."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, chunk = await waiting.get()
                await asyncio.sleep(due - time.monotonic())
                if not chunk:
                    break
                sink.write(chunk)
            sink.close()

        sending = asyncio.create_task(send())
        while chunk := await source.read(2**16):
            waiting.put_nowait((time.monotonic() + 0.025, chunk))
        waiting.put_nowait((time.monotonic() + 0.025, b""))
        await sending

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)  # the handshake
        there, back = await asyncio.open_connection("127.0.0.1", target)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, back), pump(there, writer))

    await (await asyncio.start_server(relay, "127.0.0.1", port)).serve_forever()


def clock(body: Callable[[], object]) -> float:
    """Wall seconds."""
    begin = time.perf_counter()
    body()
    return time.perf_counter() - begin


def loop(files: list[File], get: Callable[..., requests.Response]) -> None:
    """What people write first."""
    for file in files:
        assert len(get(file.urls[0]).content) == file.size


def memory(folder: Path) -> None:
    """The largest resident set while 5 GB arrive and are hashed."""
    size = 5000 * MB
    with nginx(folder) as server:
        with (server.root / "file").open("wb") as file:
            file.truncate(size)  # zeros; it is the way that counts
        wanted = File(path=folder / "out", urls=(f"{server.base}/file",), size=size)
        code = "import sys, json, resource; from pathlib import Path; from ascendet.supply.fetch import File, fetch\n"
        code += f"fetch([File(path=Path({str(wanted.path)!r}), urls={wanted.urls!r}, size={size})])\n"
        code += "print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))"
        begin = time.perf_counter()
        shown = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
        seconds = time.perf_counter() - begin
    print(
        f"  ours     {json.loads(shown) / MB:8.0f} MB resident at most, {size / seconds / MB:.0f} MB/s to the disk"
    )


def kills(folder: Path) -> None:
    """One download, killed 20 times at random; what was read twice, and what nginx sent twice."""
    size = 400 * MB
    slots = multiprocessing.RawArray("Q", 4096)
    real = answer._read

    def read(raw: object, amount: int, **options: bool) -> bytes:
        chunk = real(raw, amount, **options)  # type: ignore[arg-type]
        slots[threading.get_native_id() % len(slots)] += len(chunk)
        return chunk

    answer._read = read
    with nginx(folder, "limit_rate 250k;") as server:
        file = make_file(server.root / "file", size)
        wanted = File(path=folder / "out", urls=(f"{server.base}/file",), size=size, digests=file.digests)
        for _ in range(20):
            process = FORK.Process(target=fetch, args=([wanted],))
            process.start()
            time.sleep(random.uniform(1.0, 6.0))
            process.kill()
            process.join()
        fetch([wanted])
        time.sleep(0.5)
        sent = server.sent()
    answer._read = real
    assert hashlib.sha256(wanted.path.read_bytes()).hexdigest() == file.digests["sha256"]
    read_twice, sent_twice = 100 * (sum(slots) - size) / size, 100 * (sent - size) / size
    print(f"  read twice {read_twice:.2f} %, sent twice {sent_twice:.2f} %, digest right")


if __name__ == "__main__":
    main()
