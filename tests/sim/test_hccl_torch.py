"""torch.distributed on backend "hccl": the unmodified torch_npu wheel over the simulated HCCL, two ranks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parents[2] / "scripts" / "runtime.sh"
JOB = Path(__file__).with_name("hccl_torch_job.py")
RANKS = 2
CHECKS = [
    "all_reduce", "broadcast", "all_gather", "reduce_scatter", "reduce", "gather_and_scatter", "all_to_all",
    "send_and_receive", "objects", "groups", "ddp", "fsdp", "fsdp2", "zero",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def job_environ(**environ: str) -> dict[str, str]:
    if "ASCEND_HOME_PATH" not in os.environ:
        pytest.skip('no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"')
    return {**os.environ, "OMP_NUM_THREADS": "1", **environ}


def run_job(folder: Path, *checks: str, **environ: str) -> tuple[int, str, list[dict[str, str]]]:
    """Start the job with torchrun; return its exit code, its output and what each rank reported."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={RANKS}", f"--master_port={free_port()}"]
    done = subprocess.run(
        [sys.executable, *launch, str(JOB), str(folder), *checks],
        env=job_environ(**environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    reports = [folder / f"rank{rank}.json" for rank in range(RANKS)]
    output = done.stdout + done.stderr
    return done.returncode, output, [json.loads(file.read_text()) for file in reports if file.exists()]


@pytest.fixture(scope="module", params=["1", "0"], ids=["queued", "immediate"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """All checks in one job for each way in which torch_npu issues operators: starting one takes seconds."""
    folder = tmp_path_factory.mktemp("job")
    code, output, reports = run_job(folder, *CHECKS, TASK_QUEUE_ENABLE=request.param)
    assert len(reports) == RANKS, output
    reports.append({"": f"exit code {code}\n{output}"})
    return reports


@pytest.mark.parametrize("check", CHECKS)
def test_results_are_those_of_the_definition(results: list[dict[str, str]], check: str) -> None:
    *reports, log = results
    for report in reports:
        assert report.get(check, f"not reached: {report}") == "equal", log[""]


def test_job_ends_without_a_hang_or_a_crash(results: list[dict[str, str]]) -> None:
    assert results[-1][""].startswith("exit code 0\n"), results[-1][""]


def test_absent_call_ends_the_job_with_the_error_of_hccl(tmp_path: Path) -> None:
    code, output, reports = run_job(tmp_path, "absent_call", HCCL_EXEC_TIMEOUT="2")
    assert code != 0
    assert "EI0002" in output
    assert "HCCL_EXEC_TIMEOUT" in output
    assert len(reports) == 1
    assert reports[0]["absent_call"].startswith("RuntimeError")
    assert "HcclAllreduce" in reports[0]["absent_call"]


def test_two_jobs_of_one_host_choose_different_ports(tmp_path: Path) -> None:
    """On the same devices, started together by what starts a training."""
    environ = job_environ(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    environ.pop("HCCL_IF_BASE_PORT", None)
    jobs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        words = (
            f"set -euo pipefail; source '{RUNTIME}'; launch 0,1 '{JOB}' '{tmp_path / name}' all_reduce groups"
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        jobs.append(subprocess.Popen(["bash", "-c", words], env=environ, **pipes))  # type: ignore[call-overload]
    ports = set()
    for name, job in zip(("one", "two"), jobs, strict=True):
        output = job.communicate(timeout=300)[0]
        assert job.returncode == 0, output
        ports.add(re.search(r"^runtime: HCCL_IF_BASE_PORT=(\d+)$", output, re.MULTILINE)[1])  # type: ignore[index]
        for rank in range(RANKS):
            report = json.loads((tmp_path / name / f"rank{rank}.json").read_text())
            assert set(report.values()) == {"equal"}
    assert len(ports) == 2


def test_a_taken_port_ends_the_job_at_once_by_name(tmp_path: Path) -> None:
    """HCCL listens at the fourth port, as the first device is the host's fourth; the timeout would take ten minutes."""
    with socket.create_server(("", 0)) as taken:
        base = str(taken.getsockname()[1] - 3)
        environ = {
            "HCCL_IF_BASE_PORT": base,
            "HCCL_CONNECT_TIMEOUT": "600",
            "ASCEND_RT_VISIBLE_DEVICES": "3,4",
        }
        code, output, reports = run_job(tmp_path, "all_reduce", **environ)
    assert code != 0
    assert re.search(r"HcclGetRootInfo\S*, error code is 7\b", reports[0]["all_reduce"]), output
    assert f"port {int(base) + 3} have already been bound" in output
    assert "EI0019" in output
