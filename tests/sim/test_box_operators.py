"""torch_npu's operators on boxes, on the simulated NPU, against torchvision's definitions on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from conftest import RunPython
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


# -- many pictures and classes --


def best_of_picture(
    boxes: torch.Tensor, scores: torch.Tensor, per_class: int, most: int
) -> list[tuple[float, int, list[float]]]:
    """(score, class, box) of what torchvision's NMS keeps of each class, best first."""
    kept = []
    for c in range(scores.shape[1]):
        own = boxes[:, 0 if boxes.shape[1] == 1 else c]
        rows = torch.nonzero(scores[:, c] > 0.2).flatten()
        for row in rows[torchvision.ops.nms(own[rows], scores[rows, c], 0.4)][:per_class].tolist():
            kept.append((scores[row, c].item(), c, own[row].tolist()))
    return sorted(kept, key=lambda each: -each[0])[:most]


@pytest.mark.parametrize("shared", [True, False], ids=["boxes for all classes", "boxes per class"])
@pytest.mark.parametrize(("per_class", "most"), [(4, 10), (100, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nms_of_a_batch_with_classes(shared: bool, per_class: int, most: int, dtype: torch.dtype) -> None:
    classes, anchors = 3, 40
    boxes = torch.stack(
        [corners(random_boxes(anchors * (1 if shared else classes), seed)) for seed in (0, 1)]
    ).view(2, anchors, -1, 4)
    scores = torch.rand(2, anchors, classes, generator=torch.Generator().manual_seed(2))
    scores[1] *= 0.5
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    found = torch_npu.npu_batch_nms(boxes.npu(), scores.npu(), 0.2, 0.4, per_class, most)
    out_boxes, out_scores, out_classes, numbers = (each.cpu() for each in found)
    assert {out_boxes.dtype, out_scores.dtype, out_classes.dtype} == {dtype}
    assert numbers.dtype == torch.int32
    for picture in range(2):
        expected = best_of_picture(boxes[picture].float(), scores[picture].float(), per_class, most)
        number = len(expected)
        assert 0 < number == numbers[picture]
        assert out_scores[picture, :number].tolist() == [score for score, _, _ in expected]
        assert out_classes[picture, :number].tolist() == [c for _, c, _ in expected]
        assert out_boxes[picture, :number].tolist() == [box for _, _, box in expected]
        for rest in (out_boxes, out_scores, out_classes):
            assert not rest[picture, number:].any()


def test_nms_of_a_batch_gives_the_documented_example() -> None:
    """Of Driving SDK, for the same operator."""
    boxes, scores = torch.tensor([[[[1.0, 2, 3, 4]]]]).half(), torch.tensor([[[1.0, 2, 3]]]).half()
    found = torch_npu.npu_batch_nms(boxes.npu(), scores.npu(), 0.5, 0.5, 1, 1)
    assert [each.tolist() for each in found] == [[[[1, 2, 3, 4]]], [[3]], [[2]], [1]]


def test_nms_of_a_batch_where_nothing_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 8], [9, 9, 1, 1]]).view(1, 3, 1, 4)  # two without an area
    scores = torch.tensor([[0.3, 0.9, 0.8]]).view(1, 3, 1)
    numbers = torch_npu.npu_batch_nms(boxes.npu(), scores.npu(), 0.5, 0.5, 4, 4)[3]
    assert numbers.tolist() == [0]
    numbers = torch_npu.npu_batch_nms(boxes.npu(), scores.npu(), 0.2, 0.5, 4, 4)[3]
    assert numbers.tolist() == [1]
    same = torch.tensor([1.0, 2, 5, 9]).expand(1, 6, 1, 4).npu()  # all but the best are suppressed
    found = torch_npu.npu_batch_nms(same, torch.arange(1.0, 7).view(1, 6, 1).npu(), 0.2, 0.5, 4, 4)
    assert (found[1].tolist(), found[3].tolist()) == ([[6, 0, 0, 0]], [1])


# -- rotated boxes: examples of torch_npu's documentation and tests --


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1)


