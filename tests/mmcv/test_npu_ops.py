"""The 23 NPU implementations that mmcv 2.1.0 registers, and nms_rotated: values, gradients, dtypes, limits.

On cann_sim the kernels are ours, written from CANN's specifications; so what is tested is mmcv's adapter: which
operator it calls, with which inputs, attributes and types, and what it makes of the result. On an NPU the same
tests compare the real kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from mmcv import ops
from mmcv.ops.active_rotated_filter import active_rotated_filter
from mmcv.ops.fused_bias_leakyrelu import FusedBiasLeakyReLUFunction, bias_leakyrelu_ref
from torch import Tensor

NPU = torch.device("npu:0")


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert found.device.type == "npu"
    assert found.shape == expected.shape
    torch.testing.assert_close(found.cpu(), expected.to(found.dtype), rtol=tolerance, atol=tolerance)


def value_and_gradients(
    function: Callable[..., Tensor], inputs: list[Any], device: torch.device | str, grad_of: list[int]
) -> list[Tensor]:
    """The function's value and the gradients of some inputs, for a random but fixed gradient of the value."""
    moved = [item.clone().to(device) if isinstance(item, Tensor) else item for item in inputs]
    for index in grad_of:
        moved[index].requires_grad_()
    value = function(*moved)
    random = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(device)
    gradients = torch.autograd.grad((value * random).sum(), [moved[index] for index in grad_of])
    return [value.detach(), *gradients]


def compare(
    function: Callable[..., Tensor],
    inputs: list[Any],
    grad_of: list[int],
    expected: Callable[..., Tensor] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """NPU against CPU (or against `expected` on the CPU): value and gradients, none of them all but zero."""
    found = value_and_gradients(function, inputs, NPU, grad_of)
    wanted = value_and_gradients(expected or function, inputs, "cpu", grad_of)
    for one, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 1e-3, "nothing to compare"
        same(one, other, tolerance)


def boxes(count: int, size: float = 100) -> Tensor:
    corner = torch.rand(count, 2) * size
    return torch.cat([corner, corner + 2 + torch.rand(count, 2) * size / 2], 1)


def rois(count: int, images: int, size: float) -> Tensor:
    return torch.cat([torch.randint(images, (count, 1)).float(), boxes(count, size)], 1)


def rotated(count: int) -> Tensor:
    return torch.cat(
        [torch.rand(count, 2) * 40, 5 + torch.rand(count, 2) * 20, (torch.rand(count, 1) - 0.5) * 3], 1
    )


# -- nms --


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_nms(count: int, offset: int) -> None:
    inputs = boxes(count), torch.rand(count)
    expected, kept = ops.nms(*inputs, 0.4, offset)
    found, indices = ops.nms(*(item.to(NPU) for item in inputs), 0.4, offset)
    same(found, expected, 0)
    same(indices, kept, 0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 100.0], ids=["mixed signs", "none positive", "logits"])
def test_nms_keeps_scores_that_are_not_positive(shift: float) -> None:
    """As every other device does: region proposals are ranked by logits."""
    inputs = boxes(200), torch.rand(200) - shift
    inputs[1][3] = 0.0
    same(ops.nms(*(item.to(NPU) for item in inputs), 0.4)[1], ops.nms(*inputs, 0.4)[1], 0)


def test_nms_of_no_boxes() -> None:
    inputs = torch.empty(0, 4), torch.empty(0)
    found, indices = ops.nms(*(item.to(NPU) for item in inputs), 0.4)
    assert found.shape == (0, 5)
    assert indices.shape == (0,)
    assert indices.dtype == torch.long


def test_nms_by_score_and_number() -> None:
    inputs = boxes(200), torch.rand(200)
    settings = {"score_threshold": 0.3, "max_num": 7}
    same(
        ops.nms(*(item.to(NPU) for item in inputs), 0.4, **settings)[1],
        ops.nms(*inputs, 0.4, **settings)[1],
        0,
    )


