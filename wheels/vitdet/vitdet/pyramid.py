"""ViTDet's simple feature pyramid (arXiv 2203.16527, section 3) and the layer norm of its convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class LN2d(nn.Module):
    """Layer norm over the channels of (batch, channels, height, width), separately for each pixel.

    It is not a subclass of `nn.LayerNorm`, because mmcv derives a norm's attribute name from its base class. The name
    is part of the state dict's keys, and the published checkpoints were written by a plain module.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, (batch, channels, height, width) like the input."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """A pyramid of 1/4, 1/2, 1, 2 and 4 times the backbone's stride, made from its last map alone.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the backbone's map and of every level.
    norm_cfg
        Norm of the convolutions, `dict(type="LN2d")` in the published models.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict[str, str]) -> None:
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
            build_norm_layer(norm_cfg, half)[1],
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2))
        self.fpn3 = nn.Identity()
        self.fpn4 = nn.MaxPool2d(kernel_size=2, stride=2)
        widths = (quarter, half, in_channels, in_channels)
        self.lateral_convs = nn.ModuleList(
            ConvModule(width, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for width in widths
        )
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None)
            for _ in widths
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return five maps of `out_channels`, the finest first, from a map (batch, in_channels, h, w)."""
        scales = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        # Contiguous, because mmcv's RoIAlign ignores its input's strides.
        levels = [
            smooth(lateral(scale(x))).contiguous()
            for scale, lateral, smooth in zip(scales, self.lateral_convs, self.fpn_convs, strict=True)
        ]
        # Every second pixel, for region proposals of the largest objects.
        levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return tuple(levels)
