"""RoIAlign and its gradient by CANN's ROIAlign and ROIAlignGrad, with torchvision's meaning of every argument.

Features and boxes are computed in float32, whatever types they come in: CANN takes both in one type, and in float16 the
coordinates of boxes have steps of 0.5 pixels above 512 and of 1 pixel above 1024. Its gradient exists in float32 only.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Attribute roi_end_mode of CANN's operators (prototype of ROIAlign in ops-cv).
_BOXES_AS_THEY_ARE = 0  # aligned=False: at least one pixel wide and high
_HALF_PIXEL = 2  # aligned=True


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the mean of bilinear samples of each bin of each box: `torchvision::roi_align` on an NPU, without waiting.

    Parameters
    ----------
    input
        (B, C, H, W) features of any floating-point type, which is the result's.
    rois
        (N, 5) index of the picture, x1, y1, x2, y2; they may be empty, and lie outside.
    spatial_scale
        Multiplies the boxes' coordinates.
    pooled_height, pooled_width
        How many bins a box has.
    sampling_ratio
        Samples per bin and direction; 0 and below: as many as the bin has pixels, rounded up.
    aligned
        Whether coordinates are shifted by half a pixel, as detectron2's ROIAlignV2 does.

    Returns
    -------
    Tensor
        (N, C, pooled_height, pooled_width).

    Raises
    ------
    RuntimeError
        `rois` are not (N, 5), or `input` is not (B, C, H, W).
    """
    import torch_npu

    if input.dim() != 4:
        raise RuntimeError(f"input must have shape (B, C, H, W), got {tuple(input.shape)}")
    _check_rois(rois)
    shape = (rois.size(0), input.size(1), pooled_height, pooled_width)
    if input.numel() == 0 or 0 in shape:  # CANN's operators take no empty tensors
        return input.new_zeros(shape)
    with torch._C._AutoDispatchBelowAutograd():
        pooled = torch_npu.npu_roi_align(
            input.to(torch.float32).contiguous(),
            rois.to(torch.float32).contiguous(),
            spatial_scale,
            pooled_height,
            pooled_width,
            max(sampling_ratio, 0),
            _HALF_PIXEL if aligned else _BOXES_AS_THEY_ARE,
        )
    return pooled.to(input.dtype)


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    batch_size: int,
    channels: int,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the features' gradient of `roi_align`: `torchvision::_roi_align_backward` on an NPU, without waiting.

    Parameters
    ----------
    grad
        (N, channels, pooled_height, pooled_width) of any floating-point type, which is the result's.
    rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned
        As in `roi_align`.
    batch_size, channels, height, width
        The features' shape.

    Returns
    -------
    Tensor
        (batch_size, channels, height, width).

    Raises
    ------
    RuntimeError
        `rois` are not (N, 5).
    """
    import torch_npu

    _check_rois(rois)
    shape = (batch_size, channels, height, width)
    if grad.numel() == 0 or 0 in shape:
        return grad.new_zeros(shape)
    with torch._C._AutoDispatchBelowAutograd():
        result = torch_npu.npu_roi_alignbk(
            grad.to(torch.float32).contiguous(),
            rois.to(torch.float32).contiguous(),
            shape,
            pooled_width,
            pooled_height,
            spatial_scale,
            max(sampling_ratio, 0),
            _HALF_PIXEL if aligned else _BOXES_AS_THEY_ARE,
        )
    return result.to(grad.dtype)


def _check_rois(rois: Tensor) -> None:
    if rois.dim() != 2 or rois.size(1) != 5:
        raise RuntimeError(f"rois must have shape (N, 5), got {tuple(rois.shape)}")
