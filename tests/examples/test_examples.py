"""Training scripts of other projects on the simulated NPU: packages of the package index that support `npu`, unchanged.

`make test-examples` runs them. They are not part of `make test`: what they install (requirements.txt, 40 MB) nothing
else here needs, and a package index that is down must not decide about our tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    "ASCEND_HOME_PATH" not in os.environ, reason="no CANN tree: run it by `make test-examples`"
)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of training; the stack's environment stays as it is."""
    return install(tmp_path_factory.mktemp("packages"), "requirements.txt")


def install(folder: Path, requirements: str) -> Path:
    """Install a file's packages into a folder."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes",
               "--only-binary=:all:", "--target", folder, "-r", HERE / requirements]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        pytest.fail(done.stderr)
    if done.returncode:
        pytest.skip(f"the packages cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def run(
    packages: Path, state: Path, *command: object, cwd: Path | None = None, **environ: str
) -> list[dict[str, Any]]:
    """The JSON lines that the example prints, by rank."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={
            **os.environ,
            # The tree's python/site-packages, too, where a user's shell has it.
            "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "CANN_SIM_STATE": str(state),
            "HF_HUB_OFFLINE": "1",
            **environ,
        },
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # transformers' Trainer prints its log in between, as Python's dictionaries; two ranks may print on one line.
    lines = [json.loads(found) for found in re.findall(r'\{"[^{}]*(?:\{[^{}]*\}[^{}]*)*\}', done.stdout)]
    return sorted(lines, key=lambda line: line.get("rank", 0))


def test_accelerate_trains_on_one_and_on_two_devices(packages: Path, tmp_path: Path) -> None:
    """The batch is the same, over one process or two: so are the losses, but for the order of sums in bfloat16."""
    results = {}
    for processes in (1, 2):
        launch = (
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            processes,
            "--mixed_precision",
            "bf16",
        )
        ranks = run(packages, tmp_path, *launch, HERE / "train_accelerate.py", MASTER_PORT="0")
        assert [rank["rank"] for rank in ranks] == list(range(processes))
        assert all(rank["mixed_precision"] == "bf16" for rank in ranks)
        assert all(rank["last"] < 0.1 * rank["first"] for rank in ranks)
        assert len({rank["weight"] for rank in ranks}) == 1, "all ranks hold the same model"
        results[processes] = ranks
    assert results[1][0]["device"].startswith("npu")
    assert [rank["device"] for rank in results[2]] == ["npu:0", "npu:1"]
    assert results[2][0]["backend"] == "hccl"
    assert results[1][0]["first"] == pytest.approx(results[2][0]["first"], rel=1e-2)
    assert results[1][0]["weight"] == pytest.approx(results[2][0]["weight"], rel=2e-2)


def test_transformers_trainer_learns_to_count(packages: Path, tmp_path: Path) -> None:
    """A random GPT-2 with dropout, in bfloat16; it has learnt when it goes on counting, and its checkpoint is there."""
    (result,) = run(packages, tmp_path / "state", HERE / "train_transformers.py", tmp_path / "out",
                    ASCEND_RT_VISIBLE_DEVICES="0")  # fmt: skip
    assert result["device"].startswith("npu")
    assert result["losses"][-1] < 0.5 * result["losses"][0]
    assert result["answer"] == list(range(3, 13))
    assert (tmp_path / "out" / "checkpoint-30" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("mode", "least", "most"), [("must_keep_origin_dtype", 0, 1e-5), ("force_fp16", 1e-4, 1e-2)]
)
def test_onnxruntime_infers_with_its_cann_provider(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mode: str, least: float, most: float
) -> None:
    """In the model's own data types it equals the CPU's; in float16 it rounds."""
    folder = install(tmp_path_factory.mktemp("onnxruntime"), "requirements-onnxruntime.txt")
    counted = tmp_path / "counters.json"
    (result,) = run(
        folder,
        tmp_path,
        HERE / "infer_onnxruntime.py",
        mode,
        cwd=tmp_path,  # ATC leaves files where it runs
        CANN_SIM_COUNTERS=str(counted),
    )
    assert result["providers"][0] == "CANNExecutionProvider"
    assert least <= result["difference"] <= most
    assert sum(json.loads(counted.read_text())["launches"].values()) == 1
