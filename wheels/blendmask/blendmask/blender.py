"""The blender: a mask is the sum of the bases, each weighted by its own attention (arXiv 2001.00309, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor
from torchvision.ops import roi_align


class Blender:
    """Blend bases into masks of one size, inside boxes.

    Parameters
    ----------
    cfg
        `MODEL.BLENDMASK` and `MODEL.BASIS_MODULE.NUM_BASES` say all of it.
    """

    def __init__(self, cfg: CfgNode) -> None:
        blend = cfg.MODEL.BLENDMASK
        self.bases = cfg.MODEL.BASIS_MODULE.NUM_BASES
        self.attention_size, self.size = blend.ATTN_SIZE, blend.BOTTOM_RESOLUTION
        (self.scale,) = blend.POOLER_SCALES
        self.sampling = blend.POOLER_SAMPLING_RATIO
        self.channels = self.bases * self.attention_size**2

    def pool(self, bases: Tensor, regions: Tensor) -> Tensor:
        """Cut bases (n, bases, h, w) out at regions (k, 5): image, x0 y0 x1 y1 in px; (k, bases, size, size)."""
        return roi_align(bases.float(), regions, self.size, self.scale, self.sampling, aligned=True)

    def blend(self, pooled: Tensor, attention: Tensor) -> Tensor:
        """Return logits (k, size, size) of pooled bases and attention (k, `channels`)."""
        side = self.attention_size
        weights = F.interpolate(
            attention.float().view(-1, self.bases, side, side),
            (self.size, self.size),
            mode="bilinear",
            align_corners=False,
        ).softmax(dim=1)
        return (pooled * weights).sum(dim=1)
