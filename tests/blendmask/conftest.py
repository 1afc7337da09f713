"""Tests of wheels/blendmask in its stack's environment, on the CPU and, with a card or cann_sim, on `npu`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ascendet_common
import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # two on a busy machine wait for each other


@pytest.fixture(params=["cpu", "npu"])
def device(request: pytest.FixtureRequest) -> str:
    """Return the name of a device."""
    import torch

    name: str = request.param
    if name == "npu" and not (hasattr(torch, "npu") and torch.npu.is_available()):
        pytest.skip("no NPU in this process: neither a card nor cann_sim")
    return name


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ASCENDET_DATA with `shapes`, which has 15 images to train on."""
    folder = tmp_path_factory.mktemp("data")
    words = ["--out", folder / "shapes", "--seed", "0", "--train", "17", "--val", "3"]
    subprocess.run(
        [sys.executable, Path(ascendet_common.__file__).with_name("shapes.py"), *words],
        check=True,
        capture_output=True,
    )
    return folder
