"""nms, batched_nms, roi_align with its gradient and repeat_interleave on NPUs: the CPU's results, in every corner."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import ascendet_npu_ops
import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.ops import boxes as torchvision_boxes


def random_boxes(count: int, size: float = 800.0, largest: float = 200.0) -> Tensor:
    corner = torch.rand(count, 2) * size
    return torch.cat((corner, corner + torch.rand(count, 2) * largest), dim=1)


def nms_on_both(boxes: Tensor, scores: Tensor, threshold: float = 0.5) -> list[int]:
    """Return what remains on the NPU, which is what remains on the CPU."""
    found = torchvision.ops.nms(boxes.npu(), scores.npu(), threshold)
    assert found.dtype == torch.int64
    assert found.device.type == "npu"
    expected = torchvision.ops.nms(boxes.float(), scores.float(), threshold)
    assert found.tolist() == expected.tolist()
    return list(found.tolist())


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.7, 1.0])
def test_random_boxes_remain_as_on_the_cpu(threshold: float) -> None:
    kept = nms_on_both(random_boxes(600), torch.rand(600), threshold)
    assert 10 < len(kept) <= 600


def test_scores_that_are_not_positive_count_like_others() -> None:
    boxes = random_boxes(200)
    kept = nms_on_both(boxes, torch.randn(200) - 2)
    assert kept == nms_on_both(boxes, torch.randn(200) * 0 - torch.tensor(kept_scores(kept, 200)))
    scores = torch.randn(200)
    scores[:5] = -torch.inf
    scores[5] = torch.inf
    nms_on_both(boxes, scores)


def kept_scores(kept: list[int], count: int) -> list[float]:
    """Return negated scores under which the boxes of `kept` come first, in that order."""
    order = [*kept, *(index for index in range(count) if index not in set(kept))]
    return [float(order.index(index)) for index in range(count)]


def test_of_equal_scores_the_first_box_comes_first() -> None:
    nms_on_both(random_boxes(300), torch.randint(0, 3, (300,)).float())
    nms_on_both(random_boxes(300), torch.zeros(300))


@pytest.mark.parametrize(
    ("width", "threshold"), [(2.0, 0.5), (3.0, 0.6), (7.0, 0.7), (9.0, 0.9), (1.0, 1 / 3)]
)
def test_an_overlap_at_the_threshold_is_on_the_cpu_s_side(width: float, threshold: float) -> None:
    """3/5 in float32 is above 0.6, 7/10 is below 0.7: a threshold rounded to nearest is wrong for one of them."""
    whole = {2.0: 4.0, 3.0: 5.0, 7.0: 10.0, 9.0: 10.0, 1.0: 3.0}[width]
    boxes = torch.tensor([[0.0, 0.0, whole, 1.0], [0.0, 0.0, width, 1.0]])
    nms_on_both(boxes, torch.tensor([0.9, 0.8]), threshold)


def test_no_box_one_box_all_equal_boxes_and_no_overlaps() -> None:
    assert nms_on_both(torch.empty(0, 4), torch.empty(0)) == []
    assert nms_on_both(random_boxes(1), torch.tensor([-1.0])) == [0]
    assert nms_on_both(random_boxes(1).expand(50, 4), torch.rand(50).sort().values) == [49]
    apart = torch.arange(50.0)[:, None] * 10 + torch.tensor([0.0, 0.0, 5.0, 5.0])
    assert len(nms_on_both(apart, torch.rand(50))) == 50


def test_boxes_without_area_and_turned_around_suppress_nothing() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [10.0, 0.0, 0.0, 10.0],
            [0.0, 10.0, 10.0, 0.0],
            [3.0, 3.0, 3.0, 3.0],
            [3.0, 3.0, 3.0, 3.0],
        ]
    )
    assert len(nms_on_both(boxes, torch.tensor([0.1, 0.9, 0.8, 0.7, 0.6]))) == 5


def test_half_precision_boxes_and_scores_are_compared_in_single() -> None:
    nms_on_both(random_boxes(300, 1800).half(), torch.rand(300).half())
    nms_on_both(random_boxes(300, 1800), torch.rand(300).bfloat16())


def test_wrong_shapes_are_refused_as_on_the_cpu() -> None:
    for boxes, scores in (
        (torch.rand(3, 5), torch.rand(3)),
        (torch.rand(3, 4), torch.rand(2)),
        (torch.rand(4), torch.rand(1)),
    ):
        for device in ("cpu", "npu"):
            with pytest.raises(RuntimeError):
                torchvision.ops.nms(boxes.to(device), scores.to(device), 0.5)


@pytest.mark.parametrize("count", [0, 1, 40, 3000])
def test_batched_nms_is_the_cpu_s_for_many_classes(count: int) -> None:
    boxes, scores, classes = random_boxes(count, 1300), torch.rand(count), torch.randint(0, 80, (count,))
    found = ascendet_npu_ops.batched_nms(boxes.npu(), scores.npu(), classes.npu(), 0.6)
    expected = torchvision_boxes._batched_nms_vanilla(boxes, scores, classes, 0.6)
    assert scores[found.cpu()].tolist() == scores[expected].tolist()
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert torchvision.ops.batched_nms(boxes.npu(), scores.npu(), classes.npu(), 0.6).numel() == found.numel()


def test_batched_nms_keeps_the_digits_that_moving_the_classes_apart_costs() -> None:
    """Two boxes of class 79 overlap by about the threshold: 100,000 pixels further they may fall on its other side."""
    differences = 0
    for step in range(200):
        shift = 1300 * torch.rand(1).item()
        first = torch.tensor([shift, 0.0, shift + 10.0, 10.0])
        boxes = torch.stack(
            (first, first + torch.tensor([2.5 + (step - 100) * 1e-5, 0.0, 2.5 + (step - 100) * 1e-5, 0.0]))
        )
        boxes = torch.cat((boxes, torch.tensor([[0.0, 0.0, 1333.0, 800.0]])))
        scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([79, 79, 0])
        expected = torchvision_boxes._batched_nms_vanilla(boxes, scores, classes, 0.6)
        found = ascendet_npu_ops.batched_nms(boxes.npu(), scores.npu(), classes.npu(), 0.6)
        assert found.tolist() == expected.tolist()
        moved = torchvision_boxes._batched_nms_coordinate_trick(boxes, scores, classes, 0.6)
        differences += moved.tolist() != expected.tolist()
    assert differences > 0, "the trick is exact here: the test shows nothing"


def test_batched_nms_finds_the_end_of_a_long_chain() -> None:
    """Each box overlaps the next: every other one remains, which takes as many rounds as there are boxes."""
    start = torch.arange(60.0)[:, None]
    boxes = torch.cat((start, start * 0, start + 1.9, start * 0 + 1), dim=1)
    scores = torch.linspace(1, 0.1, 60)
    found = ascendet_npu_ops.batched_nms(boxes.npu(), scores.npu(), torch.zeros(60).npu(), 0.2)
    assert found.tolist() == list(range(0, 60, 2))


# -- roi_align --

ROIS = torch.tensor(
    [
        [0, 3.3, 4.2, 30.7, 28.9],
        [1, 0.0, 0.0, 63.0, 47.0],
        [1, -20.0, -9.5, 12.0, 8.0],  # begins outside
        [0, 40.0, 30.0, 90.0, 80.0],  # ends outside
        [0, 200.0, 200.0, 240.0, 260.0],  # outside altogether
        [1, 5.0, 5.0, 5.0, 5.0],  # no area
        [0, 9.0, 9.0, 4.0, 2.0],  # turned around
        [1, 10.2, 10.2, 10.9, 10.7],  # less than a pixel
    ]
)


def pooled(features: Tensor, rois: Tensor, device: str, **options: object) -> tuple[Tensor, Tensor]:
    """Return the pooled features and the gradient of the features, on the CPU."""
    leaf = features.to(device, copy=True).requires_grad_()
    result = torchvision.ops.roi_align(leaf, rois.to(device), **options)
    weights = torch.linspace(-1, 1, max(result.numel(), 1))[: result.numel()].view(result.shape)
    (result * weights.to(result)).sum().backward()
    assert leaf.grad is not None
    return result.detach().cpu(), leaf.grad.cpu()


@pytest.mark.parametrize(
    ("aligned", "ratio", "size"), list(itertools.product([True, False], [-1, 0, 2], [7, (5, 3), 1]))
)
def test_roi_align_and_its_gradient_are_the_cpu_s(
    aligned: bool, ratio: int, size: int | tuple[int, int]
) -> None:
    features = torch.randn(2, 5, 24, 32)
    options = {"output_size": size, "spatial_scale": 0.5, "sampling_ratio": ratio, "aligned": aligned}
    for found, expected in zip(
        pooled(features, ROIS, "npu", **options), pooled(features, ROIS, "cpu", **options), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_features_keep_the_boxes_digits_beyond_1024_pixels() -> None:
    """In float16 the coordinates would have steps of a pixel: the results differ then, so the test can fail."""
    features = torch.randn(1, 4, 16, 400).half()
    rois = torch.tensor([[0, 1100.3, 10.4, 1180.6, 50.2], [0, 1501.7, 3.3, 1533.4, 60.9]])
    options = {"output_size": 7, "spatial_scale": 0.25, "sampling_ratio": 0, "aligned": True}
    result, gradient = pooled(features, rois, "npu", **options)
    assert result.dtype == gradient.dtype == torch.float16
    exact, exact_gradient = pooled(features.float(), rois, "cpu", **options)
    torch.testing.assert_close(result, exact.half())
    torch.testing.assert_close(gradient, exact_gradient.half(), rtol=2e-3, atol=2e-3)
    rounded, _ = pooled(features.float(), rois.half().float(), "cpu", **options)
    assert not torch.allclose(rounded, exact, rtol=1e-2, atol=1e-2)


def test_autocast_pools_half_precision_features_in_single() -> None:
    features = torch.randn(1, 3, 32, 32).npu().requires_grad_()
    weight = torch.randn(4, 3, 1, 1).npu()
    rois = torch.tensor([[0, 2.5, 3.5, 20.0, 25.0]]).npu()
    with torch.autocast("npu", dtype=torch.float16):
        mixed = torch.nn.functional.conv2d(features, weight)
        result = torchvision.ops.roi_align(mixed, rois, 3, 1.0, 2, True)
    assert mixed.dtype == result.dtype == torch.float16
    result.float().sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    expected = torchvision.ops.roi_align(mixed.detach().float().cpu(), rois.cpu(), 3, 1.0, 2, True)
    torch.testing.assert_close(result.detach().cpu(), expected.half())


@pytest.mark.parametrize("shape", [(2, 5, 24, 32), (0, 5, 24, 32), (2, 0, 24, 32)])
def test_no_boxes_and_no_features_give_empty_results_and_zero_gradients(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape)
    result, gradient = pooled(features, torch.empty(0, 5), "npu", output_size=4)
    assert result.shape == (0, shape[1], 4, 4)
    assert gradient.shape == shape
    assert not gradient.any()


def test_strided_features_and_boxes_are_read_as_what_they_are() -> None:
    features = torch.randn(2, 24, 32, 5).permute(0, 3, 1, 2)
    rois = torch.cat((ROIS, ROIS), dim=1)[:, 5:]
    options = {"output_size": 3, "spatial_scale": 0.5, "sampling_ratio": 2, "aligned": True}
    for found, expected in zip(
        pooled(features, rois, "npu", **options), pooled(features, rois, "cpu", **options), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_pooling_twice_gives_the_same_bits() -> None:
    features, rois = (
        torch.randn(2, 8, 40, 40),
        torch.cat((torch.randint(0, 2, (300, 1)), random_boxes(300, 60, 40)), dim=1),
    )
    first, second = (
        pooled(features, rois, "npu", output_size=7, sampling_ratio=0, aligned=True) for _ in range(2)
    )
    assert first[0].equal(second[0])
    assert first[1].equal(second[1])


# -- repeat_interleave --


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("repeats", [[1, 0, 2], [0, 0], [], [5]])
def test_repeated_indices_are_the_cpu_s(repeats: list[int], dtype: torch.dtype) -> None:
    counts = torch.tensor(repeats, dtype=dtype)
    for known in (None, sum(repeats)):
        found = torch.repeat_interleave(counts.npu(), output_size=known)
        expected = torch.repeat_interleave(counts, output_size=known)
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()
    values = torch.randn(len(repeats), 3)
    assert (
        torch.repeat_interleave(values.npu(), counts.npu(), dim=0)
        .cpu()
        .equal(torch.repeat_interleave(values, counts, dim=0))
    )


def test_counts_that_are_no_counts_are_refused() -> None:
    for counts in (torch.tensor([1, -1]), torch.tensor([[1]]), torch.tensor([1.0])):
        with pytest.raises(RuntimeError):
            torch.repeat_interleave(counts.npu())


# -- how they get there --


def run(body: str, **environ: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body)],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "imports", ["torch, torchvision", "torchvision, torch", "ascendet_npu_ops, torch, torchvision"]
)
def test_torch_finds_them_whatever_is_imported_first(imports: str) -> None:
    shown = run(f"""
        import {imports}
        print(torchvision.ops.nms(torch.rand(9, 4).npu(), torch.rand(9).npu(), 0.5).device)
    """)
    assert "npu:0" in shown
    assert "fall back" not in shown


def test_without_autoload_an_import_registers_them() -> None:
    body = """
        import torch, torchvision, torch_npu{}
        print(torchvision.ops.nms(torch.rand(9, 4).npu(), torch.rand(9).npu(), 0.5).device)
    """
    assert "torchvision::nms" in run(body.format(""), TORCH_DEVICE_BACKEND_AUTOLOAD="0"), (
        "it is found without the import"
    )
    assert "fall back" not in run(body.format(", ascendet_npu_ops"), TORCH_DEVICE_BACKEND_AUTOLOAD="0")


def test_an_operator_that_has_a_kernel_keeps_it() -> None:
    shown = run(
        """
        import torch, torchvision
        theirs = torch.library.Library("torchvision", "IMPL", "PrivateUse1")
        theirs.impl("nms", lambda boxes, scores, threshold: torch.full((1,), 7))
        import torch_npu, ascendet_npu_ops
        print(torchvision.ops.nms(torch.rand(9, 4).npu(), torch.rand(9).npu(), 0.5).tolist())
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert "[7]" in shown


def test_without_torch_npu_nothing_is_registered() -> None:
    shown = run(
        """
        import importlib.util, sys
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torch_npu" else find(name, *rest)
        import ascendet_npu_ops, torch, torchvision
        print(ascendet_npu_ops._libraries, torchvision.ops.nms(torch.rand(9, 4), torch.rand(9), 0.5).device)
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert "[] cpu" in shown
