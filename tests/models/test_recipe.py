"""ViTDet-B is the published recipe, and takes the published weights key by key."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import vitdet.register
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from vitdet.checkpoint import compare, load_pretrained, weights_of

CONFIG = Path(vitdet.__file__).parent / "configs" / "vitdet-b.py"
KEYS = Path(__file__).parents[1] / "fixtures" / "vitdet-b_state_dict.txt"


@pytest.fixture(scope="module")
def cfg():
    return Config.fromfile(CONFIG)


@pytest.fixture(scope="module")
def model(cfg):
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    return MODELS.build(cfg.model)


def test_the_recipe(cfg):
    """The figures of mmdetection's README of ViTDet and of the paper's appendix A.2."""
    backbone = cfg.model.backbone
    assert (backbone.img_size, backbone.patch_size, backbone.window_size) == (1024, 16, 14)
    assert (backbone.embed_dim, backbone.depth, backbone.num_heads, backbone.drop_path_rate) == (
        768,
        12,
        12,
        0.1,
    )
    assert set(range(12)) - set(backbone.window_block_indexes) == {2, 5, 8, 11}
    assert cfg.model.neck.norm_cfg.type == "LN2d"
    assert cfg.model.rpn_head.num_convs == 2
    assert cfg.model.roi_head.bbox_head.type == "Shared4Conv1FCBBoxHead"
    assert {cfg.model.roi_head[head].norm_cfg.type for head in ("bbox_head", "mask_head")} == {"LN2d"}
    steps = {step.type: step for step in cfg.train_pipeline}
    assert (steps["RandomFlip"].prob, tuple(steps["RandomResize"].ratio_range)) == (0.5, (0.1, 2.0))
    assert steps["RandomResize"].scale == steps["RandomCrop"].crop_size == steps["Pad"].size == (1024, 1024)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-4, 0.1)
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.7
    assert "clip_grad" not in cfg.optim_wrapper
    per_epoch = 118_000 / 64
    assert round(cfg.train_cfg.max_iters / per_epoch) == 100
    warm_up, drops = cfg.param_scheduler
    assert (warm_up.start_factor, warm_up.end) == (0.001, 250)
    assert [round(iteration / per_epoch, 1) for iteration in drops.milestones] == [88.9, 96.3]
    assert cfg.auto_scale_lr.base_batch_size == 64


def _constants(shapes):
    """A tensor per key, of one value that no other key has; in a file each takes the place of one number."""
    return OrderedDict(
        (key, torch.full((1,), (index + 1) / 256).expand(shape))
        for index, (key, shape) in enumerate(shapes.items())
    )


def _own_value(tensor, source):
    # Fitting a constant table to another size gives the constant, up to rounding.
    torch.testing.assert_close(tensor, source.flatten()[0].expand(tensor.shape), rtol=1e-5, atol=0)


def test_the_published_checkpoint_loads_key_by_key(model, tmp_path):
    """A file of the published one's layout: every key lands in its own place, none is missing, none is left."""
    shapes = {}
    for line in KEYS.read_text().splitlines():
        if not line.startswith("#"):
            key, shape = line.split(" ", 1)
            shapes[key] = [int(size) for size in re.findall(r"\d+", shape)]
    weights = _constants(shapes)
    torch.save({"meta": {"iter": 184375}, "state_dict": weights}, tmp_path / "vitdet.pth")
    found = weights_of(CheckpointLoader.load_checkpoint(str(tmp_path / "vitdet.pth"), "cpu"))
    report = compare(model, found)
    assert report.complete, str(report)
    assert report.matched == len(weights) == 245
    result = model.load_state_dict(found)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    own = model.state_dict()
    assert own["backbone.pos_embed"].shape == (1, 64 * 64, 768)
    for key, source in weights.items():
        _own_value(own[key], source)


def test_mae_s_checkpoint_loads_key_by_key(model, tmp_path):
    """A file of the layout that MAE's authors published: 12 blocks, and what only pre-training needs."""
    shapes = {"cls_token": (1, 1, 768), "pos_embed": (1, 197, 768)}
    shapes |= {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    layers = {"norm1": (768,), "attn.qkv": (2304, 768), "attn.proj": (768, 768), "norm2": (768,)}
    layers |= {"mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
    for block in range(12):
        for layer, shape in layers.items():
            name = f"blocks.{block}.{layer}"
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {"norm.weight": (768,), "norm.bias": (768,)}
    weights = _constants(shapes)
    torch.save({"model": weights}, tmp_path / "mae.pth")
    report = load_pretrained(model.backbone, str(tmp_path / "mae.pth"))
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert report.matched == len(weights) - 3 == 147
    assert report.ignored == ("cls_token", "norm.weight", "norm.bias")
    assert len(report.initialised) == 24  # the relative positions of 12 blocks
    own = model.backbone.state_dict()
    for key in weights.keys() - set(report.ignored):
        _own_value(own[key], weights[key])
