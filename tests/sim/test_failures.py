"""What fails in the simulated CANN is a code for its C callers and a RuntimeError for Python; nothing is thrown."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import RunPython

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: its rules are not under test",
)

# Of Python's boundaries: a function that lets go of the interpreter, and the gradient of one on autograd's own thread.
# npu_rotated_iou ends in an error because `trans` is not simulated.
FAILING = """
    import torch, torch_npu

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return fail() * gradient

    def fail():
        boxes = torch.rand(1, 5, 3).npu()
        return torch_npu.npu_rotated_iou(boxes, boxes, True)

    def backward():
        Gradient.apply(torch.ones(1, device="npu", requires_grad=True)).sum().backward()

    def attempt(function):
        try:
            function()
            torch.npu.synchronize()
        except RuntimeError as error:
            print("RuntimeError:", "RotatedIou" in str(error), "trans" in str(error))
"""


@pytest.mark.parametrize("where", ["fail", "backward"])
def test_a_failing_operator_raises_where_it_is_called(run_forked: RunPython, where: str) -> None:
    done = run_forked(
        FAILING
        + f"\n    attempt({where})\n    attempt({where})\n    print(torch.ones(2).npu().sum().item())",
        TASK_QUEUE_ENABLE="0",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:3] == ["RuntimeError: True True", "RuntimeError: True True", "2.0"]


@pytest.mark.parametrize("where", ["fail", "backward"])
def test_a_failing_operator_in_the_queue_raises_too(run_forked: RunPython, where: str) -> None:
    """At a later call, and at every operator after it; a wait alone tells of it once, as torch_npu has it."""
    later = "\n    attempt(lambda: torch.ones(2).npu() * 3)"
    done = run_forked(FAILING + f"\n    attempt({where})" + 2 * later, TASK_QUEUE_ENABLE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["RuntimeError: True True"] * 3


LIBRARIES = ("libascendcl.so", "libacl_op_compiler.so", "libhccl.so", "libmsprofiler.so", "libascend_hal.so")


def exported(library: str) -> set[str]:
    path = Path(os.environ["ASCEND_HOME_PATH"], "lib64", library)
    table = subprocess.run(
        ["nm", "--dynamic", "--defined-only", path], capture_output=True, text=True, check=True
    )
    return set(re.findall(r" T ([A-Za-z]\w*)$", table.stdout, re.MULTILINE)) - {"_init", "_fini"}


def test_every_exported_function_of_c_is_one_that_the_sources_guard() -> None:
    """tests/unit/test_cann_sim_sources.py looks at what has a name of CANN's or ours; nothing else is exported."""
    for library in LIBRARIES:
        names = {name for name in exported(library) if not name.startswith("_Z")}
        assert names, library
        assert {name for name in names if not re.match(r"(acl|Hccl|hal|cann_sim_)", name)} == set(), library


def test_what_is_thrown_becomes_a_code_and_a_text() -> None:
    """Arguments that make the standard library throw: a length below zero, a string that is none."""
    acl = ctypes.CDLL(str(Path(os.environ["ASCEND_HOME_PATH"], "lib64", "libascendcl.so")))
    acl.aclCreateTensorDesc.restype = acl.aclopCreateAttr.restype = ctypes.c_void_p
    acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
    dims = (ctypes.c_int64 * 1)(1)
    assert acl.aclCreateTensorDesc(0, -1, dims, 2) is None
    assert acl.aclGetRecentErrMsg().startswith(b"cann_sim: aclCreateTensorDesc: ")
    attributes = ctypes.c_void_p(acl.aclopCreateAttr())
    assert acl.aclopSetAttrListInt(attributes, b"perm", -1, dims) == 500000  # ACL_ERROR_INTERNAL_ERROR
    assert acl.aclGetRecentErrMsg().startswith(b"cann_sim: aclopSetAttrListInt: ")
    assert acl.aclopSetAttrListInt(attributes, b"perm", 1, dims) == 0
    acl.aclopDestroyAttr(attributes)
