"""BlendMask for detectron2 0.6: importing `blendmask.model` registers the model, its FCOS and its backbone.

Written from the papers: BlendMask (arXiv 2001.00309), FCOS (1904.01355, 2006.09214). Names of the configuration and of
the state dict are AdelaiDet's, so its files and published checkpoints load.

The names of this package load when they are first used: `blendmask.om` runs where there is neither torch nor
detectron2.
"""

import importlib
from typing import Any

_HOME = {
    "FCOS": "blendmask.fcos",
    "BlendMask": "blendmask.model",
    "add_blendmask_config": "blendmask.config",
    "build_fcos_resnet_fpn_backbone": "blendmask.backbone",
}
__all__ = ["FCOS", "BlendMask", "add_blendmask_config", "build_fcos_resnet_fpn_backbone"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
