"""Several ranks learn what one does from the same batch, also where one of them has no objects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

JOB = Path(__file__).with_name("ranks_job.py")


def learn(out: Path, case: str, ranks: int, device: str) -> dict[str, np.ndarray]:
    starter = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    environ = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    if device == "cpu":  # torch_npu stays out, so that there is no NPU to choose
        environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    done = subprocess.run(
        [sys.executable, *starter, str(JOB), str(out), case],
        env=environ,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with np.load(out) as file:
        return dict(file)


@pytest.mark.parametrize("case", ["full", "half"])
def test_two_ranks_learn_what_one_does(tmp_path: Path, case: str, device: str) -> None:
    one = learn(tmp_path / "one.npz", case, 1, device)
    two = learn(tmp_path / "two.npz", case, 2, device)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        difference = np.linalg.norm(two[name] - expected)
        assert difference <= 1e-5 * max(np.linalg.norm(expected), 1.0), name


def test_two_ranks_without_any_object_learn_that_there_is_nothing(tmp_path: Path, device: str) -> None:
    """Nobody waits for gradients that never come. The classes' loss is divided by one positive per rank, at least."""
    one = learn(tmp_path / "one.npz", "empty", 1, device)
    two = learn(tmp_path / "two.npz", "empty", 2, device)
    name = "proposal_generator.fcos_head.cls_logits.weight"
    assert two[name] == pytest.approx(one[name] / 2, rel=1e-3, abs=1e-6)
    assert not two["top_layer.weight"].any()
    name = "basis_module.seg_head.6.weight"
    assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6)
