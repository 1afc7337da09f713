"""torch_npu.profiler on the simulated NPU: it starts, stops, and its trace lists the device's kernels."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import RunPython

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: what it records is under test",
)

PROGRAM = """
    import torch, torch.distributed as dist, torch_npu
    from torch_npu import profiler as P

    dist.init_process_group("hccl", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)).npu()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with P.profile(
        activities=[P.ProfilerActivity.CPU, P.ProfilerActivity.NPU],
        schedule=P.schedule(wait=1, warmup=0, active=2, repeat=1),
        on_trace_ready=P.tensorboard_trace_handler(OUT),
        experimental_config=P._ExperimentalConfig(profiler_level=P.ProfilerLevel.Level1),
        record_shapes=True,
    ) as profiler:
        for step in range(4):
            loss = model(torch.randn(4, 8).npu()).square().mean()
            loss.backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            profiler.step()
    print(torch.ones(3).npu().sum().item())
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module", params=["0", "1"], ids=["no_queue", "task_queue"])
def profile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that torch_npu.profiler wrote for two of four training steps."""
    folder = tmp_path_factory.mktemp(f"queue{request.param}")
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TASK_QUEUE_ENABLE": request.param,
        "CANN_SIM_STATE": str(folder),
    }
    code = f"OUT = {str(folder / 'out')!r}\n" + textwrap.dedent(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3.0", "it computes on after the profiler stopped"
    assert "[ERROR]" not in done.stdout + done.stderr
    (session,) = (folder / "out").iterdir()
    errors = [
        line
        for log in session.glob("logs/*.log")
        for line in log.read_text().splitlines()
        if "[ERROR]" in line
    ]
    assert errors == []
    return session


def queued(profile: Path) -> bool:
    """Whether torch_npu's task queue launched the kernels."""
    return "queue1" in profile.parts[-3]


def rows(profile: Path, name: str) -> list[dict[str, str]]:
    with (profile / "ASCEND_PROFILER_OUTPUT" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def events(profile: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        (profile / "ASCEND_PROFILER_OUTPUT" / "trace_view.json").read_text()
    )
    return found


def test_kernel_details_name_every_kernel_of_every_step(profile: Path) -> None:
    kernels = rows(profile, "kernel_details.csv")
    for row in kernels:
        assert row["Accelerator Core"] in ("SIMULATED", "HCCL")
        assert float(row["Duration(us)"]) > 0
    names = [row["Name"] for row in kernels]
    half = len(names) // 2
    assert names[:half] == names[half:], "two equal steps"
    assert names[:half].count("aclnnAddmm") == 2
    assert names[:half].count("aclnnGeluBackward") == 1
    assert names[:half].count("HcclAllReduce") == 4
    assert [row["Step Id"] for row in kernels] == ["1"] * half + ["2"] * half


def test_torch_npu_finds_the_export_before_msprof_ends(profile: Path) -> None:
    """Else its task manager may stop the thread that waits for it, and no view is written."""
    logs = [line for log in profile.glob("logs/*.log") for line in log.read_text().splitlines()]
    (found,) = (line for line in logs if "CANNTimelineParser finish" in line)
    (ended,) = (line for line in logs if "CANNExportParser finish" in line)
    assert found < ended, "each line begins with the time of day"


def test_the_trace_is_labelled_and_kernels_lie_within_their_operators(profile: Path) -> None:
    trace = events(profile)
    names = {event["args"]["name"]: event["pid"] for event in trace if event.get("name") == "process_name"}
    device = names["Ascend Hardware (simulated by cann_sim)"]

    def span(event: dict[str, Any]) -> tuple[float, float]:
        return float(event["ts"]), float(event["ts"]) + event["dur"]

    complete = [event for event in trace if event.get("ph") == "X"]
    kernels = [e for e in complete if e["pid"] == device and e["name"].startswith("aclnn")]
    operators = [e for e in complete if e.get("cat") == "cpu_op"]
    assert len(kernels) > 20
    for kernel in kernels if not queued(profile) else ():  # else the thread of the queue runs them later
        begin, end = span(kernel)
        slack = 1.0  # us: a float has no more digits for a time of day
        assert any(span(op)[0] - slack <= begin and end <= span(op)[1] + slack for op in operators), kernel
    linked = {e["ts"] for e in trace if e.get("name") == "torch_to_npu" and e["ph"] == "f"}
    assert {kernel["ts"] for kernel in kernels} <= linked, "an arrow from the operator to each of its kernels"


def test_statistics_sum_up_the_kernels(profile: Path) -> None:
    kernels = rows(profile, "kernel_details.csv")
    counts = {row["OP Type"]: int(row["Count"]) for row in rows(profile, "op_statistic.csv")}
    assert sum(counts.values()) == len(kernels)
    assert counts["aclnnAddmm"] == 4


def test_a_session_that_misses_its_data_is_an_error(run_forked: RunPython, tmp_path: Path) -> None:
    done = subprocess.run(
        ["msprof", "--export=on", f"--output={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error[cann-sim-msprof]" in done.stderr
    assert str(tmp_path) in done.stderr


def test_calls_in_the_wrong_order_are_refused(run_forked: RunPython, tmp_path: Path) -> None:
    """acl_prof.h: init, start, stop, finalize; the error is the one of the real library."""
    code = """
        import ctypes
        acl = ctypes.CDLL("libascendcl.so")
        acl.aclprofCreateConfig.restype = ctypes.c_void_p
        devices = (ctypes.c_uint32 * 1)(0)
        config = ctypes.c_void_p(acl.aclprofCreateConfig(devices, 1, 0, None, ctypes.c_uint64(1)))
        path = FOLDER.encode()
        print(acl.aclprofStart(config), acl.aclprofFinalize())
        print(acl.aclprofInit(path, len(path)), acl.aclprofInit(path, len(path)))
        print(acl.aclprofStart(config), acl.aclprofStart(config), acl.aclprofFinalize())
        print(acl.aclprofStop(config), acl.aclprofStop(config), acl.aclprofFinalize())
        print(acl.aclprofDestroyConfig(config))
    """
    done = run_forked(f"FOLDER = {str(tmp_path)!r}\n" + textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    not_run, already_run = "100043", "100042"
    assert done.stdout.splitlines() == [
        f"{not_run} {not_run}", f"0 {already_run}", f"0 {already_run} {already_run}", f"0 {not_run} 0", "0",
    ]  # fmt: skip
    assert len(list(tmp_path.glob("PROF_*/device_0/data/*"))) == 1


def test_a_folder_that_cannot_be_written_is_an_error(run_forked: RunPython) -> None:
    code = """
        import ctypes
        acl = ctypes.CDLL("libascendcl.so")
        acl.aclprofCreateConfig.restype = ctypes.c_void_p
        acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
        config = ctypes.c_void_p(acl.aclprofCreateConfig((ctypes.c_uint32 * 1)(0), 1, 0, None, ctypes.c_uint64(1)))
        acl.aclprofInit(b"/proc/nowhere", 13), acl.aclprofStart(config), acl.aclprofStop(config)
        print(acl.aclprofFinalize(), acl.aclGetRecentErrMsg().decode())
    """
    done = run_forked(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("500005 /proc/nowhere/PROF_"), done.stdout
    assert "cannot be written" in done.stdout
