"""BlendMask for detectron2 0.6: importing this package registers the model, its FCOS and its backbone.

Written from the papers: BlendMask (arXiv 2001.00309), FCOS (1904.01355, 2006.09214). Names of the configuration and of
the state dict are AdelaiDet's, so its files and published checkpoints load.
"""

from blendmask.backbone import build_fcos_resnet_fpn_backbone
from blendmask.config import add_blendmask_config
from blendmask.fcos import FCOS
from blendmask.model import BlendMask

__all__ = ["FCOS", "BlendMask", "add_blendmask_config", "build_fcos_resnet_fpn_backbone"]
