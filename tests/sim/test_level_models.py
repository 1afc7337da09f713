"""Detectors wholly at level aclnn: their results equal level aten to the last bit, with the task queue and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
pytest.importorskip("torchvision", reason="torchvision is not in this environment")

# On a card, too, these go by their ACL names.
BY_ACL_NAME = {"acl::ROIAlign", "acl::NonMaxSuppressionV4", "acl::Fill"}
# No function exists for it.
AT_LEVEL_ATEN = {"aten::full"}


def run(folder: Path, level: str, queue: str) -> dict[str, Any]:
    """Run level_job.py and return what it found."""
    out = folder / f"{level}{queue}.json"
    settings = {
        "CANN_SIM_LEVEL": level,
        "TASK_QUEUE_ENABLE": queue,
        "OMP_NUM_THREADS": "1",
        "CANN_SIM_STATE": str(folder),
    }
    command = [sys.executable, Path(__file__).with_name("level_job.py"), out]
    done = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_detectors_compute_the_same_at_both_levels(tmp_path: Path) -> None:
    aten, aclnn, queued = (run(tmp_path, *how) for how in (("aten", "0"), ("aclnn", "0"), ("aclnn", "1")))
    for name in aten:
        assert aclnn[name]["value"] == aten[name]["value"], name
        assert queued[name] == aclnn[name], name
        others = {op for op in aclnn[name]["launches"] if not op.startswith("aclnn")}
        assert others <= BY_ACL_NAME | AT_LEVEL_ATEN, name
        assert not [op for op in aten[name]["launches"] if op.startswith("aclnn")], name
