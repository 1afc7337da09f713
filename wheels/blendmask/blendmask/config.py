"""The keys that BlendMask adds to detectron2's configuration: those of AdelaiDet, whose files load unchanged."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ascendet_common.errors import RunError
from detectron2.config import CfgNode, get_cfg


class ConfigError(RunError):
    """A configuration that asks for something that is not done here."""

    default_name = "config-unsupported"


# AdelaiDet's keys in groups that are read here, and the values that they may have: they change nothing. None: any.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "INPUT.CROP.CROP_INSTANCE": (True,),
    "INPUT.HFLIP_TRAIN": (True,),
    "INPUT.IS_ROTATE": (False,),
    "MODEL.BACKBONE.ANTI_ALIAS": (False,),
    "MODEL.BASIS_MODULE.ANN_SET": None,  # which files hold the semantic targets; ours are made of the instances
    "MODEL.BLENDMASK.VISUALIZE": None,
    "MODEL.FCOS.INFERENCE_TH_TRAIN": None,  # these three are of proposals, which YIELD_PROPOSAL asks for
    "MODEL.FCOS.POST_NMS_TOPK_TRAIN": None,
    "MODEL.FCOS.PRE_NMS_TOPK_TRAIN": None,
    "MODEL.FCOS.LOSS_NORMALIZER_CLS": ("fg",),
    "MODEL.FCOS.LOSS_WEIGHT_CLS": (1.0,),
    "MODEL.FCOS.YIELD_BOX_FEATURES": (False,),
    "MODEL.FCOS.YIELD_PROPOSAL": (False,),
    "MODEL.RESNETS.DEFORM_INTERVAL": None,  # of deformable convolutions, which are refused
}
# Where detectron2's model zoo has the backbones of `make weights`.
_ZOO = (
    "detectron2://ImageNetPretrained/MSRA/",
    "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/",
)


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
        There is no such file, it cannot be read, or it asks for something that is not done here; see `check`.
    """
    file = Path(file)
    if not file.is_file():
        raise ConfigError(f"there is no configuration {file}", name="config-missing")
    cfg = new()
    known = dict(_items(cfg))
    cfg.set_new_allowed(True)
    try:
        cfg.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(str(file), allow_unsafe=False)))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file} is based on a file that is not there", name="config-missing", found=str(error)
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{file} is based on itself", name="config-invalid") from error
    except (yaml.YAMLError, AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read", name="config-invalid", found=" ".join(str(error).split())
        ) from error
    cfg.set_new_allowed(False)
    others = tuple(
        name for name, value in _items(cfg) if name not in known and not _has_no_effect(name, value, known)
    )
    check(cfg)
    return cfg, others


def _has_no_effect(name: str, value: Any, known: Mapping[str, Any]) -> bool:
    """Return whether a key that is not `known` changes nothing here; False where it is one of another model's.

    Raises
    ------
    ConfigError
        It is in a group that this model reads and means nothing there, or has an effect that is not done here.
    """
    if name in _WITHOUT_EFFECT:
        allowed = _WITHOUT_EFFECT[name]
        if allowed is not None and value not in allowed:
            raise _not_done(name, value, allowed)
        return True
    # AdelaiDet's other models have groups of their own, such as MODEL.CONDINST.
    model, _, rest = name.partition(".")
    if (
        model == "MODEL"
        and "." in rest
        and not any(one.startswith(f"MODEL.{rest.split('.')[0]}.") for one in known)
    ):
        return False
    near = difflib.get_close_matches(name, [*known, *_WITHOUT_EFFECT], n=1)
    raise ConfigError(
        f"nothing knows the key {name}",
        name="config-invalid",
        expected=f"{near[0]}, perhaps" if near else "a key of detectron2 or of BlendMask",
        found=f"{name}: {value!r}",
    )


def _not_done(name: str, value: Any, done: tuple[Any, ...]) -> ConfigError:
    return ConfigError(
        f"{name} is not supported with this value",
        expected=" or ".join(repr(one) for one in done),
        found=repr(value),
    )


def backbone_file(cfg: CfgNode) -> str:
    """Return the name of the file in the folder of weights that MODEL.WEIGHTS means, "" for none.

    Raises
    ------
    ConfigError
        It is at an address that `make weights` does not know, or in a folder.
    """
    name = str(cfg.MODEL.WEIGHTS)
    for zoo in _ZOO:
        name = name.removeprefix(zoo)
    if "/" in name:
        raise ConfigError(
            "MODEL.WEIGHTS is not a file of the folder of weights",
            expected=f"R-50.pkl or R-101.pkl (or {_ZOO[0]}…), a backbone; or nothing, and CHECKPOINT=<file>",
            found=cfg.MODEL.WEIGHTS,
        )
    return name


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
            raise _not_done(name, value, done)
    levels = len(fcos.IN_FEATURES)
    if (len(fcos.FPN_STRIDES), len(fcos.SIZES_OF_INTEREST)) != (levels, levels - 1):
        raise ConfigError(
            "MODEL.FCOS states its levels differently",
            expected=f"{levels} FPN_STRIDES and {levels - 1} SIZES_OF_INTEREST for {levels} IN_FEATURES",
            found=f"{len(fcos.FPN_STRIDES)} and {len(fcos.SIZES_OF_INTEREST)}",
        )


def _items(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full names and the values of all keys that are no groups of keys."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