CODED = {
    torch.float32: (
        column(44.2877, 9.1412, 88.7575, 25.8879, 64.8047),
        column(39.1763, 0.9838, 78.1028, 29.5997, 51.5907),
        column(-0.1773, -0.1327, -0.1331, 0.5358, -0.8643),
    ),
    torch.float16: (
        column(30.69, 32.6, 45.94, 59.88, -44.53),
        column(30.44, 18.72, 33.22, 45.56, 8.5),
        column(-0.4253, -0.5166, -1.702, -0.0162, 1.133),
    ),
}
DECODED = {
    torch.float32: (
        column(32.1855, 41.9922, 64.1435, 62.5325, 34.607),
        column(1.8725, -1.8915, 0.2395, -0.4622, -34.6539),
        column(87.70366, 6.9412346, 128.31055, 19.879467, -88.313515),
    ),
    torch.float16: (
        column(4.137, 33.72, 29.4, 54.06, 41.28),
        column(0.0244, -1.992, 0.2109, 0.315, -37.25),
        column(1.786, -10.58, 33.0, 17.3, -88.44),
    ),
}
ONES = torch.ones(5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("call", "examples"),
    [(torch_npu.npu_rotated_box_encode, CODED), (torch_npu.npu_rotated_box_decode, DECODED)],
    ids=["encode", "decode"],
)
def test_coder_of_rotated_boxes_gives_the_known_values(
    call: Callable[..., torch.Tensor],
    examples: dict[torch.dtype, tuple[torch.Tensor, ...]],
    dtype: torch.dtype,
) -> None:
    first, second, expected = (each.to(dtype) for each in examples[dtype])
    found = call(first.npu(), second.npu(), ONES.to(dtype).npu())
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().float(), expected.float(), rtol=2e-3, atol=1e-3)


def test_coder_of_rotated_boxes_goes_there_and_back() -> None:
    """With weights; a box that is smaller than one pixel has one."""
    anchors, truth = (
        torch.cat([corners(random_boxes(14, seed)).t(), torch.linspace(-80, 80, 14)[None]]).view(1, 5, 2, 7)
        for seed in (3, 4)
    )
    anchors, truth = (each.transpose(1, 2).reshape(2, 5, 7).contiguous() for each in (anchors, truth))
    weights = torch.tensor([10.0, 10, 5, 5, 2]).npu()
    deltas = torch_npu.npu_rotated_box_encode(anchors.npu(), truth.npu(), weights)
    plain = torch_npu.npu_rotated_box_encode(anchors.npu(), truth.npu(), ONES.npu())
    torch.testing.assert_close(deltas, plain * weights.view(1, 5, 1))
    back = torch_npu.npu_rotated_box_decode(anchors.npu(), deltas, weights)
    torch.testing.assert_close(back.cpu(), truth, rtol=1e-3, atol=1e-3)
    tiny = torch_npu.npu_rotated_box_decode(
        column(2, 2, 2.5, 2, 0).npu(), torch.zeros(1, 5, 1).npu(), ONES.npu()
    )
    torch.testing.assert_close(tiny.cpu(), column(2.0, 2, 3, 3, 0))


ROTATED = torch.tensor([[35.75, 48.66, 12, 13, 66], [43.12, 53.56, 17, 6, -130], [53.4, 38.2, 17, 10, 60]])
QUERIES = torch.tensor(
    [
        [43.28, 30.67, 13, 2, -73],
        [38.72, 37.4, 12, 12, -99],
        [52.16, 56.7, 18, 15, 163],
        [59.62, 33.53, 8, 11, 89],
    ]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_areas_of_rotated_overlaps(dtype: torch.dtype) -> None:
    """The values are those of op-plugin's test, whose boxes are of half precision."""
    boxes, queries = (each[None].half().to(dtype) for each in (ROTATED, QUERIES))
    found = torch_npu.npu_rotated_overlaps(boxes.npu(), queries.npu())
    expected = torch.tensor([[[0, 13.27, 1.022, 0], [0, 0, 54.12, 0], [0, 0, 0, 19.17]]])
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().float(), expected, rtol=3e-3, atol=1e-3)
    # both batches by themselves; without a turn it is the plain intersection
    upright = torch.cat([random_boxes(6, 5), torch.zeros(6, 1)], 1)
    pair = torch.stack([upright[:3], upright[3:]])
    inside, _ = box_ops._box_inter_union(corners(upright[:3, :4]), corners(upright[:3, :4]))
    own = torch_npu.npu_rotated_overlaps(pair.npu(), pair.npu()).cpu()
    torch.testing.assert_close(own[0], inside, rtol=1e-4, atol=1e-4)
    assert own.shape == (2, 3, 3)


def test_rotated_iou_is_of_the_same_areas() -> None:
    boxes, queries = ROTATED[None], QUERIES[None]
    shared = torch_npu.npu_rotated_overlaps(boxes.npu(), queries.npu()).cpu()
    area, other = ((each[..., 2] * each[..., 3]) for each in (boxes, queries))
    found = torch_npu.npu_rotated_iou(boxes.npu(), queries.npu())
    torch.testing.assert_close(found.cpu(), shared / (area[:, :, None] + other[:, None] - shared))
    own = torch_npu.npu_rotated_iou(boxes.npu(), boxes.npu()).cpu()
    torch.testing.assert_close(own.diagonal(dim1=1, dim2=2), torch.ones(1, 3))


# -- YOLO --


