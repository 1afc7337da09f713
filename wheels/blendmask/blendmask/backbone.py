"""detectron2's ResNet with the pyramid of FCOS: p6 and p7 are made of the pyramid's last map, not of the backbone's."""

from __future__ import annotations

import math

import fvcore.nn.weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from torch import Tensor, nn


class TopLevels(nn.Module):
    """One or two coarser maps: p6 of the last one, p7 of p6; each a 3x3 convolution of stride 2.

    Parameters
    ----------
    channels
        Of all maps.
    levels
        1 or 2.
    in_feature
        The name of the pyramid's last map.
    """

    def __init__(self, channels: int, levels: int, in_feature: str) -> None:
        super().__init__()
        self.num_levels, self.in_feature = levels, in_feature  # detectron2's FPN reads both
        for name in ("p6", "p7")[:levels]:
            convolution = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            fvcore.nn.weight_init.c2_xavier_fill(convolution)
            self.add_module(name, convolution)

    def forward(self, last: Tensor) -> list[Tensor]:
        """Map (n, channels, h, w) to maps of half and a quarter of its size, rounded up."""
        p6 = self.p6(last)
        return [p6, self.p7(F.relu(p6))] if self.num_levels == 2 else [p6]


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Return the ResNet of `MODEL.RESNETS` with an FPN on `MODEL.FPN.IN_FEATURES` and `MODEL.FCOS.TOP_LEVELS` more."""
    bottom_up = build_resnet_backbone(cfg, input_shape)
    channels, levels = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FCOS.TOP_LEVELS
    stride = bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=TopLevels(channels, levels, f"p{int(math.log2(stride))}") if levels else None,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
