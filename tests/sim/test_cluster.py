"""Several machines: what Ascend's operator for Kubernetes tells each of them, through train.sh, to ranks that train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "wheels" / "common" / "ascendet_common" / "shapes.py"
EXIT_DEVICES_INVALID = 24
# What the operator gives (component/ascend-common/api/consts.go of MindCluster); RANK is the machine's.
OPERATOR = {"MASTER_ADDR": "198.18.7.1", "MASTER_PORT": "29517", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
# What Volcano's plug-in `pytorch` gives, and what make k8s adds.
VOLCANO = {"MASTER_ADDR": "198.18.7.1", "MASTER_PORT": "29518", "WORLD_SIZE": "2", "NNODES": "2"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small data set."""
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, GENERATOR, "--out", folder / "shapes", "--train", "8", "--val", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def start(
    host: str, rank: int, given: dict[str, str], data: Path, work_dir: Path, epochs: int = 1
) -> subprocess.Popen[str]:
    """One machine: its own network and devices, the same storage."""
    if "ASCEND_HOME_PATH" not in os.environ:
        pytest.skip("no CANN tree: run it by `make test-sim`")
    state = work_dir / f"machine{rank}"
    state.mkdir(parents=True)
    environ = {
        **os.environ,
        **given,
        "RANK": str(rank),
        "DEVICES": "0",
        "FAMILY": "vitdet",
        "MODEL": "vitdet-tiny",
        "DATASET": "shapes",
        "ASCENDET_DATA": str(data),
        "WORK_DIR": str(work_dir),
        "CANN_SIM_STATE": str(state),
        "OMP_NUM_THREADS": "1",
        "HCCL_SOCKET_IFNAME": "hccl",
        "GLOO_SOCKET_IFNAME": f"{host[:14]}",
    }
    short = ["--cfg-options", f"train_cfg.max_epochs={epochs}", "train_cfg.val_begin=9"]
    return subprocess.Popen(
        ["ip", "netns", "exec", host, "bash", str(ROOT / "scripts" / "train.sh"), *short],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_machines_train_one_model(hosts: list[str], shapes: Path, tmp_path: Path) -> None:
    machines = [start(host, rank, OPERATOR, shapes, tmp_path) for rank, host in enumerate(hosts)]
    shown = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(shown)[-4000:]
    for rank, text in enumerate(shown):
        assert f"runtime: node {rank} of 2, master 198.18.7.1:{OPERATOR['MASTER_PORT']}" in text
    assert "GPU number: 2" in shown[0]  # mmengine's words for the number of ranks
    assert (tmp_path / "epoch_1.pth").is_file()


def test_a_rank_is_killed_and_both_machines_go_on(hosts: list[str], shapes: Path, tmp_path: Path) -> None:
    """torchrun has the ranks of both meet again, and they resume from the last checkpoint."""
    given = OPERATOR | {"MASTER_PORT": "29519", "MAX_RESTARTS": "5"}
    machines = [start(host, rank, given, shapes, tmp_path, 4) for rank, host in enumerate(hosts)]
    deadline = time.monotonic() + 200
    while not (tmp_path / "epoch_1.pth").exists():
        assert time.monotonic() < deadline, [machine.poll() for machine in machines]
        time.sleep(0.05)
    # `ip netns exec` becomes the script, which becomes torchrun: its child is the rank.
    rank = Path(f"/proc/{machines[1].pid}/task/{machines[1].pid}/children").read_text().split()[0]
    os.kill(int(rank), signal.SIGKILL)
    shown = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(shown)[-6000:]
    assert "resumed epoch: " in "".join(shown)
    assert (tmp_path / "epoch_4.pth").is_file()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            OPERATOR,
            "--nnodes=2 --node-rank=1 --master-addr=198.18.7.1 --master-port=29517 --max-restarts=0 --nproc-per-node=1",
        ),
        (
            VOLCANO,
            "--nnodes=2 --node-rank=1 --master-addr=198.18.7.1 --master-port=29518 --max-restarts=0 --nproc-per-node=1",
        ),
        (
            {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
            "--standalone --local-addr=127.0.0.1 --max-restarts=0 --nproc-per-node=1",
        ),
        ({}, "--standalone --local-addr=127.0.0.1 --max-restarts=0 --nproc-per-node=1"),
    ],
    ids=["operator", "volcano", "operator, one machine", "alone"],
)
def test_launch_says_to_torchrun_what_the_cluster_said(
    tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "RANK=${RANK-unset} $*"\n')
    torchrun.chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if name not in (*OPERATOR, "NNODES", "NODE_RANK")
    }
    environ = kept | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | ({"RANK": "1"} if given else {})
    command = ["bash", "-c", f"set -eu; source {ROOT}/scripts/runtime.sh; launch 0 train.py"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"RANK=unset {expected} train.py"


def test_devices_must_be_as_many_as_the_operator_says(hosts: list[str], shapes: Path, tmp_path: Path) -> None:
    machine = start(hosts[0], 0, OPERATOR | {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, shapes, tmp_path)
    text = machine.communicate(timeout=60)[0]
    assert machine.returncode == EXIT_DEVICES_INVALID
    assert "error[devices-invalid]: DEVICES must be as many devices as LOCAL_WORLD_SIZE, 8, not 1" in text
