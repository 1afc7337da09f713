"""The gate for operators without an NPU kernel, in its three modes, when kernels are taken away."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("fallback_job.py")
GONE = "torchvision::nms torchvision::_roi_align_backward"


def line_of(text: str) -> str:
    """Return where the job calls something, as findings name it."""
    lines = JOB.read_text().splitlines()
    return f"{JOB}:{next(number for number, line in enumerate(lines, start=1) if text in line)}"


def run(work: Path, mode: str | None, gone: str = GONE) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "NPU_FALLBACK"}
    environ |= {"WORK_DIR": str(work), "TAKE_AWAY": gone, "TASK_QUEUE_ENABLE": "0"}
    environ |= {"NPU_FALLBACK": mode} if mode else {}
    return subprocess.run(
        [sys.executable, JOB], env=environ, capture_output=True, text=True, timeout=300, check=False
    )


def findings(work: Path) -> list[dict[str, str]]:
    file = work / "progress.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [row["fallback"] for row in rows]


RESULT = "kept [0] gradient 32.0"


def test_by_default_each_operator_and_line_is_named_once_and_the_results_are_right(tmp_path: Path) -> None:
    done = run(tmp_path, None)
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    nms, gradient = line_of("torchvision.ops.nms("), f"a gradient that {line_of('.backward()')} asks for"
    assert findings(tmp_path) == [
        {"operator": "torchvision::nms", "line": nms},
        {"operator": "torchvision::_roi_align_backward", "line": gradient},
    ]
    named = re.findall(
        r"^NPU_FALLBACK: (\S+) has no NPU kernel and is computed on the CPU: (.*)$", done.stderr, re.MULTILINE
    )
    assert named == [("torchvision::nms", nms), ("torchvision::_roi_align_backward", gradient)]
    assert f"(('torchvision::nms', '{nms}'), 2)" in done.stdout


@pytest.mark.parametrize(
    ("gone", "line"), [("torchvision::nms", "ops.nms("), ("torchvision::_roi_align_backward", ".backward()")]
)
def test_error_ends_the_program_by_name_forward_and_backward(tmp_path: Path, gone: str, line: str) -> None:
    done = run(tmp_path, "error", gone)
    assert done.returncode != 0
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["name"] == "npu-fallback"
    assert error["what"] == f"{gone} has no NPU kernel and would be computed on the CPU"
    assert line_of(line) in error["found"]
    assert error["advice"] == {"NPU_FALLBACK": "warn"}
    assert "kept" not in done.stdout


def test_allow_leaves_it_to_torch_npu(tmp_path: Path) -> None:
    done = run(tmp_path, "allow")
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert findings(tmp_path) == []
    assert "found None" in done.stdout
    assert "The operator 'torchvision::nms' is not currently supported on the NPU backend" in done.stderr


@pytest.mark.parametrize("mode", ["error", "warn"])
def test_with_all_kernels_there_is_nothing_to_find(tmp_path: Path, mode: str) -> None:
    done = run(tmp_path, mode, gone="")
    assert done.returncode == 0, done.stderr
    assert RESULT in done.stdout
    assert "found []" in done.stdout
    assert findings(tmp_path) == []


def test_another_mode_is_a_usage_error(tmp_path: Path) -> None:
    assert run(tmp_path, "yes").returncode != 0
    assert json.loads((tmp_path / "error.json").read_text())["name"] == "usage"


COMPUTED = """
import torch, torchvision
from ascendet_common import fallback
from ascendet_common.fallback import _operator, compute_on_cpu

def both(name, *args, **kwargs):
    \"\"\"The operator by the gate on the NPU, and on the CPU.\"\"\"
    to = lambda value, device: value.to(device, copy=True) if isinstance(value, torch.Tensor) else value
    npu, cpu = ([to(value, device) for value in args] for device in ("npu", "cpu"))
    result = compute_on_cpu(_operator(name), npu, {key: to(value, "npu") for key, value in kwargs.items()})
    expected = _operator(name)(*cpu, **{key: to(value, "cpu") for key, value in kwargs.items()})
    return npu, cpu, result, expected

def equal(result, expected):
    assert result.device.type == "npu" and result.cpu().equal(expected), (result, expected)

x = torch.rand(4, 3)
_, _, result, expected = both("aten::frexp.Tensor", x)
assert isinstance(result, tuple)
for mine, theirs in zip(result, expected): equal(mine, theirs)
npu, cpu, result, _ = both("aten::add_.Tensor", x, torch.ones(3), alpha=2)
assert result is npu[0]
equal(npu[0], cpu[0])
out = torch.empty(0)
npu_out = out.npu()
result = compute_on_cpu(_operator("aten::add.out"), [x.npu(), x.npu()], {"out": npu_out})
assert result is npu_out
equal(npu_out, x + x)
(part, rest) = compute_on_cpu(_operator("aten::unsafe_split.Tensor"), [x.npu(), 2], {})
equal(rest, x[2:])
strided = torch.zeros(3, 8).npu()
view = strided[:, ::2]
compute_on_cpu(_operator("aten::fill_.Scalar"), [view, 7.0], {})
assert strided.sum().item() == 7 * 12
made = compute_on_cpu(_operator("aten::full"), [[2, 2], 3.0], {"device": torch.device("npu")})
equal(made, torch.full((2, 2), 3.0))
compute_on_cpu(_operator("aten::_foreach_add_.Scalar"), [[strided, view], 1.0], {})
names = list(fallback.falling_back())
assert "torchvision::roi_pool" in names and "aten::add.Tensor" not in names and "torchvision::nms" not in names
print("computed", len(names) > 100)
"""


def test_results_views_written_and_resized_arguments_are_as_the_operator_leaves_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPUTED],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "computed True" in done.stdout
