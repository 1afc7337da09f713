"""An operator of mmcv that fails: its binding keeps the interpreter's lock, which torch_npu gives up and loses."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

JOB = """
    import torch, torch_npu
    from mmcv import ops

    def forward():
        ops.points_in_polygons(torch.empty(0, 2).npu(), torch.ones(1, 8).npu())

    def backward():
        image = torch.rand(1, 4, 16, 16).half().npu().requires_grad_()
        rois = torch.tensor([[0, 1, 1, 8, 8.0]]).half().npu()
        ops.roi_align(image, rois, (2, 2)).sum().backward()

    for attempt in range(2):
        try:
            {where}()
            torch.npu.synchronize()
        except RuntimeError as error:
            print("{operator}" in str(error))
    if "{queue}" == "0":
        print(torch.ones(2).npu().sum().item())
"""


@pytest.mark.parametrize("queue", ["0", "1"])
@pytest.mark.parametrize(
    ("where", "operator"), [("forward", "PointsInPolygons"), ("backward", "ROIAlignGrad")]
)
def test_a_failing_operator_is_a_runtime_error(where: str, operator: str, queue: str) -> None:
    """With and without the task queue, on the main thread and on autograd's."""
    code = textwrap.dedent(JOB.format(where=where, operator=operator, queue=queue))
    environ = os.environ | {"TASK_QUEUE_ENABLE": queue, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True", "2.0"][: 3 if queue == "0" else 2]
