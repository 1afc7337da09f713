"""torch_npu's operators on boxes, on the simulated NPU, against torchvision's definitions on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torchvision.ops import boxes as box_ops

torch_npu = pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)

Pair = tuple[torch.Tensor, torch.Tensor]


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """`count` boxes [count, 4] as centre x, centre y, width, height."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator) * 20 + 1


def corners(boxes: torch.Tensor) -> torch.Tensor:
    return torchvision.ops.box_convert(boxes, "cxcywh", "xyxy")


OVERLAPS = {
    "giou": (torch_npu.npu_giou, torchvision.ops.generalized_box_iou_loss),
    "diou": (torch_npu.npu_diou, torchvision.ops.distance_box_iou_loss),
    "ciou": (torch_npu.npu_ciou, torchvision.ops.complete_box_iou_loss),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlap_of_pairs_and_its_gradient(name: str) -> None:
    on_npu, loss = OVERLAPS[name]
    boxes, truth = (random_boxes(17, seed).requires_grad_() for seed in (0, 1))
    expected = 1 - loss(corners(boxes), corners(truth))
    weights = torch.arange(1.0, 18)
    (expected * weights).sum().backward()

    moved = [b.detach().t().contiguous().npu().requires_grad_() for b in (boxes, truth)]
    found = on_npu(*moved, trans=True, is_cross=False, mode=0)
    (found.reshape(-1) * weights.npu()).sum().backward()
    torch.testing.assert_close(found.detach().cpu().reshape(-1), expected.detach())
    for leaf, reference in zip(moved, (boxes, truth), strict=True):
        torch.testing.assert_close(leaf.grad.cpu().t(), reference.grad, rtol=1e-4, atol=1e-5)


def test_intersection_over_union_and_over_foreground() -> None:
    boxes, truth = corners(random_boxes(5, 2)), corners(random_boxes(3, 3))
    # torch_npu computes it in float16 and adds 0.01 to widths and heights.
    iou = torch_npu.npu_iou(boxes.npu(), truth.npu()).cpu()
    torch.testing.assert_close(iou, torchvision.ops.box_iou(truth, boxes), rtol=0, atol=5e-3)
    intersection, _ = box_ops._box_inter_union(truth, boxes)
    iof = torch_npu.npu_iou(boxes.npu(), truth.npu(), mode=1).cpu()
    torch.testing.assert_close(iof, intersection / box_ops.box_area(truth)[:, None], rtol=0, atol=5e-3)


@pytest.mark.parametrize("padding", [3, 100])
def test_nms_v4(padding: int) -> None:
    boxes, scores = corners(random_boxes(50, 4)), torch.rand(50, generator=torch.Generator().manual_seed(5))
    kept = torchvision.ops.nms(boxes, scores, 0.4)
    kept = kept[scores[kept] > 0.3][:padding]
    thresholds = [torch.tensor(value).npu() for value in (0.4, 0.3)]
    indices, valid = torch_npu.npu_nms_v4(boxes.npu(), scores.npu(), padding, *thresholds)
    assert valid.item() == len(kept)
    assert indices.tolist() == kept.tolist() + [0] * (padding - len(kept))


def test_nms_with_mask() -> None:
    boxes, scores = corners(random_boxes(50, 6)), torch.rand(50, generator=torch.Generator().manual_seed(7))
    rows = torch.cat([boxes, scores[:, None]], 1)
    selected, index, mask = torch_npu.npu_nms_with_mask(rows.npu(), 0.4)
    assert torch.equal(selected.cpu(), rows)
    assert index.tolist() == list(range(50))
    assert set(mask.cpu().nonzero().flatten().tolist()) == set(
        torchvision.ops.nms(boxes, scores, 0.4).tolist()
    )


MEANS, STDS = (0.1, 0.2, 0.0, -0.1), (0.1, 0.1, 0.2, 0.2)


def test_box_coder_goes_there_and_back() -> None:
    anchors, truth = (corners(random_boxes(9, seed)) + 20 for seed in (8, 9))
    deltas = torch_npu.npu_bounding_box_encode(anchors.npu(), truth.npu(), *MEANS, *STDS)
    back = torch_npu.npu_bounding_box_decode(anchors.npu(), deltas, *MEANS, *STDS, (900, 900), 0.016)
    torch.testing.assert_close(back.cpu(), truth, rtol=1e-4, atol=1e-4)


def documented(call: Callable[[], torch.Tensor], expected: list[list[float]]) -> None:
    torch.testing.assert_close(call().cpu(), torch.tensor(expected), rtol=1e-3, atol=1e-3, equal_nan=True)


def test_box_coder_gives_the_documentations_examples() -> None:
    first, second = torch.tensor([[1.0, 2, 3, 4], [3, 4, 5, 6]]), torch.tensor([[5.0, 6, 7, 8], [7, 8, 9, 6]])
    ends: Pair = (first.npu(), second.npu())
    documented(
        lambda: torch_npu.npu_bounding_box_encode(*ends, 0, 0, 0, 0, 0.1, 0.1, 0.2, 0.2),
        [[13.3333, 13.3333, 0, 0], [13.3333, 6.6667, 0, float("nan")]],
    )
    documented(
        lambda: torch_npu.npu_bounding_box_decode(*ends, 0, 0, 0, 0, 1, 1, 1, 1, (10, 10), 0.1),
        [[2.5, 6.5, 9, 9], [9, 9, 9, 9]],
    )