def test_nms_refuses_half_precision_by_name() -> None:
    with pytest.raises(RuntimeError, match="boxes tensor passed in nms_npu should be float"):
        ops.nms(boxes(3).half().to(NPU), torch.rand(3).half().to(NPU), 0.4)


def test_batched_nms() -> None:
    inputs = boxes(200), torch.rand(200), torch.randint(5, (200,))
    settings = {"type": "nms", "iou_threshold": 0.5}
    same(
        ops.batched_nms(*(item.to(NPU) for item in inputs), settings)[1],
        ops.batched_nms(*inputs, settings)[1],
        0,
    )


@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("clockwise", [True, False])
def test_nms_rotated(count: int, clockwise: bool) -> None:
    inputs = rotated(count), torch.rand(count)
    expected, kept = ops.nms_rotated(*inputs, 0.3, clockwise=clockwise)
    found, indices = ops.nms_rotated(*(item.to(NPU) for item in inputs), 0.3, clockwise=clockwise)
    same(indices, kept, 0)
    same(found, expected)


def test_nms_rotated_leaves_its_input_alone() -> None:
    dets = rotated(10).to(NPU)
    before = dets.clone()
    ops.nms_rotated(dets, torch.rand(10).to(NPU), 0.3)
    assert torch.equal(dets, before)


def test_nms_rotated_of_labels_as_mmcv_expects_of_cards() -> None:
    """mmcv's own test: labels do not separate boxes. The fourth would stay if they did."""
    dets = torch.tensor([[6.0, 3, 8, 7, 0.5], [3, 6, 9, 11, 0.6], [3, 7, 10, 12, 0.3], [1, 4, 13, 7, 0.6]])
    scores, labels = torch.tensor([0.7, 0.8, 0.5, 0.9]), torch.tensor([1.0, 0, 1, 0])
    found, kept = ops.nms_rotated(dets.to(NPU), scores.to(NPU), 0.5, labels.to(NPU))
    assert kept.tolist() == [3, 1, 0]
    same(found[:, :5], dets[[3, 1, 0]], 1e-6)
    assert ops.nms_rotated(dets.to(NPU), scores.to(NPU), 0.5)[1].tolist() == [3, 1, 0]


# -- overlaps --


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 1), (7, 7), (0, 3), (3, 0)], ids=str)
def test_bbox_overlaps(shape: tuple[int, int], mode: str, offset: int) -> None:
    inputs = boxes(shape[0], 30), boxes(shape[1], 30)
    expected = ops.bbox_overlaps(*inputs, mode=mode, offset=offset)
    same(ops.bbox_overlaps(*(item.to(NPU) for item in inputs), mode=mode, offset=offset), expected)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("count", [1, 12])
def test_bbox_overlaps_aligned(count: int, mode: str, offset: int) -> None:
    inputs = boxes(count, 30), boxes(count, 30)
    expected = ops.bbox_overlaps(*inputs, mode=mode, aligned=True, offset=offset)
    same(
        ops.bbox_overlaps(*(item.to(NPU) for item in inputs), mode=mode, aligned=True, offset=offset),
        expected,
    )


def test_bbox_overlaps_of_half_precision() -> None:
    inputs = boxes(5, 30).half(), boxes(4, 30).half()
    expected = ops.bbox_overlaps(*(item.float() for item in inputs))
    found = ops.bbox_overlaps(*(item.to(NPU) for item in inputs))
    assert found.dtype == torch.half
    same(found, expected, 1e-3)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize("count", [1, 20])
def test_box_iou_rotated(count: int, clockwise: bool, mode: str, aligned: bool) -> None:
    inputs = rotated(count), rotated(count if aligned else count + 3)
    settings = {"mode": mode, "aligned": aligned, "clockwise": clockwise}
    expected = ops.box_iou_rotated(*inputs, **settings)
    same(ops.box_iou_rotated(*(item.to(NPU) for item in inputs), **settings), expected, 1e-4)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_box_iou_rotated_of_no_boxes(shape: tuple[int, int]) -> None:
    assert ops.box_iou_rotated(*(rotated(count).to(NPU) for count in shape)).shape == shape


