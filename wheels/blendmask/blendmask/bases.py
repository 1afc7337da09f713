"""The bases: a few maps per image of which every mask is a blend (BlendMask, arXiv 2001.00309, section 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from blendmask.norm import NORMS


def _block(channels: int, width: int, norm: type[nn.BatchNorm2d]) -> list[nn.Module]:
    """Convolution 3x3, normalisation, ReLU."""
    return [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(inplace=True),
    ]


class ProtoNet(nn.Module):
    """Make bases of the pyramid's finest maps, at half the stride of the finest one.

    Parameters
    ----------
    cfg
        `MODEL.BASIS_MODULE` says all of it.
    shapes
        The pyramid's, by name.
    """

    def __init__(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        cfg = cfg.MODEL.BASIS_MODULE
        norm, width = NORMS[cfg.NORM], cfg.CONVS_DIM
        self.in_features = list(cfg.IN_FEATURES)
        channels = [shapes[name].channels for name in self.in_features]
        self.refine = nn.ModuleList(nn.Sequential(*_block(one, width, norm)) for one in channels)
        self.tower = nn.Sequential(
            *(nn.Sequential(*_block(width, width, norm)) for _ in range(cfg.NUM_CONVS)),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Sequential(*_block(width, width, norm)),
            nn.Conv2d(width, cfg.NUM_BASES, 1),
        )
        self.seg_head = (
            nn.Sequential(
                *_block(channels[0], width, norm),
                *_block(width, width, norm),
                nn.Conv2d(width, cfg.NUM_CLASSES + 1, 1),
            )
            if cfg.LOSS_ON
            else None
        )
        self.loss_weight = cfg.LOSS_WEIGHT
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Return the bases (n, bases, 2 h, 2 w) for a first map of (n, channels, h, w)."""
        maps = [refine(features[name]) for refine, name in zip(self.refine, self.in_features, strict=True)]
        size = maps[0].shape[-2:]
        total = maps[0]
        for coarse in maps[1:]:
            total = total + F.interpolate(coarse, size, mode="bilinear", align_corners=False)
        bases: Tensor = self.tower(total)
        return bases

    def losses(self, features: dict[str, Tensor], classes: Tensor) -> dict[str, Tensor]:
        """Return `loss_basis_sem`, which keeps the finest map aware of what is where.

        Parameters
        ----------
        features
            The pyramid.
        classes
            (n, h, w) integers at the first map's size: class + 1 where an object is, 0 elsewhere.
        """
        assert self.seg_head is not None
        logits = self.seg_head(features[self.in_features[0]]).float()
        return {"loss_basis_sem": F.cross_entropy(logits, classes.long()) * self.loss_weight}
