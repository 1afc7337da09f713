"""Servers to fetch from: one that misbehaves on demand, and Debian's nginx."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ascendet.supply.fetch import File, Policy

# Impatient, and with many small ranges, so that little data shows what a large file would.
QUICK = Policy(
    connections=4,
    smallest=2**14,
    largest=2**16,
    tries=3,
    pause=0.02,
    longest_pause=0.1,
    patience=0.5,
    sync=0.1,
)


class Request(BaseHTTPRequestHandler):
    """Serves `server.files` as a good server would, unless `server.behave` does something else."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for its head's delayed acknowledgement
    server: HostileServer

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers.items())))
        with contextlib.suppress(ConnectionError):
            if not self.server.behave(self):
                self.serve()

    def serve(
        self,
        content: bytes | None = None,
        *,
        tag: str | None = '"one"',
        ranges: bool = True,
        headers: dict[str, str] | None = None,
        send: Callable[[bytes], object] | None = None,
    ) -> None:
        """Answer properly: ranges, If-Range, a validator."""
        content = self.server.files.get(self.path) if content is None else content
        if content is None:
            self.answer(404, b"no such file")
            return
        extra = dict(headers or {}) | ({"ETag": tag} if tag else {})
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if not asked or not ranges or (condition and condition != tag):
            self.answer(200, content, extra, send)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        extra["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(206, content[start : end + 1], extra, send)

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        send: Callable[[bytes], object] | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        (send or self.wfile.write)(body)
        self.server.sent += len(body)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


class HostileServer(ThreadingHTTPServer):
    """`files` by path; `behave(request)` tells whether it answered; `seen` are the requests, `sent` the body bytes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.files: dict[str, bytes] = {}
        self.behave: Callable[[Request], object] = lambda request: None
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.connections = 0

    def process_request(self, request: object, client_address: object) -> None:
        self.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def lose_files_after(self, requests: int) -> None:
        """Answer this many more requests well, and all others with 404."""
        count = itertools.count()
        self.behave = lambda request: next(count) >= requests and (request.answer(404, b""), True)


def serve_hostile() -> Iterator[HostileServer]:
    one = HostileServer()
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def wanted(folder: Path, content: bytes, *urls: str, name: str = "file.bin") -> File:
    """What to fetch, with everything known about it."""
    return File(
        path=folder / name,
        urls=urls,
        size=len(content),
        digests={"sha256": hashlib.sha256(content).hexdigest()},
    )


class Nginx:
    """An nginx on a free port that serves `root` and logs the bytes of every body."""

    def __init__(self, folder: Path, settings: str = "", address: str = "127.0.0.1") -> None:
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if not program:
            pytest.skip("nginx is not installed (apt-get install nginx)")
        self.root = folder / "www"
        self.root.mkdir(parents=True)
        with socket.socket() as free:
            free.bind((address, 0))
            self.port = free.getsockname()[1]
        self.log = folder / "access.log"
        config = folder / "nginx.conf"
        config.write_text(
            # Else root becomes nobody, who cannot enter pytest's private folders.
            f"{'user root; ' * (os.geteuid() == 0)}daemon off; worker_processes 1;\n"
            f"pid {folder}/pid; error_log {folder}/error.log;\n"
            "events { worker_connections 256; }\n"
            "http { sendfile on; tcp_nopush on; default_type application/octet-stream;\n"
            "log_format bytes '$status $body_bytes_sent'; "
            f"access_log {self.log} bytes; client_body_temp_path {folder}/t; proxy_temp_path {folder}/t;\n"
            f"fastcgi_temp_path {folder}/t; uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;\n"
            f"server {{ listen {address}:{self.port}; root {self.root}; {settings} }} }}\n"
        )
        self.base = f"http://{address}:{self.port}"
        self.process = subprocess.Popen([program, "-c", config, "-e", folder / "error.log"])
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection((address, self.port), 0.2):
                return
            time.sleep(0.02)
        pytest.fail((folder / "error.log").read_text())

    def sent(self) -> int:
        """The bytes of all bodies so far, as nginx counts them."""
        return sum(int(line.split()[1]) for line in self.log.read_text().splitlines())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
