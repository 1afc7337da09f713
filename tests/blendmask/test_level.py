"""BlendMask wholly at level aclnn: losses and objects equal level aten and the CPU, with the task queue and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: only it has levels",
)
JOB = Path(__file__).with_name("level_job.py")
# On a card, too, these go by their ACL names.
BY_ACL_NAME = {"acl::ROIAlign", "acl::ROIAlignGrad", "acl::NonMaxSuppressionV4", "acl::Fill"}
# No function exists for it.
AT_LEVEL_ATEN = {"aten::full"}


def run(folder: Path, device: str, level: str, queue: str) -> dict[str, Any]:
    """Run level_job.py and return what it found."""
    out = folder / f"{device}-{level}-{queue}.json"
    settings = {
        "CANN_SIM_LEVEL": level,
        "TASK_QUEUE_ENABLE": queue,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, JOB, device, out],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_blendmask_computes_the_same_at_both_levels_and_on_the_cpu(tmp_path: Path) -> None:
    cpu, aten, aclnn, queued = (
        run(tmp_path, *how)
        for how in (("cpu", "aclnn", "0"), ("npu", "aten", "0"), ("npu", "aclnn", "0"), ("npu", "aclnn", "1"))
    )
    for name in cpu:
        assert aclnn[name]["value"] == aten[name]["value"] == cpu[name]["value"], name
        assert queued[name] == aclnn[name], name
        assert {
            op for op in aclnn[name]["launches"] if not op.startswith("aclnn")
        } <= BY_ACL_NAME | AT_LEVEL_ATEN, name
        assert not [op for op in aten[name]["launches"] if op.startswith("aclnn")], name