@pytest.mark.parametrize("shape", [(1, 1), (200, 7)], ids=str)
def test_points_in_polygons(shape: tuple[int, int]) -> None:
    points = torch.rand(shape[0], 2) * 10
    square = torch.tensor([0.0, 0, 6, 1, 7, 8, 1, 5])
    polygons = square + torch.rand(shape[1], 1) * 3
    expected = reference.points_in_polygons(points, polygons)
    same(ops.points_in_polygons(points.to(NPU), polygons.to(NPU)), expected, 0)


def test_points_on_a_side_or_a_corner_are_outside_as_mmcv_expects_of_cards() -> None:
    """mmcv's own test: of five points, most of them on sides and corners, two are inside of one each."""
    points = torch.tensor([[300.0, 300], [400, 400], [100, 100], [300, 250], [100, 0]])
    polygons = torch.tensor(
        [
            [200.0, 200, 400, 400, 500, 200, 400, 100],
            [400, 400, 500, 500, 600, 300, 500, 200],
            [300, 300, 600, 700, 700, 700, 700, 100],
        ]
    )
    expected = torch.zeros(5, 3)
    expected[1, 2] = expected[3, 0] = 1
    same(ops.points_in_polygons(points.to(NPU), polygons.to(NPU)), expected, 0)


def test_points_in_polygons_refuses_more_than_the_kernel_takes() -> None:
    with pytest.raises(RuntimeError, match="MAX_POLYGONS_BATCH"):
        ops.points_in_polygons(torch.rand(1, 2).to(NPU), torch.rand(2801, 8).to(NPU))


# -- pooling --


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("count", [1, 20])
def test_roi_align(count: int, ratio: int, aligned: bool) -> None:
    inputs = [torch.randn(2, 5, 20, 24), rois(count, 2, 80), (7, 5), 0.25, ratio, "avg", aligned]
    compare(ops.roi_align, inputs, [0], tolerance=1e-4)


