"""Faults on demand: each is seen as torch_npu's own exception with the real runtime's code."""

from __future__ import annotations

import os
import time

import pytest
from conftest import RunPython

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: it has no faults on demand",
)

# Operators until one fails; says at which, and that what was computed before is right.
STEPS = """
    import torch, torch_npu
    x = torch.ones(4, 4).npu()
    for step in range(1, 6):
        try:
            total = (x * step).sum().item()
        except RuntimeError as error:
            print(step, error)
            break
        assert total == 16 * step, total
"""


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("device-lost@launch:3", "507010", "heartbeat"),
        ("ecc@launch:3", "507054", "ECC"),
    ],
)
def test_a_broken_device_fails_the_next_wait(run_forked: RunPython, fault: str, code: str, text: str) -> None:
    done = run_forked(STEPS, CANN_SIM_FAULT=fault)
    assert done.stdout.startswith("2 "), done.stdout + done.stderr  # two launches a step
    assert code in done.stdout
    assert text in done.stdout


def test_a_fault_of_another_device_is_not_seen(run_forked: RunPython) -> None:
    assert run_forked(STEPS, CANN_SIM_FAULT="device-lost@launch:1/dev=1").stdout == ""
    assert run_forked(STEPS, CANN_SIM_FAULT="device-lost@launch:1/dev=0").stdout.startswith("1 ")


def test_an_allocation_ends_in_torch_npus_out_of_memory(run_forked: RunPython) -> None:
    """torch_npu tries again after it has given its cache back: the fault stays, what is held stays usable."""
    code = """
        import torch, torch_npu
        small = torch.ones(1, device="npu")
        first = torch.ones(32 << 20, device="npu")
        try:
            torch.ones(32 << 20, device="npu")
        except RuntimeError as error:
            print(error)
        print(first.sum().item() == 32 << 20)
    """
    done = run_forked(code, CANN_SIM_FAULT="oom@alloc:3")
    assert "NPU out of memory" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "True"


def test_a_stuck_stream_ends_in_the_synchronise_timeout(run_forked: RunPython) -> None:
    begin = time.monotonic()
    code = """
        import torch, torch_npu
        x = torch.ones(4).npu() + 1
        try:
            torch.npu.synchronize()
        except RuntimeError as error:
            print(error)
    """
    done = run_forked(code, CANN_SIM_FAULT="stuck-stream@launch:1", ACL_DEVICE_SYNC_TIMEOUT="2")
    assert "507046" in done.stdout, done.stdout + done.stderr
    assert 2 <= time.monotonic() - begin < 60


COLLECTIVES = """
    import os, torch, torch_npu, torch.distributed as dist
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    torch.npu.set_device(0)
    dist.init_process_group("hccl", store=store, rank=0, world_size=1)
    for call in range(1, 4):
        try:
            dist.all_reduce(torch.ones(2).npu())
            torch.npu.synchronize()
        except RuntimeError as error:
            print(call, error)
            break
"""


@pytest.mark.parametrize(
    ("fault", "code"),
    [("hccl-timeout@collective:2", "error code is 9"), ("link-down@collective:2", "error code is 21")],
)
def test_a_collective_ends_in_hccls_own_error(run_forked: RunPython, fault: str, code: str) -> None:
    done = run_forked(COLLECTIVES, CANN_SIM_FAULT=fault, TASK_QUEUE_ENABLE="0")
    assert done.stdout.startswith("2 "), done.stdout + done.stderr
    assert code in done.stdout + done.stderr


@pytest.mark.parametrize(("level", "name"), [("aclnn", "aclnnMatmul"), ("aten", "aten::matmul")])
def test_one_call_of_an_operator_is_corrupted(run_forked: RunPython, level: str, name: str) -> None:
    code = """
        import torch, torch_npu
        x = torch.ones(2, 2).npu()
        print([(x @ x).cpu().sum().item() for _ in range(3)])
    """
    done = run_forked(code, CANN_SIM_FAULT=f"corrupt@{name}:2", CANN_SIM_LEVEL=level)
    assert done.stdout.strip() == "[8.0, 0.0, 8.0]"


def test_a_slow_link_takes_its_time(run_forked: RunPython) -> None:
    code = """
        import time, torch, torch_npu
        x = torch.zeros(1 << 20)
        x[:1].npu()
        begin = time.monotonic()
        x.npu()
        print(time.monotonic() - begin)
    """
    assert float(run_forked(code, CANN_SIM_FAULT="slow-link:8").stdout) >= 4 * (1 << 20) / 8e6


def test_a_slow_device_takes_its_factor(run_forked: RunPython) -> None:
    code = """
        import time, torch, torch_npu
        x = torch.ones(700, 700).npu()
        x @ x
        torch.npu.synchronize()
        begin = time.monotonic()
        for _ in range(5): x @ x
        torch.npu.synchronize()
        print(time.monotonic() - begin)
    """
    plain = float(run_forked(code).stdout)
    assert float(run_forked(code, CANN_SIM_FAULT="slow-device:8").stdout) > 3 * plain


@pytest.mark.parametrize(
    "fault",
    [
        "oom",
        "oom@alloc:0",
        "oom@alloc:1.5",
        "ecc@alloc:1",
        "slow-device:0.5",
        "corrupt@:1",
        "oom@alloc:1,",
        "oom@alloc:1/dev=x",
    ],
)
def test_a_malformed_fault_is_refused_with_the_grammar(run_forked: RunPython, fault: str) -> None:
    done = run_forked("import torch, torch_npu; torch.ones(1).npu()", CANN_SIM_FAULT=fault)
    assert done.returncode == 90
    assert "error[cann-sim-config]" in done.stderr
    assert "corrupt@OP:N" in done.stderr
    assert fault in done.stderr
