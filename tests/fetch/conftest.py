"""Fixtures of the fetch tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ascendet import paths
from servers import HostileServer, Nginx, serve_hostile


@pytest.fixture
def server() -> Iterator[HostileServer]:
    yield from serve_hostile()


@pytest.fixture
def other() -> Iterator[HostileServer]:
    """A second one."""
    yield from serve_hostile()


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's: folders, proxies, certificate authorities."""
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "ASCENDET_DATA", "MIRROR", "ACCEPT_NEW", "KEEP"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """Start an nginx with more settings for its server block."""
    started: list[Nginx] = []

    def start(settings: str = "") -> Nginx:
        started.append(Nginx(tmp_path / f"nginx{len(started)}", settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()