@pytest.mark.parametrize("precise", [True, False])
def test_coder_of_yolo_boxes(precise: bool) -> None:
    """The values are those of op-plugin's test; the size that shrinks is held at the logarithm of 1e-6."""
    anchors = torch.tensor([[0.0290, 0.4019, 0.2598, 0.3666], [0.0583, 0.7006, 0.0518, 0.4681]])
    truth = torch.tensor([[0.6738, 0.3315, 0.7837, 0.5631], [0.7749, 0.8208, 0.2793, 0.6817]])
    stride = torch.tensor([2, 2], dtype=torch.int32)
    expected = torch.tensor(
        [[0.7921727, 0.5314963, -0.74224466, -13.815511], [0.736, 0.58343, 4.33340, -0.51378]]
    )
    found = torch_npu.npu_yolo_boxes_encode(anchors.npu(), truth.npu(), stride.npu(), not precise)
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-3, atol=2e-4)
    far = torch_npu.npu_yolo_boxes_encode(anchors.npu() + 50, truth.npu(), stride.npu()).cpu()
    torch.testing.assert_close(far[:, :2], torch.full((2, 2), 1e-6))


# -- samples --


@pytest.mark.parametrize("count", [3, 20])
def test_random_choice_with_a_mask(count: int) -> None:
    x = torch.zeros(4, 5, 2, dtype=torch.bool)
    true = [[0, 1, 1], [1, 4, 0], [2, 2, 1], [3, 0, 0], [3, 4, 1]]
    x[tuple(torch.tensor(true).t())] = True
    draws = [torch_npu.npu_random_choice_with_mask(x.npu(), count) for _ in range(30)]
    assert {str(index.tolist()) for index, _ in draws} != {str(draws[0][0].tolist())}, "never another order"
    for index, valid in draws:
        assert (index.dtype, index.shape, valid.dtype) == (torch.int32, (count, 3), torch.bool)
        number = min(count, len(true))
        assert valid.tolist() == [True] * number + [False] * (count - number)
        drawn = index[:number].tolist()
        assert all(each in true for each in drawn)
        assert len({tuple(each) for each in drawn}) == number
        assert not index[number:].any()


def test_random_choice_of_a_seed_is_the_same() -> None:
    x = torch.ones(100, dtype=torch.bool).npu()
    first, second, other = (
        torch_npu.npu_random_choice_with_mask(x, 50, *s)[0] for s in ((1, 2), (1, 2), (3, 0))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    # op-plugin's own example, but for the order
    index, valid = torch_npu.npu_random_choice_with_mask(torch.tensor([1, 0, 1, 0]).bool().npu(), 2, 1, 0)
    assert sorted(index.flatten().tolist()) == [0, 2]
    assert valid.all()
    index, valid = torch_npu.npu_random_choice_with_mask(torch.zeros(3, dtype=torch.bool).npu(), 2)
    assert (index.tolist(), valid.tolist()) == ([[0], [0]], [False, False])


@pytest.mark.parametrize(("positives", "negatives"), [(7, 20), (2, 20), (7, 1), (0, 0), (30, 0)])
def test_samples_of_labels(positives: int, negatives: int) -> None:
    """Detectron's subsample_labels: at most 5, of which at most 3 are 1."""
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 4, dtype=torch.int32)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    drawn = [torch_npu.npu_sub_sample(labels.npu(), 5, 0.6).cpu() for _ in range(20)]
    ones = min(positives, 3)
    for each in drawn:
        assert each.dtype == torch.int32
        assert ((each == labels) | (each == -1)).all()
        assert (each == 1).sum() == ones
        assert (each == 0).sum() == min(negatives, 5 - ones)
    if positives + negatives > 5:
        assert any(not torch.equal(each, drawn[0]) for each in drawn), "always the same sample"


REFUSED = {
    "BatchMultiClassNonMaxSuppression": "torch_npu.npu_batch_nms(boxes, scores, 0.1, 0.5, 4, 4, True)",
    "RotatedOverlaps": "torch_npu.npu_rotated_overlaps(torch.ones(1, 2, 5).npu(), torch.ones(1, 2, 5).npu(), True)",
    "SubSample": "torch_npu.npu_sub_sample(torch.tensor([2, 0]).int().npu(), 2, 0.5)",
}


@pytest.mark.parametrize("queue", ["0", "1", "2"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_of_an_operator_is_refused(name: str, queue: str, run_forked: RunPython) -> None:
    code = f"""
        import torch, torch_npu
        boxes, scores = torch.rand(1, 4, 1, 4).npu(), torch.rand(1, 4, 2).npu()
        boxes[..., 2:] += 1
        print(torch_npu.npu_batch_nms(boxes, scores, 0.1, 0.5, 4, 4)[3].item() > 0)
        print((torch_npu.npu_sub_sample(torch.ones(9).int().npu(), 4, 0.5) == 1).sum().item())
        try:
            {REFUSED[name]}
            torch.npu.synchronize()
        except RuntimeError as error:
            print("{name}" in str(error))
    """
    done = run_forked(code, TASK_QUEUE_ENABLE=queue)
    assert done.stdout.split() == ["True", "2", "True"], done.stdout + done.stderr
