"""Non-maximum suppression by CANN's NonMaxSuppressionV4, with the results of torchvision's CPU kernel."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor


def nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes remain, best score first: `torchvision::nms` on an NPU.

    The host waits once, for the number of boxes that remain. Shapes on the device depend on the number of boxes alone.

    Parameters
    ----------
    dets
        (N, 4) x1, y1, x2, y2 of any floating-point type; compared in float32.
    scores
        (N,) of any sign: logits are as good as probabilities. Of equal scores the first box comes first.
    iou_threshold
        A box is dropped whose IoU with a better one that remains is above it.

    Returns
    -------
    Tensor
        int64 indices into `dets`.

    Raises
    ------
    RuntimeError
        Shapes that are not (N, 4) and (N,).
    """
    import torch_npu

    if dets.dim() != 2 or dets.size(1) != 4:
        raise RuntimeError(f"boxes should have shape (N, 4), got {tuple(dets.shape)}")
    if scores.dim() != 1 or scores.size(0) != dets.size(0):
        raise RuntimeError(f"scores should have shape ({dets.size(0)},), got {tuple(scores.shape)}")
    count = dets.size(0)
    if count == 0:
        return dets.new_empty(0, dtype=torch.int64)
    # The operator gets ranks in the place of scores: it drops scores that are not above a threshold, and leaves open
    # which of two equal ones comes first.
    order = _at_most_float32(scores).sort(dim=0, descending=True, stable=True).indices
    ranks = torch.arange(count, 0, -1, dtype=torch.float32, device=dets.device)
    boxes = dets.to(torch.float32).index_select(0, order)
    # It takes any two opposite corners for a box; for torchvision a box whose ends come before its beginning is empty.
    boxes = torch.cat((boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)
    kept, number = torch_npu.npu_nms_v4(
        boxes,
        ranks,
        count,
        torch.full((), _float32_below(iou_threshold), dtype=torch.float32, device=dets.device),
        torch.zeros((), dtype=torch.float32, device=dets.device),
    )
    # What follows the last valid index is not specified. All of them are looked up: how many are valid is read last.
    kept = order.index_select(0, kept.to(torch.int64).clamp(0, count - 1))
    return kept[: int(number)]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes remain where each class is suppressed for itself, best score first, on any device.

    On an NPU every pair's overlap is computed from the coordinates as they are. `torchvision.ops.batched_nms` moves
    the classes apart there, 80 classes by 100,000 pixels, where float32 has steps of 1/128 pixel: a box whose overlap
    is near the threshold may fall on the other side than on the CPU, which suppresses class by class if there are
    more than 1,000 boxes. Elsewhere this is torchvision's.

    The host waits once for every `_ROUNDS` boxes in the longest chain of boxes that suppress each other.

    Parameters
    ----------
    boxes, scores, iou_threshold
        As in `nms`.
    idxs
        (N,) class of each box.

    Returns
    -------
    Tensor
        int64 indices into `boxes`.
    """
    from torchvision import ops

    if boxes.device.type != "npu" or boxes.numel() > _TORCHVISION_BY_CLASS:
        kept: Tensor = ops.batched_nms(boxes, scores, idxs, iou_threshold)
        return kept
    count = boxes.size(0)
    if count == 0:
        return boxes.new_empty(0, dtype=torch.int64)
    order = _at_most_float32(scores).sort(dim=0, descending=True, stable=True).indices
    overlaps = _overlaps(boxes.to(torch.float32)[order], idxs[order], _float32_below(iou_threshold))
    # A box remains if no better one that remains overlaps it. Exactly one set obeys this rule: whoever applies it
    # until nothing changes has found it, in as many rounds as the longest chain has boxes.
    remains = torch.ones(count, dtype=torch.bool, device=boxes.device)
    while True:
        for _ in range(_ROUNDS):
            before = remains
            remains = ~(overlaps & before[:, None]).any(dim=0)
        changed, number = torch.stack(((remains != before).sum(), remains.sum())).tolist()
        if not changed:
            break
    first = remains.to(torch.int32).sort(descending=True, stable=True).indices
    return order[first][:number]


_ROUNDS = 4
# Above this many coordinates torchvision suppresses class by class on every device.
_TORCHVISION_BY_CLASS = 100_000
_PAIRS_AT_ONCE = 2**22  # 16 MB for each intermediate result


def _overlaps(boxes: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Return (N, N) whether box i and a later box j of the same class overlap by more than `threshold`.

    In the order of operations of torchvision's CPU kernel, so that float32 gives the same bits.
    """
    count = boxes.size(0)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    rows = []
    step = max(1, _PAIRS_AT_ONCE // count)
    for begin in range(0, count, step):
        part = slice(begin, begin + step)
        ends = torch.minimum(boxes[part, None, 2:], boxes[:, 2:])
        sides = (ends - torch.maximum(boxes[part, None, :2], boxes[:, :2])).clamp(min=0)
        common = sides[..., 0] * sides[..., 1]
        over = common / (areas[part, None] + areas - common) > threshold
        rows.append((over & (classes[part, None] == classes)).triu(begin + 1))
    return torch.cat(rows)


def _at_most_float32(values: Tensor) -> Tensor:
    """Return the values in a type that an NPU sorts."""
    return values.to(torch.float32) if values.dtype == torch.float64 else values


@functools.cache
def _float32_below(value: float) -> float:
    """Return the largest float32 that is not above `value`.

    torchvision compares float32 overlaps with the threshold as a double, CANN with a float32: "above this number"
    means the same to both. 0.6 becomes 0.59999996, so that boxes whose IoU is the float32 nearest to 3/5 (0.60000002)
    overlap too much.

    >>> _float32_below(0.5), round(_float32_below(0.6), 8)
    (0.5, 0.59999996)
    """
    nearest = torch.tensor(value, dtype=torch.float32, device="cpu")
    if nearest.item() > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return float(nearest)
