"""Tests on the NPUs of the environment: make test-sim starts them with cann_sim's (or a card's) CANN tree."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forks import Forks

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
MakeShapes = Callable[..., Path]

SCRIPTS = Path(__file__).parents[2] / "scripts"
GENERATOR = Path(__file__).parents[2] / "wheels" / "common" / "ascendet_common" / "shapes.py"


def free_ports() -> str:
    """Return the first of 16 free ports, as runtime.sh chooses them."""
    words = ["bash", "-c", f"set -euo pipefail; source '{SCRIPTS}/runtime.sh'; free_ports"]
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(words, env=environ, capture_output=True, text=True, check=True).stdout.strip()


# Jobs that a test starts by itself do not meet those of other tests on this host.
if "HCCL_IF_BASE_PORT" not in os.environ:
    os.environ["HCCL_IF_BASE_PORT"] = free_ports()


@pytest.fixture(scope="session")
def make_shapes(tmp_path_factory: pytest.TempPathFactory) -> MakeShapes:
    """A folder for ASCENDET_DATA with the data set `shapes`, of so many images for training and validation."""

    def make(train: int, val: int, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("data")
        command = [
            sys.executable,
            GENERATOR,
            "--out",
            folder / "shapes",
            "--train",
            str(train),
            "--val",
            str(val),
            "--seed",
            str(seed),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return folder

    return make


def script_environ(data: Path) -> dict[str, str]:
    """The environment of scripts/*.sh for ViTDet-tiny on the data set `shapes` in `data`, with this interpreter."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ASCENDET_DATA": str(data),
        "FAMILY": "vitdet",
        "MODEL": "vitdet-tiny",
        "DATASET": "shapes",
        "OMP_NUM_THREADS": "1",
        "NPU_FALLBACK": "error",
    }


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run lines of Python in a process of their own: what the environment says is read once per process.

    Its simulated devices are its own too: what else runs on this host does not count against their memory.
    """
    if "ASCEND_HOME_PATH" not in os.environ:
        pytest.skip('no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"')

    def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CANN_SIM_STATE": str(tmp_path), **environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has imported torch_npu, for `run_forked`."""
    if "ASCEND_HOME_PATH" not in os.environ:
        pytest.skip('no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"')
    started = Forks()
    yield started
    started.close()


@pytest.fixture
def run_forked(forks: Forks, tmp_path: Path) -> RunPython:
    """Run lines of Python as `run_python` does, in a fork of a process that has imported torch_npu."""

    def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "CANN_SIM_STATE": str(tmp_path), **environ}
        return forks.run(textwrap.dedent(code), settings, timeout=300)

    return run


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with own addresses, joined by a virtual cable; they share nothing but that."""
    names = [f"hccl{os.getpid()}a", f"hccl{os.getpid()}b"]
    if os.geteuid() != 0:
        pytest.skip("needs root: makes two network namespaces")

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"ip {' '.join(words)}: {done.stderr.strip()}")

    try:
        for name in names:
            ip("netns", "add", name)
        ends = [(name[:14], "netns", name) for name in names]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for index, name in enumerate(names):
            ip("-n", name, "address", "add", f"198.18.7.{index + 1}/24", "dev", name[:14])
            ip("-n", name, "link", "set", name[:14], "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
