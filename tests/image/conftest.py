"""The image on a real Docker engine: the one that answers here, else Debian's, started for the tests; else skipped.

One whole image is built, that of STACK (`make test-image STACK=blendmask`), from the stand-in base that has cann_sim
where CANN would be. What concerns the Dockerfile and not torch is tested on small images: the same Dockerfile with a
few small packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.containers import base_sim, image
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.machine import arch, engine
from ascendet.supply import lockfiles
from ascendet.wheels import wheelfile

STACK = Stack.load(os.environ.get("STACK") or "vitdet")
SECRET = "token-5f3a.example"  # in pip's and the proxies' settings; it means nothing to them
_DISK = (
    14 * 2**30
)  # bytes: the image, BuildKit's and pip's caches, measured as 12 GiB with torch's CUDA build

Build = Callable[..., str]


@pytest.fixture(scope="session")
def docker() -> Iterator[str]:
    """A Docker client whose engine answers; the engine is stopped by its process afterwards, if it is ours."""
    reason = ""
    try:
        client = engine.client()
    except AscendetError as error:
        reason = f"{error.name}: {error.found or error.what}"
    if not reason:
        yield client
        return
    daemon = shutil.which("dockerd")
    if daemon is None or os.geteuid() != 0:
        pytest.skip(
            f"no Docker engine ({reason}), and none can be started: needs root and Debian's docker.io"
        )
    paths.BUILD.mkdir(exist_ok=True)
    if shutil.disk_usage(paths.BUILD).free < _DISK:
        pytest.skip(f"no Docker engine ({reason}); one of our own needs {_DISK / 2**30:.0f} GiB of disk")
    data = Path(tempfile.mkdtemp(dir=paths.BUILD, prefix="docker-"))
    run = Path(tempfile.mkdtemp(prefix="ascendet-"))  # a socket's path must be short
    log = (run / "dockerd.log").open("w")
    command = [daemon, f"--data-root={data}", f"--exec-root={run / 'exec'}", f"--pidfile={run / 'pid'}"]
    process = subprocess.Popen(
        [*command, f"--host=unix://{run / 'socket'}"], stdout=log, stderr=log, start_new_session=True
    )
    patch = pytest.MonkeyPatch()
    patch.setenv("DOCKER_HOST", f"unix://{run / 'socket'}")
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                client = engine.client()
                break
            except AscendetError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    last = (run / "dockerd.log").read_text().strip().splitlines()[-1:]
                    pytest.skip(f"dockerd does not start: {last or error}")
                time.sleep(0.5)
        yield client
    finally:
        process.terminate()
        process.wait(timeout=60)
        patch.undo()
        engine.client.cache_clear()
        shutil.rmtree(data, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)


@pytest.fixture(scope="session")
def base(docker: str) -> str:
    """The stand-in for the CANN image."""
    if not shutil.which("mmdebstrap"):
        pytest.skip("no stand-in base: needs mmdebstrap (apt-get install mmdebstrap)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU", "sim")
        return base_sim.ensure(STACK, arch.parse(""))


def request_image(base: str) -> image.ImageRequest:
    return image.ImageRequest(stack=STACK, machine=arch.parse(""), base=base)


@pytest.fixture(scope="session")
def built(base: str) -> image.Image:
    """The whole image, as `make image` builds it, with something secret in the settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_TRUSTED_HOST", SECRET)
        patch.setenv("NO_PROXY", ",".join(filter(None, [os.environ.get("NO_PROXY"), SECRET])))
        return image.ensure(request_image(base))


def small_context(folder: Path, text: str = "echo first") -> Path:
    """A context of the real scripts and layers, with one package in each; `text` is our code."""
    docker = paths.ROOT / "docker"
    context = folder / "context"
    for name in ("scripts/cann.sh", "scripts/entrypoint.sh", "layer.sh", "check.sh"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(docker / Path(name).name, context / name)
    (context / "scripts/train.sh").write_text(f"#!/bin/bash\n{text}\n")
    (context / "scripts/train.sh").chmod(0o755)
    locked = lockfiles.packages_lock(STACK.packages).read_text()
    for name, package in (
        ("torch.txt", "packaging"),
        ("build.txt", "setuptools"),
        ("packages.txt", "pyyaml"),
    ):
        start = locked.index(f"\n{package}==") + 1
        body = locked[start:].splitlines()
        end = next(number for number, line in enumerate(body) if not line.endswith("\\"))
        (context / name).write_text("\n".join(body[: end + 1]) + "\n")
    info = "marker-1.dist-info"
    (context / "wheels/native").mkdir(parents=True, exist_ok=True)
    (context / "wheels/pure").mkdir(exist_ok=True)
    wheelfile.write(
        context / "wheels/pure",
        "marker",
        "1",
        "py3-none-any",
        {
            "marker/__init__.py": f"TEXT = {text!r}\n".encode(),
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: marker\nVersion: 1\n",
            f"{info}/WHEEL": wheelfile.wheel_metadata("py3-none-any", pure=True),
        },
    )
    for path in context.rglob("*"):
        os.utime(path, (0, 0))
    return context


@pytest.fixture
def build_small(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Build a small image, logs in the test's folder; gives the log. Options are those of `image.build`."""
    machine = arch.parse("")
    (base_facts,) = engine.inspect("image", [base])
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    (paths.BUILD / "image").mkdir(parents=True)

    def build(context: Path, tag: str, **more: bool) -> str:
        arguments = {"PYTHON": STACK.python, "IMPORTS": "packaging,yaml yaml,packaging"}
        with pytest.MonkeyPatch.context() as tools:
            tools.setattr("ascendet.envs.venv.tools_pip", lambda: [os.sys.executable, "-m", "pip"])  # type: ignore[attr-defined]
            image.build(context, machine, base_facts, arguments, {}, tag, **more)
        return (paths.BUILD / "image" / f"{context.parent.name}.log").read_text()

    return build
