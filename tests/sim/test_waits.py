"""What an NPU waits for in ViTDet's training, counted on cann_sim: exact numbers, equal in every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeShapes

pytest.importorskip("vitdet", reason="the stack has no vitdet")

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: only it counts",
)
JOB = Path(__file__).with_name("waits_job.py")
TOKENS = 16 * 16  # of the tiny model's global attention

Counters = dict[str, Any]


@pytest.fixture(scope="module")
def counted(make_shapes: MakeShapes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counters]:
    out = tmp_path_factory.mktemp("waits") / "counters.json"
    done = subprocess.run(
        [sys.executable, JOB, out],
        # AVX-512 rounds otherwise, so that the second step draws other proposals in half precision (seen).
        env={
            **os.environ,
            "ASCENDET_DATA": str(make_shapes(16, 1)),
            "OMP_NUM_THREADS": "1",
            "ATEN_CPU_CAPABILITY": "avx2",
        },
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counters: dict[str, Counters] = json.loads(out.read_text())
    return counters


def waits(counters: Counters) -> dict[str, int]:
    """Host synchronisations by file, all steps together."""
    found: dict[str, int] = {}
    for row in counters["host_syncs"]:
        file = row["line"].rpartition("site-packages/")[2].rpartition(":")[0]
        found[file] = found.get(file, 0) + row["count"]
    return found


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_the_backbone_and_neck_wait_for_nothing(counted: dict[str, Counters], attention: str) -> None:
    """Forward and backward, with drop path: no synchronisation, no copy, the same operators in every step."""
    counters = counted[f"{attention} backbone"]
    assert counters["host_syncs"] == []
    assert counters["copies"] == []
    assert counters["cpu_fallbacks"] == {}
    steps = counters["steps"][:-1]
    assert {step["launches"] for step in steps} == {steps[0]["launches"]}
    assert [step["new_signatures"] for step in steps[1:]] == [0] * (len(steps) - 1)


def test_no_matrix_of_all_pairs_of_tokens_exists(counted: dict[str, Counters]) -> None:
    """Neither in the forward nor in the backward pass; the plain formulation shows that the test would see one."""
    pairs = f"{TOKENS},{TOKENS}]"
    shapes = {
        name: " ".join(row["signature"] for row in counted[name]["signatures"])
        for name in ("fused backbone", "plain backbone")
    }
    assert pairs in shapes["plain backbone"]
    assert pairs not in shapes["fused backbone"]
    launches = counted["fused backbone"]["launches"]
    assert launches["aclnnFlashAttentionScore"] == launches["aclnnFlashAttentionScoreGrad"] > 0


def test_region_proposals_keep_their_shapes(counted: dict[str, Counters]) -> None:
    """Backbone, neck and region proposals, forward and backward, on jittered images: nothing new after step 3."""
    steps = counted["region proposals"]["steps"][:-1]
    assert len(steps) > 4
    assert [step["new_signatures"] for step in steps[3:]] == [0] * (len(steps) - 3)


def test_region_proposals_wait_for_the_batch_and_for_nms(counted: dict[str, Counters]) -> None:
    counters = counted["region proposals"]
    found = waits(counters)
    images = 2 * (len(counters["steps"]) - 1)
    assert found.pop("mmcv/ops/nms.py") == images
    assert found.pop("vitdet/rpn.py") == images + 1  # and, once, the random keys
    once = ("mmdet/models/task_modules/coders/", "mmdet/models/task_modules/prior_generators/")
    for file in [name for name in found if name.startswith(once)]:
        assert found.pop(file) <= 5  # levels
    assert {file.partition("/")[0] for file in found} == {"mmengine", "mmdet"}
    assert set(found) == {  # what takes the batch to the device
        "mmengine/model/base_model/data_preprocessor.py",
        "mmengine/structures/base_data_element.py",
        "mmdet/structures/bbox/base_boxes.py",
    }


def test_waits_of_a_training_step(counted: dict[str, Counters]) -> None:
    """Per image at most: 6 for the batch, 2 for its proposals, 1 for its masks, 4 to draw regions; 3 per step."""
    counters = counted["training"]
    steps = counters["steps"][1:-1]  # the first one also makes the constants
    assert max(step["host_syncs"] for step in steps) <= 2 * (6 + 2 + 1 + 4) + 3
    found = waits(counters)
    for file in ("assigners", "losses", "message_hub", "bbox_overlaps", "sampling_result", "anchor_head"):
        assert not [name for name in found if file in name], found


def test_mixed_precision_learns_the_same(counted: dict[str, Counters]) -> None:
    half, single = (counted[name]["losses"] for name in ("mixed precision", "training"))
    assert half == pytest.approx(single[: len(half)], rel=0.01)
    assert half[0] != single[0]


def test_mixed_precision_leaves_boxes_in_single(counted: dict[str, Counters]) -> None:
    """mmcv's NPU adapters of nms and RoIAlign take float32 alone, and a coordinate needs it."""
    signatures = counted["mixed precision"]["signatures"]
    assert [row for row in signatures if "float16" in row["signature"]], "nothing ran in half precision"
    boxes = [row for row in signatures if row["op"].startswith("acl::")]
    assert {row["op"] for row in boxes} == {"acl::NonMaxSuppressionV3", "acl::ROIAlign", "acl::ROIAlignGrad"}
    assert [row for row in boxes if "float16" in row["signature"]] == []
