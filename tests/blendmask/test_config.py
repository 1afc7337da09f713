"""Users' configurations load unchanged; what is not done here is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from blendmask.config import ConfigError, backbone_file, load
from blendmask.model import BlendMask

# What AdelaiDet's users write, key by key.
BASE = """
MODEL:
  META_ARCHITECTURE: "BlendMask"
  MASK_ON: True
  BACKBONE: {NAME: "build_fcos_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res3", "res4", "res5"]}
  PROPOSAL_GENERATOR: {NAME: "FCOS"}
  BASIS_MODULE: {LOSS_ON: True}
  PANOPTIC_FPN: {COMBINE: {ENABLED: False}}
  FCOS: {THRESH_WITH_CTR: True, USE_SCALE: False}
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.01
  STEPS: (60000, 80000)
  MAX_ITER: 90000
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
"""
OF_550 = """
_BASE_: "base.yaml"
INPUT:
  MIN_SIZE_TRAIN: (256, 608)
  MIN_SIZE_TRAIN_SAMPLING: "range"
  MAX_SIZE_TRAIN: 900
  MIN_SIZE_TEST: 550
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  RESNETS: {DEPTH: 50}
  BASIS_MODULE: {NUM_CONVS: 2, ANN_SET: "coco"}
  FCOS:
    TOP_LEVELS: 1
    IN_FEATURES: ["p3", "p4", "p5", "p6"]
    FPN_STRIDES: [8, 16, 32, 64]
    SIZES_OF_INTEREST: [64, 128, 256]
    NUM_SHARE_CONVS: 3
    NUM_CLS_CONVS: 0
    NUM_BOX_CONVS: 0
SOLVER:
  STEPS: (300000, 340000)
  MAX_ITER: 360000
OUTPUT_DIR: "output/blendmask/550_R_50_3x"
"""


def write(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text(BASE)
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(("depth", "end"), [(50, 90000), (50, 270000), (101, 270000)])
def test_the_published_variants_load(tmp_path: Path, depth: int, end: int) -> None:
    text = f'_BASE_: "base.yaml"\nMODEL: {{RESNETS: {{DEPTH: {depth}}}}}\nSOLVER: {{MAX_ITER: {end}}}\n'
    cfg, others = load(write(tmp_path, text))
    assert (depth, end) == (cfg.MODEL.RESNETS.DEPTH, cfg.SOLVER.MAX_ITER)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert others == ()


def test_the_smaller_variant_loads_and_builds(tmp_path: Path) -> None:
    """Three shared convolutions and no towers, one level less, and a key of the original that nothing here reads."""
    cfg, others = load(write(tmp_path, OF_550))
    assert others == ()
    assert backbone_file(cfg) == "R-50.pkl"
    names = BlendMask(cfg).state_dict().keys()
    assert {"proposal_generator.fcos_head.share_tower.6.weight", "basis_module.tower.3.0.weight"} <= names
    assert not [name for name in names if "cls_tower" in name or "bbox_tower" in name or "p7" in name]


def test_keys_of_other_models_load(tmp_path: Path) -> None:
    text = (
        '_BASE_: "base.yaml"\nMODEL: {CONDINST: {MASK_OUT_STRIDE: 4}, TOP_MODULE: {NAME: "conv", DIM: 16}}\n'
    )
    _, others = load(write(tmp_path, text))
    assert others == ("MODEL.CONDINST.MASK_OUT_STRIDE", "MODEL.TOP_MODULE.NAME", "MODEL.TOP_MODULE.DIM")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("RESNETS: {DEFORM_ON_PER_STAGE: [False, True, True, True]}", "deformable convolutions"),
        ("FCOS: {USE_DEFORMABLE: True}", "deformable convolutions"),
        ('DEVICE: "cuda"', "no CUDA here"),
        ('META_ARCHITECTURE: "CondInst"', "not BlendMask"),
        ('FCOS: {NORM: "SyncBN"}', "MODEL.FCOS.NORM"),
        ("FCOS: {USE_SCALE: True}", "MODEL.FCOS.USE_SCALE"),
        ("FCOS: {YIELD_PROPOSAL: True}", "MODEL.FCOS.YIELD_PROPOSAL"),
        ("FCOS: {FPN_STRIDES: [8, 16]}", "levels"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(write(tmp_path, f'_BASE_: "base.yaml"\nMODEL: {{{change}}}\n'))
    assert caught.value.name == "config-unsupported"
    assert caught.value.expected
    assert caught.value.found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MODEL: {FCOS: {NMS_TRESH: 0.6}}", "MODEL.FCOS.NMS_TH, perhaps"),
        ("SOLVER: {BASE_LRATE: 0.1}", "SOLVER.BASE_LR, perhaps"),
        ("LEARNING: 0.1", "a key of detectron2 or of BlendMask"),
    ],
)
def test_a_key_that_nothing_knows_is_refused_with_the_nearest_one(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match="nothing knows the key") as caught:
        load(write(tmp_path, f'_BASE_: "base.yaml"\n{text}\n'))
    assert (caught.value.name, caught.value.expected) == ("config-invalid", expected)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('_BASE_: "none.yaml"', "config-missing"),
        ('_BASE_: "mine.yaml"', "config-invalid"),
        ("MODEL: {RESNETS: {DEPTH: fifty}}", "config-invalid"),
        ("MODEL: [1", "config-invalid"),
        ("MODEL: 1", "config-invalid"),
        ("", "config-invalid"),
        ("- 1", "config-invalid"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text))
    assert caught.value.name == name
    with pytest.raises(ConfigError, match="there is no configuration"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("R-101.pkl", "R-101.pkl"),
        ("https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl", "R-50.pkl"),
        ("", ""),
        ("detectron2://ImageNetPretrained/torchvision/R-50.pkl", None),  # other weights of the same name
        ("/data/R-50.pkl", None),
        ("../R-50.pkl", None),
    ],
)
def test_weights_are_files_of_the_folder_of_weights(tmp_path: Path, weights: str, name: str | None) -> None:
    cfg, _ = load(write(tmp_path, f'_BASE_: "base.yaml"\nMODEL: {{WEIGHTS: "{weights}"}}\n'))
    if name is not None:
        assert backbone_file(cfg) == name
        return
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS") as caught:
        backbone_file(cfg)
    assert caught.value.found == weights


def test_what_a_configuration_dumps_loads_as_the_same(tmp_path: Path) -> None:
    cfg, _ = load(write(tmp_path, OF_550))
    again, others = load(write(tmp_path, cfg.dump()))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert others == ()


def test_a_configuration_runs_nothing(tmp_path: Path) -> None:
    """YAML can ask for Python; detectron2's own loader would do it."""
    mark = tmp_path / "ran"
    text = f'_BASE_: "base.yaml"\nOUTPUT_DIR: !!python/object/apply:os.mkdir ["{mark}"]\n'
    with pytest.raises(ConfigError, match="cannot be read"):
        load(write(tmp_path, text))
    assert not mark.exists()
