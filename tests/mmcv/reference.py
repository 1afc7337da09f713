"""What mmcv's operators compute, written with plain differentiable torch where mmcv itself has no CPU version.

From the definitions in mmcv's sources (csrc/common/cuda/*_kernel.cuh); gradients come from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> Tensor:
    """Per element (N, C). `target` (N,) from 0; C itself means background. `weight` (C,) by the row's target."""
    positive = target.unsqueeze(1) == torch.arange(logits.size(1))
    p = logits.sigmoid()
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * p.clamp_min(TINY).log(),
        -(1 - alpha) * p**gamma * (1 - p).clamp_min(TINY).log(),
    )
    return loss if weight is None else loss * weight[target].unsqueeze(1)


def softmax_focal_loss(
    logits: Tensor, target: Tensor, gamma: float, alpha: float, weight: Tensor | None
) -> Tensor:
    """Per row (N,)."""
    p = logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    loss = -alpha * (1 - p) ** gamma * p.clamp_min(TINY).log()
    return loss if weight is None else loss * weight[target]


def bilinear(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Values of `plane` (C, H, W) at points (P,): 0 outside [-1, H] x [-1, W], clamped at the border."""
    height, width = plane.shape[1:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    y0, x0 = y.detach().floor().long(), x.detach().floor().long()
    y1, x1 = (y0 + 1).clamp_max(height - 1), (x0 + 1).clamp_max(width - 1)
    dy, dx = y - y0, x - x0
    value = (
        plane[:, y0, x0] * (1 - dy) * (1 - dx)
        + plane[:, y0, x1] * (1 - dy) * dx
        + plane[:, y1, x0] * dy * (1 - dx)
        + plane[:, y1, x1] * dy * dx
    )
    return value * inside


def deform_roi_pool(
    features: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    size: tuple[int, int],
    scale: float,
    ratio: int,
    gamma: float,
) -> Tensor:
    """(n, C, ph, pw): the mean of sample points in bins that `offset` (n, 2, ph, pw) moves, x first."""
    rows = []
    for n, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        width, height = (x2 - x1) * scale, (y2 - y1) * scale
        bin_h, bin_w = height / size[0], width / size[1]
        count_y = ratio or int(torch.tensor(bin_h).ceil())
        count_x = ratio or int(torch.tensor(bin_w).ceil())
        for i in range(size[0]):
            for j in range(size[1]):
                top, left = y1 * scale - 0.5 + i * bin_h, x1 * scale - 0.5 + j * bin_w
                y = top + (torch.arange(count_y) + 0.5) * bin_h / count_y
                x = left + (torch.arange(count_x) + 0.5) * bin_w / count_x
                if offset is not None:
                    x = x + offset[n, 0, i, j] * gamma * width
                    y = y + offset[n, 1, i, j] * gamma * height
                grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
                rows.append(bilinear(features[int(image)], grid_y.reshape(-1), grid_x.reshape(-1)).mean(1))
    return torch.stack(rows).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def roi_pool(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """(n, C, ph, pw): the largest cell of each bin of whole cells; 0 for an empty bin."""
    height, width = features.shape[2:]
    rows = []
    for image, x1, y1, x2, y2 in rois.tolist():
        left, top = x1 * scale, y1 * scale
        bin_w, bin_h = ((x2 + 1) * scale - left) / size[1], ((y2 + 1) * scale - top) / size[0]
        for i in range(size[0]):
            for j in range(size[1]):
                bounds = torch.tensor(
                    [i * bin_h + top, (i + 1) * bin_h + top, j * bin_w + left, (j + 1) * bin_w + left]
                )
                a, c = (int(v) for v in bounds[[0, 2]].floor().clamp_min(0))
                b, d = min(int(bounds[1].ceil()), height), min(int(bounds[3].ceil()), width)
                cells = features[int(image), :, a:b, c:d].flatten(1)
                rows.append(cells.max(1).values if cells.size(1) else features.new_zeros(features.size(1)))
    return torch.stack(rows).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def points_in_polygons(points: Tensor, polygons: Tensor) -> Tensor:
    """(N, M): 1 where a point is in a convex quadrilateral, whichever way round its corners go."""
    corners = polygons.view(-1, 4, 2)
    sides = corners.roll(-1, 1) - corners
    to_point = points[:, None, None] - corners
    cross = sides[..., 0] * to_point[..., 1] - sides[..., 1] * to_point[..., 0]
    return ((cross > 0).all(-1) | (cross < 0).all(-1)).float()
