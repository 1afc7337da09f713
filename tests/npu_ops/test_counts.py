"""What our kernels ask of an NPU and what the host waits for, counted on cann_sim: exact numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ascendet_npu_ops
import pytest
import torch
import torchvision

pytestmark = pytest.mark.skipif(
    "cann_sim" not in os.environ.get("ASCEND_HOME_PATH", ""),
    reason="the CANN tree is not cann_sim's: only it counts",
)

Counters = dict[str, Any]


def count(call: Callable[[], object]) -> Counters:
    """Return the counters of a second call: what the first one prepares for good is not counted."""
    from cann_sim import counters

    call()
    torch.npu.synchronize()
    counters.start()
    call()
    counters.stop()
    return counters.snapshot()


def waits(counters: Counters) -> int:
    return sum(row["count"] for row in counters["host_syncs"])


def boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 500
    return torch.cat((corner, corner + torch.rand(count, 2) * 100 + 1), dim=1).npu()


def test_nms_waits_once_and_for_the_number_of_boxes_alone() -> None:
    dets, scores = boxes(500), torch.rand(500).npu()
    counters = count(lambda: torchvision.ops.nms(dets, scores, 0.5))
    assert counters["cpu_fallbacks"] == {}
    assert waits(counters) == 1
    assert [(row["direction"], row["bytes"]) for row in counters["copies"]] == [("d2h", 4)]
    assert counters["launches"]["acl::NonMaxSuppressionV4"] == 1
    assert sum(counters["launches"].values()) <= 20


def test_shapes_on_the_device_do_not_depend_on_the_boxes() -> None:
    one, other = (
        count(lambda s=s: torchvision.ops.nms(boxes(200), torch.rand(200).npu() * s, 0.5)) for s in (1, -1)
    )
    assert {(r["op"], r["signature"]) for r in one["signatures"]} == {
        (r["op"], r["signature"]) for r in other["signatures"]
    }


@pytest.mark.parametrize(("few", "most"), [(1, 1), (400, 3)])
def test_batched_nms_waits_once_for_short_chains(few: int, most: int) -> None:
    dets, scores, classes = boxes(few), torch.rand(few).npu(), torch.randint(0, 80, (few,)).npu()
    counters = count(lambda: ascendet_npu_ops.batched_nms(dets, scores, classes, 0.5))
    assert counters["cpu_fallbacks"] == {}
    assert 1 <= waits(counters) <= most


def test_roi_align_and_its_gradient_wait_for_nothing() -> None:
    features = torch.randn(2, 4, 32, 32).npu().requires_grad_()
    rois = torch.cat((torch.randint(0, 2, (50, 1)).npu().float(), boxes(50) / 20), dim=1)

    def step() -> None:
        torchvision.ops.roi_align(features, rois, 7, sampling_ratio=0, aligned=True).sum().backward()

    counters = count(step)
    assert counters["cpu_fallbacks"] == {}
    assert counters["host_syncs"] == counters["copies"] == []
    assert counters["launches"]["acl::ROIAlign"] == counters["launches"]["acl::ROIAlignGrad"] == 1


def test_repeat_interleave_waits_only_for_a_length_that_it_is_not_told() -> None:
    counts = torch.tensor([3, 0, 4]).npu()
    known, unknown = (
        count(lambda size=size: torch.repeat_interleave(counts, output_size=size)) for size in (7, None)
    )
    assert known["cpu_fallbacks"] == unknown["cpu_fallbacks"] == {}
    assert known["copies"] == []
    assert waits(known) == 0
    assert waits(unknown) == 1