ROI_ALIGN = [
    ([[[1.0, 2], [3, 4]]], 1, [[[1.0, 1.25], [1.5, 1.75]]]),
    ([[[1.0, 2], [3, 4]], [[4, 3], [2, 1]]], 1, [[[1.0, 1.25], [1.5, 1.75]], [[4, 3.75], [3.5, 3.25]]]),
    (
        [[[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]],
        3,
        [[[1.9375, 4.75], [7.5625, 10.375]]],
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("image", "side", "expected"), ROI_ALIGN)
def test_roi_align_as_mmcv_expects_of_cards(
    image: list[Any], side: int, expected: list[Any], dtype: torch.dtype
) -> None:
    """mmcv's own test. It also has the gradient of half precision, which CANN's specification refuses: KNOWN.md."""
    rois = torch.tensor([[0.0, 0, 0, side, side]], dtype=dtype)
    found = ops.roi_align(
        torch.tensor([image], dtype=dtype).to(NPU), rois.to(NPU), (2, 2), 1.0, 2, "avg", True
    )
    same(found, torch.tensor([expected]), 1e-3)


def test_roi_align_of_no_rois() -> None:
    features = torch.randn(2, 3, 8, 8).to(NPU).requires_grad_()
    output = ops.roi_align(features, torch.empty(0, 5).to(NPU), 7, 0.25, 2)
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_roi_align_refuses_to_average_where_the_largest_is_asked_for() -> None:
    with pytest.raises(RuntimeError, match="pool_mode"):
        ops.roi_align(torch.randn(1, 3, 8, 8).to(NPU), rois(2, 1, 8).to(NPU), 7, 1.0, 2, "max")


def test_roi_align_of_half_precision() -> None:
    features, regions = torch.randn(1, 4, 16, 16), rois(5, 1, 12)
    found = ops.roi_align(features.half().to(NPU), regions.half().to(NPU), 7, 1.0, 2)
    same(found, ops.roi_align(features, regions.half().float(), 7, 1.0, 2), 2e-2)


@pytest.mark.parametrize("channels", [16, 3])
@pytest.mark.parametrize("count", [1, 12])
def test_roi_pool(count: int, channels: int) -> None:
    inputs = [torch.randn(2, channels, 12, 14), rois(count, 2, 40).round(), (3, 2), 0.25]
    compare(ops.roi_pool, inputs, [0], reference.roi_pool)


@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_deform_roi_pool(ratio: int, with_offset: bool) -> None:
    features, regions, size = torch.randn(2, 4, 16, 16), rois(4, 2, 40), (3, 2)
    offset = torch.randn(4, 2, *size)

    def pool(features: Tensor, regions: Tensor, offset: Tensor) -> Tensor:
        used = offset if with_offset else offset.new_empty(0)
        value = ops.deform_roi_pool(features, regions, used, size, 0.25, ratio, 0.1)
        return value if with_offset else value + 0 * offset.sum()

    def expected(features: Tensor, regions: Tensor, offset: Tensor) -> Tensor:
        used = offset if with_offset else None
        return reference.deform_roi_pool(features, regions, used, size, 0.25, ratio, 0.1)

    compare(pool, [features, regions, offset], [0, 2] if with_offset else [0], expected, tolerance=1e-4)


# -- deformable convolution --


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (3, 2)], ids=str)
@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2)])
def test_deform_conv(kernel: tuple[int, int], groups: int, deform_groups: int) -> None:
    height, width = 6 + 2 - kernel[0] + 1, 7 + 2 - kernel[1] + 1
    offset = torch.randn(2, 2 * deform_groups * kernel[0] * kernel[1], height, width)
    weight = torch.randn(6, 4 // groups, *kernel)
    inputs = [torch.randn(2, 4, 6, 7), offset, weight, 1, 1, 1, groups, deform_groups]
    compare(ops.deform_conv2d, inputs, [0, 1, 2], tolerance=1e-4)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)], ids=str)
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (1, 2, 2)])
def test_modulated_deform_conv(kernel: tuple[int, int], stride: int, padding: int, dilation: int) -> None:
    height, width = (
        (size + 2 * padding - dilation * (length - 1) - 1) // stride + 1
        for size, length in zip((7, 8), kernel, strict=True)
    )
    taps = kernel[0] * kernel[1]
    offset, mask = torch.randn(2, 2 * taps, height, width), torch.rand(2, taps, height, width)
    weight, bias = torch.randn(5, 4, *kernel), torch.randn(5)
    inputs = [torch.randn(2, 4, 7, 8), offset, mask, weight, bias, stride, padding, dilation]
    compare(ops.modulated_deform_conv2d, inputs, [0, 1, 2, 3, 4], tolerance=1e-4)


# -- losses --


