"""A training on two devices stops in the middle and goes on: every row of losses and every weight is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ascendet_common import progress

SCRIPT = Path(__file__).parents[2] / "scripts" / "run.sh"
STEPS = 22  # of 2 devices x 2 images: 6 passes over 15; a checkpoint and a row of losses after every fourth

if not (hasattr(torch, "npu") and torch.npu.is_available()):
    pytest.skip("no NPU in this process: neither a card nor cann_sim", allow_module_level=True)


def train(data: Path, work: Path, *words: str, stop_at: str = "", **more: str) -> None:
    """Train on two devices; send SIGTERM as soon as there is a checkpoint of the name `stop_at`."""
    environ = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "FAMILY": "blendmask",
        "MODEL": "blendmask-tiny",
        "DATASET": "shapes",
        "DEVICES": "0,1",
        "ASCENDET_DATA": str(data),
        "WORK_DIR": str(work),
        "OMP_NUM_THREADS": "1",
        "NPU_FALLBACK": "error",
        **more,
    }
    work.mkdir(exist_ok=True)
    log = work / "log"
    with (
        log.open("a") as file,
        subprocess.Popen(
            ["bash", SCRIPT, "train", "--epochs=6", *words],
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as torchrun,
    ):
        try:
            deadline = time.monotonic() + 300
            while stop_at and not (work / stop_at).exists():
                assert torchrun.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, log.read_text()[-4000:]
                time.sleep(0.02)
            if stop_at:
                torchrun.terminate()
            code = torchrun.wait(timeout=300)
        finally:
            torchrun.kill()
    assert (code != 0) == bool(stop_at), log.read_text()[-4000:]


def losses(work: Path) -> dict[int, dict[str, float]]:
    rows = [row for row in progress.read(work) if row["phase"] == "train"]
    found = {row["step"]: {**row["losses"], "lr": row["lr"]} for row in rows}
    assert len(found) == len(rows), "no step is logged twice"
    return found


def checkpoint(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a training that was never stopped."""
    work = tmp_path_factory.mktemp("whole")
    train(data, work)
    return work


def test_a_training_on_two_devices_stops_between_rows_and_goes_on_with_equal_losses(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    train(data, tmp_path, stop_at="step_4.pth")
    assert json.loads((tmp_path / "error.json").read_text())["name"] == "interrupted"
    meta = checkpoint(tmp_path / "interrupted.pth")["meta"]
    assert 4 < meta["step"] < STEPS
    assert len(meta["unlogged"]) == meta["step"] % 4
    train(data, tmp_path, RESUME="1")
    assert f"resumed after step {meta['step']}" in [
        row["text"] for row in progress.read(tmp_path) if row["phase"] == "note"
    ]
    assert list(losses(whole)) == [4, 8, 12, 16, 20, 22]
    assert losses(tmp_path) == losses(whole)
    ours, theirs = (checkpoint(work / f"step_{STEPS}.pth") for work in (tmp_path, whole))
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())


def test_two_devices_train_in_mixed_precision(data: Path, whole: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--amp")
    half, single = losses(tmp_path)[4], losses(whole)[4]
    assert half == pytest.approx(single, rel=0.05)
    assert half != single
    assert checkpoint(tmp_path / f"step_{STEPS}.pth")["scaler"]["scale"] > 0
