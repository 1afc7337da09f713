"""Counters of the simulated NPU: exact numbers for programs small enough to count by hand."""

from __future__ import annotations

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
    reason="the CANN tree is not cann_sim's: only it counts",
)


@pytest.fixture(params=["0", "1"], ids=["no_queue", "task_queue"])
def count(request: pytest.FixtureRequest, run_forked: RunPython) -> Any:
    """Counters of lines of Python between start() and the end; both ways in which torch_npu issues operators."""

    def run(body: str, **environ: str) -> dict[str, Any]:
        code = (
            "import json, sys, torch, torch_npu\nfrom cann_sim import counters\n"
            "x = torch.ones(4, 4).npu()\ncounters.start()\n"
            + textwrap.dedent(body).strip()
            + "\nprint(json.dumps(counters.snapshot()))\n"
        )
        done = run_forked(code, TASK_QUEUE_ENABLE=request.param, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        counters: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return counters

    return run


FIRST_LINE = 5  # of the body, in the program that `count` runs


# {level: what x + x, y @ y and z.relu_() launch}
LAUNCHES = {
    "aclnn": ("aclnnAdd", "aclnnMatmul", "aclnnInplaceRelu"),
    "aten": ("aten::add.Tensor", "aten::matmul", "aten::relu_"),
}


@pytest.mark.parametrize("level", LAUNCHES)
def test_three_operators_are_three_launches(count: Any, level: str) -> None:
    counters = count("y = x + x\nz = y @ y\nz.relu_()", CANN_SIM_LEVEL=level)
    add, matmul, relu = LAUNCHES[level]
    assert counters["launches"] == {add: 1, matmul: 1, relu: 1}
    assert counters["host_syncs"] == counters["copies"] == []
    assert counters["cpu_fallbacks"] == {}
    matrix = "float32[4,4]"
    read = {add: f"{matrix}, {matrix}", matmul: f"{matrix}, {matrix}"}
    # A function's signature has what it reads, then what it writes: what it does both to is written.
    read[relu] = matrix if level == "aten" else ""
    assert counters["signatures"] == [
        {"op": op, "signature": f"{read[op]} -> {matrix}", "count": 1, "first_step": 0}
        for op in sorted((add, matmul, relu))
    ]


def test_views_launch_nothing(count: Any) -> None:
    assert count("x.view(-1)[2:5].reshape(3, 1).unsqueeze(0)")["launches"] == {}


def test_item_is_one_host_sync_at_its_line(count: Any) -> None:
    counters = count("y = x.sum()\n\nfor _ in range(3): y.item()")
    line = f"<string>:{FIRST_LINE + 2}"
    assert [(row["line"], row["count"]) for row in counters["host_syncs"]] == [(line, 3)]
    assert counters["copies"] == [{"line": line, "direction": "d2h", "count": 3, "bytes": 12}]


def test_the_line_is_the_users_not_torchs(count: Any) -> None:
    """Tensor.__format__ is Python inside torch: the line that formats is what a reader looks for."""
    counters = count("y = x.sum()\nf'{y}'")
    assert {row["line"] for row in counters["host_syncs"]} == {f"<string>:{FIRST_LINE + 1}"}


def test_copies_have_direction_bytes_and_line(count: Any) -> None:
    counters = count("""
        y = torch.zeros(3, 5).npu()
        p = torch.zeros(7).pin_memory()
        q = p.to("npu", non_blocking=True)
        y.cpu()
    """)
    assert counters["copies"] == [
        {"line": f"<string>:{FIRST_LINE}", "direction": "h2d", "count": 1, "bytes": 60},
        {"line": f"<string>:{FIRST_LINE + 2}", "direction": "h2d", "count": 1, "bytes": 28},
        {"line": f"<string>:{FIRST_LINE + 3}", "direction": "d2h", "count": 1, "bytes": 60},
    ]
    assert [row["line"] for row in counters["host_syncs"]] == [
        f"<string>:{FIRST_LINE}",
        f"<string>:{FIRST_LINE + 3}",
    ]


def test_explicit_waits(count: Any) -> None:
    counters = count("""
        torch.npu.synchronize()
        torch.npu.current_stream().synchronize()
        event = torch.npu.Event(); event.record(); event.synchronize()
    """)
    assert [(row["line"], row["call"], row["count"]) for row in counters["host_syncs"]] == [
        (f"<string>:{FIRST_LINE}", "aclrtSynchronizeDevice", 1),
        (f"<string>:{FIRST_LINE + 1}", "aclrtSynchronizeStream", 1),
        (f"<string>:{FIRST_LINE + 2}", "aclrtSynchronizeEvent", 1),
    ]


# {level: the calls that wait for the number of a mask's elements, and of those that are not zero}
WAITS = {
    "aclnn": ("aclrtSynchronizeStream", "aclrtSynchronizeStream"),
    "aten": ("aten::index.Tensor", "aten::nonzero"),
}


@pytest.mark.parametrize("level", WAITS)
def test_a_shape_that_depends_on_data_makes_the_host_wait(count: Any, level: str) -> None:
    body = "m = x > 0\nx[m]\nx[torch.tensor([1]).npu()]\nx.nonzero()"
    counters = count(body, CANN_SIM_LEVEL=level)
    copied = f"<string>:{FIRST_LINE + 2}"  # the index, which the host has
    waits = [(row["call"], row["line"]) for row in counters["host_syncs"] if row["line"] != copied]
    lines = (f"<string>:{FIRST_LINE + 1}", f"<string>:{FIRST_LINE + 3}")
    assert waits == list(zip(WAITS[level], lines, strict=True))


def test_steps_and_the_first_appearance_of_a_signature(count: Any) -> None:
    counters = count("""
        x + x
        counters.step()
        x + x
        counters.step()
        x[:2] + x[:2]
    """)
    assert [(step["launches"], step["new_signatures"]) for step in counters["steps"]] == [
        (1, 1),
        (1, 0),
        (1, 1),
    ]
    assert [(row["count"], row["first_step"]) for row in counters["signatures"]] == [(1, 2), (2, 0)]


def test_memory_peak_and_final(count: Any) -> None:
    counters = count("""
        big = torch.zeros(64 << 20, dtype=torch.uint8, device="npu")
        del big
        y = x + x
    """)
    held = counters["memory"]["0"]
    assert held["tensor_bytes"] == 1024  # x and y, 512 bytes each at least
    assert (
        held["tensor_bytes_peak"] == (64 << 20) + 512 + 512
    )  # torch_npu adds 32 bytes to a tensor, rounded up
    assert held["device_bytes_peak"] == sum(int(size) * n for size, n in held["blocks_peak"].items())
    assert held["device_bytes_peak"] == (66 << 20) + (2 << 20)  # segments: one large, in 2 MiB, one small


def test_an_operator_that_torch_npu_sends_to_the_cpu_is_named(count: Any) -> None:
    counters = count("torch.linalg.eigvalsh(x)")
    assert list(counters["cpu_fallbacks"].values()) == [1], counters["cpu_fallbacks"]
    assert not set(counters["cpu_fallbacks"]) & set(counters["launches"])


def test_counting_stops_and_starts_at_zero(count: Any) -> None:
    counters = count("x + x\ncounters.stop()\nx * x\ncounters.start()\nx - x")
    assert counters["launches"] == {"aclnnSub": 1}


TRAINING = """
    import torch, torch_npu
    from cann_sim import counters
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)).npu()
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        loss = model(torch.randn(4, 8).npu()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        counters.step()
"""


def test_equal_runs_write_equal_files(run_python: RunPython, tmp_path: Path) -> None:
    texts = []
    for run in range(2):
        file = tmp_path / f"{run}.json"
        done = run_python(TRAINING, CANN_SIM_COUNTERS=str(file))
        assert done.returncode == 0, done.stderr
        texts.append(file.read_text())
    assert texts[0] == texts[1]
    steps = json.loads(texts[0])["steps"]
    assert len(steps) == 4  # what follows the last step() is a step too
    assert steps[1]["launches"] > 0
    assert steps[1] == steps[2], "a steady step asks for the same each time"
    assert steps[1]["new_signatures"] == 0


def test_off_counts_nothing_and_leaves_no_file(run_forked: RunPython, tmp_path: Path) -> None:
    code = """
        import os, torch, torch_npu
        from cann_sim import counters
        print((torch.ones(2).npu() + 1).sum().item())
        counted = counters.snapshot()
        print([counted[name] for name in ("launches", "host_syncs", "copies", "signatures", "memory")])
    """
    environ = {"CANN_SIM_COUNTERS": "", "CANN_SIM_STATE": str(tmp_path / "state")}
    done = run_forked(f"import os; os.chdir({str(tmp_path)!r})\n" + textwrap.dedent(code), **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["4.0", "[{}, [], [], [], {}]"]
    assert {path.name for path in tmp_path.iterdir()} <= {"state", "kernel_meta"}


def test_a_file_name_takes_the_process_id(run_forked: RunPython, tmp_path: Path) -> None:
    done = run_forked(
        "import os, torch, torch_npu; torch.ones(1).npu(); print(os.getpid())",
        CANN_SIM_COUNTERS=str(tmp_path / "c.%p.json"),
    )
    assert (tmp_path / f"c.{done.stdout.strip()}.json").exists()


DDP = """
    import os, torch, torch_npu, torch.distributed as dist
    rank = int(os.environ["RANK"])
    torch.npu.set_device(rank)
    dist.init_process_group("hccl")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(10, 5).npu())
    model(torch.ones(2, 10).npu()).sum().backward()
    dist.destroy_process_group()
"""


def test_all_reduce_bytes_of_ddp_and_the_report(tmp_path: Path) -> None:
    """One bucket of 55 float32 gradients on each of two ranks; each rank has a file, the report sums them up."""
    program = tmp_path / "ddp.py"
    program.write_text(textwrap.dedent(DDP))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CANN_SIM_STATE": str(tmp_path / "state")}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program],
        env={**environ, "CANN_SIM_COUNTERS": str(tmp_path / "c.json")},
        check=True,
        capture_output=True,
        timeout=300,
    )
    files = [tmp_path / f"c.rank{rank}.json" for rank in range(2)]
    for rank, file in enumerate(files):
        counters = json.loads(file.read_text())
        assert counters["rank"] == rank
        assert counters["collectives"]["HcclAllReduce"] == {"count": 1, "bytes": 220}
    merged = json.loads(run_report("--json", *files).stdout)
    assert merged["ranks"] == [0, 1]
    assert merged["collectives"]["HcclAllReduce"] == {"count": 2, "bytes": 440}
    table = run_report(*files).stdout
    assert "HcclAllReduce x2" in table
    assert "440" in table


def run_report(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cann_sim", "report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_report_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for text in ("{}", "[]", "not json"):
        other.write_text(text)
        done = run_report(other)
        assert done.returncode == 1
        assert "error[cann-sim-report]" in done.stderr
        assert str(other) in done.stderr
