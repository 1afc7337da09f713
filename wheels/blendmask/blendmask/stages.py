"""BlendMask as two stages of static shapes that ATC can convert: the detector, and the blender of the boxes found.

The modules compute what `BlendMask.detect` computes, with its layers and in its order. What depends on the picture, the
choice of boxes, is between them, on the host (`blendmask.om`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blendmask.fcos import matrix_of, rows_of, windows_at
from blendmask.model import BlendMask


class Detector(nn.Module):
    """From pictures to scores and boxes of all locations, the bases, and what attention is made of.

    Parameters
    ----------
    model
        Ready for use.
    everywhere
        Whether the attention of all locations is computed here. Otherwise the features are given that `Blend` computes
        it of at the boxes: with 256 channels and 784 values a third of the detector's multiplications is saved.
    """

    def __init__(self, model: BlendMask, *, everywhere: bool) -> None:
        super().__init__()
        self.model, self.everywhere = model, everywhere

    def forward(self, pictures: Tensor, *valid: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Parameters
        ----------
        pictures
            (n, 3, height, width) float32, normalised.
        valid
            Nothing; or (n, 1, height, 1) and (n, 1, 1, width), 1 where a picture is, 0 in the padding, which AIPP
            normalises as well and which must be 0.

        Returns
        -------
        Per level (n, classes, h, w): probabilities of the classes times centreness. Per level (n, 4, h, w): distances
        to the left, top, right and bottom, px. Bases (n, bases, H, W). Rows of locations: of attention
        (n * count, `Blender.channels`), or of features (n * (count + 1), channels) with one of zeros after each
        picture's.
        """
        for one in valid:
            pictures = pictures * one
        features = self.model.backbone(pictures)
        fcos = self.model.proposal_generator
        head = fcos.fcos_head
        of_classes, of_boxes = head.towers([features[name] for name in fcos.in_features])
        scores = [
            head.cls_logits(classes).float().sigmoid() * head.ctrness(boxes).float().sigmoid()
            for classes, boxes in zip(of_classes, of_boxes, strict=True)
        ]
        sides = [
            head.bbox_pred(boxes).float().relu() * stride
            for boxes, stride in zip(of_boxes, fcos.strides, strict=True)
        ]
        if self.everywhere:
            attention = [self.model.top_layer(boxes).flatten(2).transpose(1, 2) for boxes in of_boxes]
            rows = torch.cat(attention, dim=1).flatten(0, 1)
        else:
            rows = rows_of(of_boxes)
        return *scores, *sides, self.model.basis_module(features), rows


class Blend(nn.Module):
    """From boxes to their masks.

    Parameters
    ----------
    model
        Ready for use.
    batch
        The number of pictures; each has `model.proposal_generator.slots` boxes.
    everywhere
        As in `Detector`.
    """

    def __init__(self, model: BlendMask, batch: int, *, everywhere: bool) -> None:
        super().__init__()
        self.model, self.everywhere = model, everywhere
        # Constants, so that numbers of pictures never become float16.
        slots = model.proposal_generator.slots
        self.register_buffer("pictures", torch.arange(batch).repeat_interleave(slots), persistent=False)

    def forward(self, bases: Tensor, rows: Tensor, boxes: Tensor, indices: Tensor) -> Tensor:
        """Return the masks (n * slots, side, side), probabilities.

        Parameters
        ----------
        bases, rows
            Of the `Detector`.
        boxes
            (n * slots, 4) float32: x0 y0 x1 y1, px.
        indices
            int32: the places of `rows` that boxes have their attention at, (n * slots,); or the nine places around
            each, (n * slots * 9,).
        """
        blender = self.model.blender
        if self.everywhere:
            attention = rows.index_select(0, indices)
        else:
            attention = F.linear(windows_at(rows, indices), *matrix_of([self.model.top_layer]))
        pooled = CutOut.apply(bases, boxes, self.pictures, blender)
        return blender.blend(pooled, attention).sigmoid()


class CutOut(torch.autograd.Function):
    """`Blender.pool` as the one operator RoiAlign, its pictures' numbers a constant."""

    @staticmethod
    def forward(_: Any, bases: Tensor, boxes: Tensor, pictures: Tensor, blender: Any) -> Tensor:
        """Cut bases (n, bases, h, w) out at boxes (k, 4) of pictures (k,): (k, bases, side, side)."""
        regions = torch.cat([pictures[:, None].to(boxes.dtype), boxes], dim=1)
        pooled: Tensor = blender.pool(bases, regions)
        return pooled

    @staticmethod
    def symbolic(g: Any, bases: Any, boxes: Any, pictures: Any, blender: Any) -> Any:
        """Write ONNX's RoiAlign, which since opset 16 can shift by half a pixel, as `aligned=True` does."""
        return g.op(
            "RoiAlign",
            bases,
            boxes,
            pictures,
            coordinate_transformation_mode_s="half_pixel",
            mode_s="avg",
            output_height_i=blender.size,
            output_width_i=blender.size,
            sampling_ratio_i=blender.sampling,
            spatial_scale_f=blender.scale,
        )
