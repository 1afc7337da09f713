"""The keys that BlendMask adds to detectron2's configuration: those of AdelaiDet, whose files load unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ascendet_common.errors import RunError
from detectron2.config import CfgNode, get_cfg


class ConfigError(RunError):
    """A configuration that asks for something that is not done here."""

    default_name = "config-unsupported"


def add_blendmask_config(cfg: CfgNode) -> None:
    """Add the keys of FCOS, the bases and the blender to detectron2's defaults, in place.

    Names and defaults are AdelaiDet's, so that its files mean the same here.
    """
    cfg.MODEL.FCOS = CfgNode(
        {
            "NUM_CLASSES": 80,
            "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "FPN_STRIDES": [8, 16, 32, 64, 128],
            "TOP_LEVELS": 2,  # p6 and p7, made of the pyramid's last map
            "SIZES_OF_INTEREST": [
                64,
                128,
                256,
                512,
            ],  # px: where the boxes of one level end and the next one's begin
            "CENTER_SAMPLE": True,
            "POS_RADIUS": 1.5,  # strides
            "NORM": "GN",
            "NUM_CLS_CONVS": 4,
            "NUM_BOX_CONVS": 4,
            "NUM_SHARE_CONVS": 0,
            "USE_SCALE": True,
            "USE_RELU": True,
            "USE_DEFORMABLE": False,
            "PRIOR_PROB": 0.01,
            "BOX_QUALITY": "ctrness",
            "LOC_LOSS_TYPE": "giou",
            "LOSS_ALPHA": 0.25,
            "LOSS_GAMMA": 2.0,
            "THRESH_WITH_CTR": False,
            "INFERENCE_TH_TEST": 0.05,
            "NMS_TH": 0.6,
            "PRE_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TEST": 100,
        }
    )
    cfg.MODEL.BASIS_MODULE = CfgNode(
        {
            "NAME": "ProtoNet",
            "IN_FEATURES": ["p3", "p4", "p5"],
            "CONVS_DIM": 128,
            "NUM_CONVS": 3,
            "NUM_BASES": 4,
            "NORM": "SyncBN",
            "COMMON_STRIDE": 8,  # px: of the first map, and of the semantic targets
            "LOSS_ON": False,
            "LOSS_WEIGHT": 0.3,
            "NUM_CLASSES": 80,
        }
    )
    cfg.MODEL.BLENDMASK = CfgNode(
        {
            "ATTN_SIZE": 14,
            "TOP_INTERP": "bilinear",
            "BOTTOM_RESOLUTION": 56,
            "POOLER_TYPE": "ROIAlignV2",
            "POOLER_SAMPLING_RATIO": 1,
            "POOLER_SCALES": (0.25,),
            "INSTANCE_LOSS_WEIGHT": 1.0,
        }
    )
    # Ours. The schedule of SOLVER is one for a data set of so many images (COCO's with objects); see blendmask.recipe.
    cfg.RECIPE = CfgNode({"PICTURES": 117_266, "IMAGES_PER_DEVICE": 2})
    cfg.SOLVER.OPTIMIZER = "SGD"


def new() -> CfgNode:
    """Return detectron2's defaults with BlendMask's keys, for the CPU."""
    cfg = get_cfg()
    add_blendmask_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def load(file: str | Path) -> tuple[CfgNode, tuple[str, ...]]:
    """Read a file of ours or of AdelaiDet (YAML, with `_BASE_`).

    Returns
    -------
    cfg, unused
        The configuration; and the names of its keys that nothing here reads, such as those of AdelaiDet's other models.

    Raises
    ------
    ConfigError
        There is no such file, or it asks for something that is not done here; see `check`.
    """
    file = Path(file)
    if not file.is_file():
        raise ConfigError(f"there is no configuration {file}", name="config-missing")
    content = CfgNode.load_yaml_with_base(str(file), allow_unsafe=False)
    cfg = new()
    known = set(_names(cfg))
    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg(CfgNode(content))
    cfg.set_new_allowed(False)
    check(cfg)
    return cfg, tuple(name for name in _names(cfg) if name not in known)


def check(cfg: CfgNode) -> None:
    """Raise ConfigError where a configuration asks for what is not done here, and say what and why."""
    model, fcos, bases, blend = cfg.MODEL, cfg.MODEL.FCOS, cfg.MODEL.BASIS_MODULE, cfg.MODEL.BLENDMASK
    if model.META_ARCHITECTURE != "BlendMask":
        raise ConfigError("the model is not BlendMask", expected="BlendMask", found=model.META_ARCHITECTURE)
    if any(model.RESNETS.DEFORM_ON_PER_STAGE) or fcos.USE_DEFORMABLE:
        key = "FCOS.USE_DEFORMABLE" if fcos.USE_DEFORMABLE else "RESNETS.DEFORM_ON_PER_STAGE"
        raise ConfigError(
            "deformable convolutions (DCN) are not supported: detectron2 has them for CUDA only",
            expected=f"MODEL.{key} off",
            found="on",
        )
    if str(model.DEVICE).startswith("cuda"):
        raise ConfigError("there is no CUDA here", expected="MODEL.DEVICE npu or cpu", found=model.DEVICE)
    single = {
        "MODEL.FCOS.NORM": (fcos.NORM, ("GN", "none", "")),
        "MODEL.FCOS.USE_RELU": (fcos.USE_RELU, (True,)),
        "MODEL.FCOS.USE_SCALE": (fcos.USE_SCALE, (False,)),
        "MODEL.FCOS.THRESH_WITH_CTR": (fcos.THRESH_WITH_CTR, (True,)),
        "MODEL.FCOS.BOX_QUALITY": (fcos.BOX_QUALITY, ("ctrness",)),
        "MODEL.FCOS.LOC_LOSS_TYPE": (fcos.LOC_LOSS_TYPE, ("giou",)),
        "MODEL.BASIS_MODULE.NAME": (bases.NAME, ("ProtoNet",)),
        "MODEL.BASIS_MODULE.NORM": (bases.NORM, ("SyncBN", "BN")),
        "MODEL.BLENDMASK.TOP_INTERP": (blend.TOP_INTERP, ("bilinear",)),
        "MODEL.BLENDMASK.POOLER_TYPE": (blend.POOLER_TYPE, ("ROIAlignV2",)),
        "MODEL.PROPOSAL_GENERATOR.NAME": (model.PROPOSAL_GENERATOR.NAME, ("FCOS",)),
        "MODEL.BACKBONE.NAME": (model.BACKBONE.NAME, ("build_fcos_resnet_fpn_backbone",)),
        "MODEL.KEYPOINT_ON": (model.KEYPOINT_ON, (False,)),
        "MODEL.LOAD_PROPOSALS": (model.LOAD_PROPOSALS, (False,)),
        "INPUT.FORMAT": (cfg.INPUT.FORMAT, ("BGR",)),
        "SOLVER.OPTIMIZER": (cfg.SOLVER.OPTIMIZER, ("SGD", "AdamW")),
    }
    for name, (value, done) in single.items():
        if value not in done:
            raise ConfigError(
                f"{name} is not supported with this value",
                expected=" or ".join(repr(one) for one in done),
                found=repr(value),
            )
    levels = len(fcos.IN_FEATURES)
    if (len(fcos.FPN_STRIDES), len(fcos.SIZES_OF_INTEREST)) != (levels, levels - 1):
        raise ConfigError(
            "MODEL.FCOS states its levels differently",
            expected=f"{levels} FPN_STRIDES and {levels - 1} SIZES_OF_INTEREST for {levels} IN_FEATURES",
            found=f"{len(fcos.FPN_STRIDES)} and {len(fcos.SIZES_OF_INTEREST)}",
        )


def _names(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the full names of all keys that are no groups of keys."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