def focal_inputs(classes: int, weighted: bool, background: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    target = torch.randint(classes + background, (20,))
    return torch.randn(20, classes), target, torch.rand(classes) + 0.5 if weighted else None


@pytest.mark.parametrize(
    ("classes", "weighted", "background"),
    [(4, False, False), (4, True, False), (4, False, True), (1, False, True), (1, True, False)],
)
def test_sigmoid_focal_loss(classes: int, weighted: bool, background: bool) -> None:
    logits, target, weight = focal_inputs(classes, weighted, background)
    if background:
        assert (target == classes).any()
    compare(
        lambda *inputs: ops.sigmoid_focal_loss(*inputs, "none"),
        [logits, target, 2.0, 0.25, weight],
        [0],
        reference.sigmoid_focal_loss,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(weighted: bool) -> None:
    logits, target, weight = focal_inputs(5, weighted, False)
    expected = reference.softmax_focal_loss(logits, target, 2.0, 0.25, weight)
    moved = [None if item is None else item.to(NPU) for item in (logits, target, weight)]
    same(ops.softmax_focal_loss(moved[0], moved[1], 2.0, 0.25, moved[2], "none"), expected)
    for reduction in ("mean", "sum"):
        compare(
            lambda *inputs, how=reduction: ops.softmax_focal_loss(*inputs, how),
            [logits, target, 2.0, 0.25, weight],
            [0],
            lambda *inputs, how=reduction: getattr(reference.softmax_focal_loss(*inputs), how)(),
        )


# -- the rest --


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5, 6)], ids=str)
def test_fused_bias_leakyrelu(shape: tuple[int, ...]) -> None:
    inputs = [torch.randn(shape), torch.randn(4), 0.2, 2**0.5]
    compare(FusedBiasLeakyReLUFunction.apply, inputs, [0, 1], bias_leakyrelu_ref)


def test_fused_bias_leakyrelu_differentiates_twice() -> None:
    """The gradient's gradient, as StyleGAN2's penalties need it, with respect to input and bias."""

    def penalty(x: Tensor, bias: Tensor, *settings: float, function: Callable[..., Tensor]) -> Tensor:
        gradients = torch.autograd.grad(
            function(x, bias, *settings).pow(2).sum(), (x, bias), create_graph=True
        )
        return sum(gradient.pow(2).sum() for gradient in gradients).reshape(1)

    inputs = [torch.randn(2, 4, 3, 3), torch.randn(4), 0.2, 2**0.5]
    compare(
        lambda *inputs: penalty(*inputs, function=FusedBiasLeakyReLUFunction.apply),
        inputs,
        [0, 1],
        lambda *inputs: penalty(*inputs, function=bias_leakyrelu_ref),
        tolerance=1e-4,
    )


@pytest.mark.parametrize("points", [1, 11])
def test_gather_points(points: int) -> None:
    index = torch.randint(9, (3, points), dtype=torch.int)
    compare(
        ops.gather_points,
        [torch.randn(3, 4, 9), index],
        [0],
        lambda features, index: features.gather(2, index.long().unsqueeze(1).expand(-1, 4, -1)),
    )


def test_group_points() -> None:
    features, index = torch.randn(3, 4, 9), torch.randint(9, (3, 5, 6), dtype=torch.int)
    expected = torch.stack([one[:, where.long()] for one, where in zip(features, index, strict=True)])
    same(ops.grouping_operation(features.to(NPU), index.to(NPU)), expected)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize("mask", [(3, 5), (1, 1)], ids=str)
def test_psa_mask(kind: str, mask: tuple[int, int]) -> None:
    compare(ops.PSAMask(kind, mask), [torch.randn(2, mask[0] * mask[1], 4, 3)], [0])


@pytest.mark.parametrize("rotations", [8, 4])
def test_active_rotated_filter(rotations: int) -> None:
    positions = torch.stack([torch.randperm(8 * 9) for _ in range(rotations)], 1).view(8, 3, 3, rotations) + 1
    compare(active_rotated_filter, [torch.randn(3, 2, 8, 3, 3), positions.int()], [0])


@pytest.mark.parametrize("count", [1, 200])
@pytest.mark.parametrize("max_voxels", [3, 50])
def test_hard_voxelize(count: int, max_voxels: int) -> None:
    points = torch.rand(count, 4) * 6 - 1  # some lie outside
    points[0] = 1.0
    settings = [[1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 4.0, 4.0, 4.0], 5, max_voxels]
    expected = ops.Voxelization(*settings)(points)
    found = ops.Voxelization(*settings)(points.to(NPU))
    for one, other in zip(found, expected, strict=True):
        assert len(other) > 0
        same(one, other, 0)


# -- operators without an NPU kernel --

