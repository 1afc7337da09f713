"""Docker clients and engines that lack something, played by small scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ascendet.errors import AscendetError
from ascendet.machine import engine

OLD = 'case "$1" in buildx) exit 1;; --version) echo "Docker version 20.10.24, build 1";; *) ENGINE;; esac'
NEW_WITHOUT = 'case "$1" in buildx) exit 1;; --version) echo "Docker version 28.2.2, build 1";; esac'
NEW = 'case "$1" in buildx) exit 0;; *) ENGINE;; esac'
ANSWERS = "echo 20.10.24"
SOCKET = "unix:///var/run/docker.sock"
PERMISSION = (
    f"echo 'permission denied while trying to connect to the Docker daemon socket at {SOCKET}' >&2; exit 1"
)
NOBODY = f"echo 'Cannot connect to the Docker daemon at {SOCKET}. Is the docker daemon running?' >&2; exit 1"

Clients = Callable[..., list[str]]


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    """Put a `docker` per script on the PATH, in order; their paths."""

    def make(*scripts: str) -> list[str]:
        paths = []
        for number, script in enumerate(scripts):
            path = tmp_path / str(number) / "docker"
            path.parent.mkdir()
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
            paths.append(str(path))
        monkeypatch.setenv("PATH", ":".join(str(Path(path).parent) for path in paths) or str(tmp_path))
        monkeypatch.delenv("DOCKER", raising=False)
        engine.client.cache_clear()
        return paths

    yield make
    engine.client.cache_clear()


def refused() -> AscendetError:
    with pytest.raises(AscendetError) as caught:
        engine.client()
    return caught.value


def test_client_without_buildkit_is_passed_over(clients: Clients) -> None:
    _, old = clients(NEW_WITHOUT, OLD.replace("ENGINE", ANSWERS))
    assert engine.client() == old


def test_named_client_is_taken_or_refused(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    poor, good = clients(NEW_WITHOUT, NEW.replace("ENGINE", ANSWERS))
    monkeypatch.setenv("DOCKER", poor)
    assert refused().name == "buildkit-missing"
    monkeypatch.setenv("DOCKER", good)
    assert engine.client() == good


@pytest.mark.parametrize(
    ("name", "scripts"),
    [
        ("engine-missing", []),
        ("buildkit-missing", [NEW_WITHOUT]),
        ("engine-permission", [OLD.replace("ENGINE", PERMISSION)]),
        ("engine-missing", [NEW.replace("ENGINE", NOBODY)]),
    ],
)
def test_what_is_missing_is_named(clients: Clients, name: str, scripts: list[str]) -> None:
    clients(*scripts)
    error = refused()
    assert error.name == name
    assert error.hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "base-missing",
            "Error response from daemon: manifest for quay.io/ascend/cann:9 not found: manifest unknown",
        ),
        ("base-mismatch", "exec /opt/x: exec format error"),
        ("disk-full", "write /var/lib/docker/tmp/x: no space left on device"),
        ("name-in-use", 'Conflict. The container name "/a" is already in use by container "0"'),
        ("port-in-use", "Bind for 0.0.0.0:2222 failed: port is already allocated"),
        (
            "npu-missing",
            'error gathering device information while adding custom device "/dev/davinci9": no such file',
        ),
        ("device-busy", "dcmi module initialize failed. ret is -8005"),
        ("device-busy", "rtGetDeviceCount failed, drv error code -8020"),
    ],
)
def test_causes_are_named(name: str, text: str) -> None:
    error = engine.explain(f"first\n{text}\nlast")
    assert error is not None
    assert (error.name, error.found) == (name, text)


def test_other_text_is_no_cause() -> None:
    assert engine.explain("loss -8005.3, iteration 18005, id 80205") is None


def test_failed_command_says_what_was_printed(clients: Clients, tmp_path: Path) -> None:
    clients(OLD.replace("ENGINE", f'[ "$1" != pull ] || {{ echo odd; echo worse >&2; exit 3; }}; {ANSWERS}'))
    with pytest.raises(AscendetError, match="command-failed"):
        engine.run("pull", "x")
    log = tmp_path / "log"
    with pytest.raises(AscendetError) as caught:
        engine.run("pull", "x", log=log)
    assert caught.value.hint == f"less {log}"
    assert log.read_text() == "odd\nworse\n"