ROUTED: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]], list[int]]] = {
    "roi_align_rotated": (
        lambda x, r: ops.roi_align_rotated(x, r, (3, 3), 0.5, 2, True, False),
        lambda: [torch.randn(1, 3, 16, 16), torch.cat([torch.zeros(4, 1), rotated(4)], 1)],
        [0],
    ),
    "rotated_feature_align": (
        lambda x, b: ops.rotated_feature_align(x, b, 0.5, 1),
        lambda: [torch.randn(1, 3, 6, 6), rotated(36).view(1, 6, 6, 5)],
        [0],
    ),
    "bezier_align": (
        lambda x, b: ops.bezier_align(x, b, (4, 4), 1.0, 2, True),
        lambda: [torch.randn(1, 3, 16, 16), torch.cat([torch.zeros(2, 1), torch.rand(2, 16) * 15], 1)],
        [0],
    ),
    "box_iou_quadri": (ops.box_iou_quadri, lambda: [quadrilaterals(4), quadrilaterals(3)], []),
    "nms_quadri": (lambda b, s: ops.nms_quadri(b, s, 0.3)[0], lambda: [quadrilaterals(9), torch.rand(9)], []),
    "dynamic_voxelize": (
        lambda p: ops.Voxelization([1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 4.0, 4.0, 4.0], -1, 50)(p).float(),
        lambda: [torch.rand(30, 4) * 4],
        [],
    ),
}


def quadrilaterals(count: int) -> Tensor:
    return torch.tensor([0.0, 0, 9, 1, 8, 8, 1, 7]) + torch.rand(count, 1) * 6


@pytest.mark.parametrize("name", ROUTED)
def test_operator_without_npu_kernel_takes_the_cpu_route(name: str) -> None:
    function, inputs, grad_of = ROUTED[name]
    made = inputs()
    if grad_of:
        compare(function, made, grad_of)
    else:
        same(function(*(item.to(NPU) for item in made)), function(*made))


def test_cpu_route_says_so_once() -> None:
    import subprocess
    import sys

    code = """if True:
        import torch, torch_npu, warnings
        from mmcv import ops
        x = torch.randn(1, 3, 8, 8).npu()
        r = torch.tensor([[0, 4.0, 4, 4, 4, 0.3]]).npu()
        for _ in range(3):
            ops.roi_align_rotated(x, r, (3, 3), 1.0)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in done.stderr.splitlines() if "roi_align_rotated_forward_impl" in line]
    assert len(said) == 1, done.stderr
    assert "no NPU kernel" in said[0]


def test_cpu_route_does_not_count_as_a_change_of_its_inputs() -> None:
    """autograd refuses to differentiate through a tensor that was written to after it was saved."""
    x = torch.randn(1, 3, 8, 8).to(NPU).requires_grad_()
    doubled = x * 2
    before = doubled._version
    ops.roi_align_rotated(doubled, torch.tensor([[0, 4.0, 4, 4, 4, 0.3]]).to(NPU), (3, 3), 1.0)
    assert doubled._version == before


def test_soft_nms() -> None:
    inputs = boxes(50), torch.rand(50)
    expected = ops.soft_nms(*inputs, 0.3, 0.5, 1e-3, "linear")
    found = ops.soft_nms(*(item.to(NPU) for item in inputs), 0.3, 0.5, 1e-3, "linear")
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_nms_match() -> None:
    dets = torch.cat([boxes(20), torch.rand(20, 1)], 1)
    expected, found = ops.nms_match(dets, 0.4), ops.nms_match(dets.to(NPU), 0.4)
    assert [group.tolist() for group in found] == [group.tolist() for group in expected]


def test_operator_with_neither_names_itself() -> None:
    with pytest.raises(RuntimeError, match=r"carafe_forward_impl: implementation for device npu:0 not found"):
        ops.carafe(torch.randn(1, 4, 4, 4).to(NPU), torch.rand(1, 9, 8, 8).to(NPU), 3, 1, 2)
