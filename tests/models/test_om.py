"""ViTDet as stages: the modules are the model, the graphs are the modules, and the host's steps give what mmdet gives.

Weights are random and small, so that scores are close to each other and every picture has as many detections as fit.
"""

import copy
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import torchvision
import vitdet
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.images import ImageError
from ascendet_common.watch import Watch
from mmcv.ops import nms
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from staged_om import exporting, onnx_runner
from staged_om.host import Batch
from staged_om.meta import META, Meta
from staged_om.nms import suppress
from staged_om.onnx_runner import Runner, onnx_stages, torch_stages
from staged_om.rle import encode
from torch import nn
from vitdet import export, om, stages
from vitdet.data import set_classes
from vitdet.infer import Trained
from vitdet.stages import Options

CONFIGS = Path(vitdet.__file__).parent / "configs"
CLASSES = ("triangle", "rectangle", "star")
SIZE = (128, 128)


def _config(*, by_class=False):
    """vitdet-tiny; or with boxes and masks by class, and pictures padded before they are normalised, as vitdet-b."""
    cfg = Config.fromfile(CONFIGS / "vitdet-tiny.py")
    cfg.data_root = "no/such/folder"
    if by_class:
        cfg.model.roi_head.bbox_head.reg_class_agnostic = False
        cfg.model.roi_head.mask_head.class_agnostic = False
        cfg.test_pipeline.insert(3, dict(type="Pad", size=SIZE[::-1], pad_val=dict(img=(114, 110, 90))))
    set_classes(cfg, CLASSES)
    return cfg


def _model(cfg):
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    def make(cfg):
        file = tmp_path_factory.mktemp("checkpoint") / "random.pth"
        meta = {"dataset_meta": {"classes": CLASSES}}
        torch.save({"state_dict": _model(cfg).state_dict(), "meta": meta}, file)
        return str(file)

    return make


def _export(cfg, file, folder, *, opset="auto", aipp=False, **options):
    classes, ids = export.classes_and_ids(cfg, file)
    model = export.load_model(cfg, file, classes)
    options = Options(**{"size": SIZE} | options)
    return export.export(cfg, model, options, folder, file, classes, ids, opset=opset, aipp=aipp)


@pytest.fixture(scope="module", params=[False, True], ids=["agnostic", "by class"])
def exported(request, checkpoint, tmp_path_factory):
    """The configuration, its checkpoint, the export's folder and meta; the second one for batches of two."""
    cfg = _config(by_class=request.param)
    file, folder = checkpoint(cfg), tmp_path_factory.mktemp("om")
    meta = _export(copy.deepcopy(cfg), file, folder, batch=2 if request.param else 1)
    return cfg, file, folder, meta


# --- the graphs ----------------------------------------------------------------------------------------------


def test_the_graphs_are_what_atc_takes(exported):
    _, _, folder, meta = exported
    assert Meta.read(folder) == meta
    assert [stage.name for stage in meta.stages] == ["backbone", "rpn", "roi", "mask"]
    earlier = {om.PICTURE, om.ROIS, om.BOXES, om.ROWS}
    for stage in meta.stages:
        model = onnx.load(folder / stage.file)
        onnx.checker.check_model(model, full_check=True)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 17)]
        kinds = Counter(node.op_type for node in model.graph.node)
        assert not kinds.keys() & {
            "Einsum",
            "NonZero",
            "Loop",
            "If",
            "Shape",
            "Resize",
            "ConvTranspose",
            "Constant",
        }
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert set(stage.keep_fp32) <= set(names)
        assert all(size > 0 for port in (*stage.inputs, *stage.outputs) for size in port.shape)
        assert {port.name for port in stage.inputs} <= earlier
        earlier |= {port.name for port in stage.outputs}
        if stage.name == "backbone":
            assert kinds["LayerNormalization"] == 17
            assert kinds["Softmax"] == 4
            assert any("blocks.3/attn" in name for name in names)
        if stage.name in ("roi", "mask"):
            assert kinds["RoiAlign"] == 4
            assert sum("RoiAlign" in name for name in stage.keep_fp32) == 4
            assert any("/levels/" in name for name in stage.keep_fp32)


def test_every_difference_is_written_down(exported):
    _, _, folder, meta = exported
    checks = json.loads((folder / exporting.CHECK).read_text())
    assert checks.keys() == {stage.name for stage in meta.stages}
    for stage in meta.stages:
        check = checks[stage.name]
        assert check["compared"]
        for rows in (check["outputs"], check["model"]):
            assert rows.keys() == {port.name for port in stage.outputs}
            assert all(0 <= row["difference"] <= 1e-4 * row["largest"] for row in rows.values())


def test_two_exports_have_one_id(exported, tmp_path):
    cfg, file, _, meta = exported
    again = _export(copy.deepcopy(cfg), file, tmp_path, batch=meta.batch)
    assert again.export_id == meta.export_id


@torch.no_grad()
@pytest.mark.parametrize("left_out", [*stages.REWRITES, "all"])
def test_a_stage_is_the_model_with_and_without_each_rewrite(left_out):
    cfg = _config(by_class=True)
    model = _model(cfg)
    without = tuple(stages.REWRITES) if left_out == "all" else (left_out,)
    made = export.Exported(cfg, model, Options(size=SIZE, batch=2, without=without))
    picture, rois = made.picture(), made.rois(150)
    rows = made._rows(len(rois))
    expected = made._model_outputs(picture, rois, rois, rows)
    assert len({level.shape[-1] for level in model.extract_feat(picture)}) == 5
    modules = made.modules()
    maps = modules["backbone"](picture)
    values = {
        "backbone": maps,
        "rpn": modules["rpn"](*maps),
        "roi": modules["roi"](*maps[:4], rois),
        "mask": (modules["mask"](*maps[:4], rois, rows[om.ROWS]),),
    }
    for name, tensors in values.items():
        for one, other in zip(expected[name].values(), tensors, strict=True):
            assert np.abs(one - other.numpy()).max() <= 1e-5 * np.abs(one).max()
            if left_out == "all" and name == "rpn":
                continue
    kinds = {type(module) for module in nn.ModuleList(modules.values()).modules()}
    assert (nn.ConvTranspose2d in {base for kind in kinds for base in kind.__mro__}) == (
        left_out in ("conv-transpose", "all")
    )
    assert (stages.DecomposedNorm in kinds) == (left_out in ("layer-norm", "all"))
    assert (stages.StaticAttention in kinds) == (left_out not in ("attention", "all"))


@torch.no_grad()
def test_without_rewrites_that_reorder_sums_a_stage_is_the_model_to_the_bit():
    cfg = _config()
    model = _model(cfg)
    made = export.Exported(
        cfg, model, Options(size=SIZE, without=("attention", "conv-transpose", "level-roots"))
    )
    picture, rois = made.picture(), made.rois(200)
    model.backbone.blocks.apply(_plain)
    expected = made._model_outputs(picture, rois, rois, {})
    modules = made.modules()
    maps = modules["backbone"](picture)
    assert all(np.array_equal(a, b) for a, b in zip(expected["backbone"].values(), maps, strict=True))
    for name, tensors in {
        "rpn": modules["rpn"](*maps),
        "roi": modules["roi"](*maps[:4], rois),
        "mask": [modules["mask"](*maps[:4], rois)],
    }.items():
        assert all(np.array_equal(a, b) for a, b in zip(expected[name].values(), tensors, strict=True)), name


def _plain(module):
    if hasattr(module, "formulation"):
        module.formulation = "plain"


def test_levels_are_mmdet_s_also_at_their_borders():
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    theirs = SingleRoIExtractor(
        roi_layer=dict(type="RoIAlign", output_size=7), out_channels=8, featmap_strides=[4, 8, 16, 32]
    )
    sides = torch.tensor([0.0, 1, 55.9, 56, 111.9, 112, 112.1, 223.9, 224, 447.9, 448, 448.1, 900, 1024])
    boxes = torch.cartesian_prod(sides, sides)
    boxes = torch.cat([torch.full_like(boxes, 0), boxes], dim=1)
    expected = theirs.map_roi_levels(torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1), 4)
    for roots in (False, True):
        masks = torch.cat(stages.Levels(56, 4, roots=roots)(boxes), dim=1)
        assert torch.equal(masks.sum(1), torch.ones(len(boxes)))
        assert torch.equal(masks.argmax(1), expected)
    assert set(expected.tolist()) == {0, 1, 2, 3}
    half = torch.cat(stages.Levels(56, 4, roots=True)(boxes.half()), dim=1)
    assert (half.argmax(1) == expected).float().mean() > 0.9  # above 65,504 px², too: float16 has steps there
    broken = torch.cat(stages.Levels(56, 4, roots=False)(boxes.half()), dim=1)
    of_256 = (boxes[:, 2] == 447.9) & (boxes[:, 3] == 224)
    assert broken[of_256].argmax(1).item() == 3 != expected[of_256].item()


@pytest.mark.parametrize(
    ("variant", "node", "nodes", "opsets"),
    [
        ("roi-extractor", "RoiExtractor", {"roi": 1, "mask": 1}, (17, 17, 16, 16)),
        ("flash-attention", "NPUFlashAttention", {"backbone": 2}, (17, 17, 17, 17)),
    ],
)
def test_atc_s_own_operators_are_in_the_standard_domain(checkpoint, tmp_path, variant, node, nodes, opsets):
    cfg = _config()
    meta = _export(cfg, checkpoint(cfg), tmp_path, variants=(variant,))
    assert tuple(stage.opset for stage in meta.stages) == opsets
    checks = json.loads((tmp_path / exporting.CHECK).read_text())
    for stage in meta.stages:
        model = onnx.load(tmp_path / stage.file)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", stage.opset)]
        found = [one for one in model.graph.node if one.op_type == node]
        assert len(found) == nodes.get(stage.name, 0)
        assert all(one.domain == "" for one in found)
        assert checks[stage.name]["compared"] == (not found)  # ONNX Runtime has no such operator
        assert checks[stage.name]["model"]  # but the module was compared with the model
        assert all(size > 0 for port in stage.outputs for size in port.shape)
        if found and stage.name == "roi":
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in found[0].attribute}
            assert attributes["finest_scale"] == 56
            assert list(attributes["spatial_scale"]) == [1 / 2, 1 / 4, 1 / 8, 1 / 16]
            assert (attributes["pooled_height"], attributes["sample_num"], attributes["aligned"]) == (7, 2, 1)
            assert found[0].name in stage.keep_fp32


@torch.no_grad()
def test_another_size_resizes_positions_as_vitdet_does(checkpoint, tmp_path):
    cfg = _config()
    meta = _export(cfg, checkpoint(cfg), tmp_path, size=(96, 160))
    assert [port.shape[-2:] for port in meta.stages[0].outputs] == [
        (48, 80),
        (24, 40),
        (12, 20),
        (6, 10),
        (3, 5),
    ]
    assert "model" not in json.loads((tmp_path / exporting.CHECK).read_text())["backbone"]
    attention = _model(cfg).backbone.blocks[1].attn
    rows, columns = 5, 8
    static = stages.StaticAttention(attention, 2, rows, columns, flash=False)
    x = torch.randn(2, rows, columns, 96)
    qkv = attention.qkv(x).view(2, rows * columns, 3, 3, 32).permute(2, 0, 3, 1, 4)
    logits = qkv[0] @ qkv[1].transpose(2, 3) * attention.scale
    tables = [
        nn.functional.interpolate(table.t()[None], size=2 * side - 1, mode="linear")[0].t()
        for table, side in ((attention.rel_pos_h, rows), (attention.rel_pos_w, columns))
    ]
    for q in range(rows * columns):
        for k in range(rows * columns):
            row = tables[0][q // columns - k // columns + rows - 1]
            column = tables[1][q % columns - k % columns + columns - 1]
            logits[:, :, q, k] += qkv[0][:, :, q] @ (row + column)
    expected = (logits.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(2, rows, columns, 96)
    torch.testing.assert_close(static(x), attention.proj(expected), rtol=1e-5, atol=1e-6)
    steps = Runner(meta, om.pipeline(meta), onnx_stages(meta, tmp_path))
    (found,) = steps.run([np.full((300, 100, 3), 90, np.uint8)]).batch.detections
    assert len(found.boxes)


def test_a_model_has_one_size(exported):
    meta = exported[3]
    assert export.has_model(meta)
    assert not export.has_model(replace(meta, width=192))


@pytest.mark.parametrize("size", [(100, 128), (128, 120)])
def test_a_size_that_is_no_multiple_is_refused(size):
    with pytest.raises(exporting.ConfigInvalid, match="cannot take pictures of this size") as caught:
        export.Exported(_config(), _model(_config()), Options(size=size))
    assert caught.value.advice == {"SIZES": f"{-(-size[0] // 16) * 16}x128"}


def test_a_graph_that_computes_something_else_is_refused_and_has_no_file(checkpoint, tmp_path, monkeypatch):
    (tmp_path / META).write_text("{}")
    forward = stages.ConvToPixels.forward

    def wrong(self, x):
        made = forward(self, x)
        return made + 0.01 if torch.onnx.is_in_onnx_export() else made

    monkeypatch.setattr(stages.ConvToPixels, "forward", wrong)
    cfg = _config()
    with pytest.raises(exporting.OnnxDiffers, match="the graph of backbone"):
        _export(cfg, checkpoint(cfg), tmp_path)
    assert not list(tmp_path.iterdir())  # nor the meta file of an earlier export


def test_a_rewrite_that_changes_the_model_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(stages.Levels, "forward", lambda self, boxes: [torch.ones(len(boxes), 1)] * 4)
    cfg = _config()
    with pytest.raises(exporting.OnnxDiffers, match="the stage roi and the model itself"):
        _export(cfg, checkpoint(cfg), tmp_path)
    assert not (tmp_path / META).exists()


# --- the pipeline --------------------------------------------------------------------------------------------


def _pictures(cfg=None):
    """Pictures of all kinds of shape, with something to see; one is grey.

    For a model that pads pictures first, and so finds boxes beside the picture, they are squares: mmdet on a CPU fails
    when it pastes the mask of a box that does not touch the picture.
    """
    draw = np.random.default_rng(0)
    pictures = []
    shapes = ((128, 128), (97, 61), (64, 200), (300, 180), (9, 5), (400, 401), (1, 90))
    if cfg is not None and any(step["type"] == "Pad" for step in cfg.test_pipeline):
        shapes = ((128, 128), (61, 61), (200, 200), (300, 300), (7, 7))
    for height, width in shapes:
        noise = draw.integers(0, 256, (max(height // 9, 1), max(width // 9, 1), 3), dtype=np.uint8)
        pictures.append(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    pictures[3] = np.repeat(pictures[3][..., :1], 3, axis=2)
    return pictures


@pytest.fixture(scope="module")
def truth(exported, tmp_path_factory):
    """What the model itself finds in each picture."""
    cfg, file, _, _ = exported
    trained = Trained(copy.deepcopy(cfg), file)
    return [
        trained.predict(picture, "x", Watch(lambda: None)).cpu().pred_instances for picture in _pictures(cfg)
    ]


@pytest.mark.parametrize("kind", ["PyTorch", "ONNX Runtime"])
def test_the_pipeline_finds_what_the_model_finds(exported, truth, kind):
    cfg, file, folder, meta = exported
    functions = (
        torch_stages(meta, export.torch_stages(meta, file))
        if kind == "PyTorch"
        else onnx_stages(meta, folder)
    )
    runner = Runner(meta, om.pipeline(meta), functions)
    pictures, found = _pictures(cfg), []
    for start in range(0, len(pictures), meta.batch):  # the last batch is not full
        found += runner.run(pictures[start : start + meta.batch]).batch.detections
    assert sum(len(one) for one in truth) > 300
    for picture, theirs, ours in zip(pictures, truth, found, strict=True):
        assert ours.boxes.dtype == ours.scores.dtype == np.float32
        assert (ours.scores[1:] <= ours.scores[:-1]).all()
        order = _pairs(ours, theirs)
        assert ours.labels[order].tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(ours.scores[order], theirs.scores, atol=1e-5)
        np.testing.assert_allclose(ours.boxes[order], theirs.bboxes, atol=1e-2)
        decoded = coco_mask.decode(ours.masks).transpose(2, 0, 1).astype(bool)[order]
        assert decoded.shape == (len(theirs), *picture.shape[:2])
        different = (decoded != np.asarray(theirs.masks)).sum()
        assert different <= 1e-3 * decoded.size  # where a mask is 0.5 within what the stages differ by


def _pairs(ours, theirs):
    """Return for each of their detections the nearest box of ours of its class: equal scores may change places."""
    apart = np.abs(ours.boxes - theirs.bboxes.numpy()[:, None]).max(axis=2)
    apart[ours.labels != theirs.labels.numpy()[:, None]] = np.inf
    order = apart.argmin(axis=1)
    assert len(set(order.tolist())) == len(ours.boxes) == len(theirs)
    return order


def test_another_checkpoint_is_refused(exported, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({}, other)
    with pytest.raises(CheckpointMismatch, match="not the one that was exported"):
        export.torch_stages(exported[3], other)


def test_the_host_needs_neither_torch_nor_mmdet():
    program = (
        "import sys, vitdet.om; "
        "found = {'torch', 'mmdet', 'mmcv', 'mmengine', 'onnx', 'onnxruntime', 'torch_npu'} & sys.modules.keys(); "
        "sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- preprocessing -------------------------------------------------------------------------------------------


def test_the_input_is_that_of_the_test_pipeline_to_the_bit(exported):
    cfg, _, _, meta = exported
    init_default_scope("mmdet")
    pipeline = Compose([step for step in cfg.test_pipeline if not step["type"].startswith("Load")])
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    host = om.Host(meta)
    for picture in _pictures():
        shape = picture.shape[:2]
        data = pipeline(dict(img=picture, img_path="x", img_id=0, img_shape=shape, ori_shape=shape))
        data = preprocessor(pseudo_collate([data]))
        batch = Batch(pictures=[picture])
        host.preprocess(batch)
        assert np.array_equal(batch.values[om.PICTURE][0], data["inputs"][0].numpy())
        sample = data["data_samples"][0]
        (scaled,) = batch.values["vitdet.scaled"]
        assert scaled.limit == tuple(sample.img_shape)
        assert np.array_equal(scaled.factors[:2], np.float32(sample.scale_factor))


def test_a_picture_that_cannot_be_scaled_is_named(exported):
    with pytest.raises(ImageError, match="2000 x 1 pixels"):
        om.Host(exported[3]).preprocess(Batch(pictures=[np.zeros((1, 2000, 3), np.uint8)]))


def test_aipp_gets_bytes_and_normalises_them_as_the_host_would(exported, tmp_path):
    cfg, _, _, meta = exported
    if meta.host["pad"] is None:
        with pytest.raises(exporting.ConfigInvalid, match="pads pictures after they are normalised"):
            export.Exported(cfg, _model(cfg), Options(size=SIZE), aipp=True)
        return
    made = export.Exported(cfg, _model(cfg), Options(size=SIZE, batch=2), aipp=True)
    meta = Meta(**vars(meta) | {"host": made.host})
    batch, plain = Batch(pictures=_pictures()[1:3]), Batch(pictures=_pictures()[1:3])
    om.Host(meta).preprocess(batch)
    om.Host(exported[3]).preprocess(plain)
    pixels = batch.values[om.PICTURE]
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2, *SIZE, 3))
    normalised = onnx_runner._after_aipp(meta, lambda given: given)({om.PICTURE: pixels})[om.PICTURE]
    np.testing.assert_array_equal(normalised, plain.values[om.PICTURE])
    text = made.aipp_config()
    lines = dict(line.strip().split(": ") for line in text.splitlines()[1:-1])
    assert (lines["src_image_size_w"], lines["rbuv_swap_switch"]) == ("128", "true")
    for channel in range(3):
        mean, rest, factor = (float(lines[f"{name}_chn_{channel}"]) for name in ("mean", "min", "var_reci"))
        assert mean + rest == pytest.approx(meta.host["mean"][channel], rel=1e-6)
        assert factor == pytest.approx(1 / meta.host["std"][channel], rel=1e-6)


# --- proposals and detections --------------------------------------------------------------------------------


def _maps(host, draw, size=SIZE):
    shapes = [
        (len(base), size[0] // int(stride[0]), size[1] // int(stride[0]))
        for base, stride in zip(host.anchors, host.strides, strict=True)
    ]
    scores = [draw.normal(-3, 2, shape).astype(np.float32) for shape in shapes]
    deltas = [draw.normal(0, 0.5, (4 * shape[0], *shape[1:])).astype(np.float32) for shape in shapes]
    return scores, deltas


@pytest.mark.parametrize("case", ["usual", "outside", "no size", "equal"])
def test_proposals_are_the_head_s(exported, case):
    cfg, _, _, meta = exported
    host, head = om.Host(meta), _model(cfg).rpn_head
    scores, deltas = _maps(host, np.random.default_rng(0))
    if case == "outside":
        for delta in deltas:
            delta[0::4] += 3
    if case == "no size":  # a half of them leave the picture, and nothing is left of these
        for delta in deltas:
            delta[0::4, :, : delta.shape[2] // 2] = -60
    if case == "equal":  # all boxes of a level are its anchors, and of one shape all scores are equal
        deltas = [np.zeros_like(delta) for delta in deltas]
        scores = [np.full_like(score, 0.25) for score in scores]
    limit = (100, 90)
    (theirs,) = head.predict_by_feat(
        [torch.from_numpy(one)[None] for one in scores],
        [torch.from_numpy(one)[None] for one in deltas],
        batch_img_metas=[dict(img_shape=limit, scale_factor=(1, 1))],
    )
    ours = host.propose(scores, deltas, limit)
    assert len(ours) == len(theirs) > 100
    if case != "equal":  # which of equal ones are taken is arbitrary in torch's topk
        np.testing.assert_allclose(ours, theirs.bboxes, rtol=1e-5, atol=1e-4)


def test_no_proposals_and_no_detections_are_nothing(exported):
    host = om.Host(exported[3])
    scores, deltas = _maps(host, np.random.default_rng(0))
    for delta in deltas:
        delta[0::4] = -60
    batch = Batch(pictures=[np.zeros((50, 70, 3), np.uint8)])
    host.preprocess(batch)
    batch.values |= {name: one[None] for name, one in zip(host.score_maps, scores, strict=True)}
    batch.values |= {name: one[None] for name, one in zip(host.delta_maps, deltas, strict=True)}
    host.proposals(batch)
    rois = batch.values[om.ROIS]
    assert rois.shape == (200 * host.batch, 5)
    assert not rois[:, 1:].any()
    assert rois[:, 0].tolist() == [number for number in range(host.batch) for _ in range(200)]
    # What the box head says of the empty places must not count, however sure it is.
    batch.values |= {
        om.SCORES: np.full((len(rois), 4), [9, 0, 0, 0], np.float32),
        om.DELTAS: np.zeros((len(rois), 4 if host.class_agnostic else 12), np.float32),
    }
    host.select(batch)
    assert not batch.values[om.BOXES][:, 1:].any()
    batch.values[om.MASKS] = np.zeros((100 * host.batch, 28, 28), np.float32)
    host.paste(batch)
    (found,) = batch.detections
    assert (found.boxes.shape, len(found.scores), len(found.labels), found.masks) == ((0, 4), 0, 0, [])


@pytest.mark.parametrize("case", ["none", "one", "many", "equal"])
def test_detections_are_the_box_head_s(exported, case):
    cfg, _, _, meta = exported
    host, head = om.Host(meta), _model(cfg).roi_head.bbox_head
    draw = np.random.default_rng(0)
    corner = draw.uniform(0, 100, (200, 2))
    proposals = np.concatenate([corner, corner + draw.uniform(1, 40, (200, 2))], axis=1).astype(np.float32)
    scores = draw.normal(0, 1, (200, 4)).astype(np.float32)
    deltas = draw.normal(0, 2, (200, 4 if host.class_agnostic else 12)).astype(np.float32)
    if case in ("none", "one"):
        scores[:, 3] += 20
        if case == "one":
            scores[17, 1] += 30
    if case == "equal":  # each twice: one of them goes
        scores[100:], proposals[100:], deltas[100:] = scores[:100], proposals[:100], deltas[:100]
    limit = (110, 120)
    theirs = head._predict_by_feat_single(
        roi=torch.from_numpy(np.pad(proposals, ((0, 0), (1, 0)))),
        cls_score=torch.from_numpy(scores),
        bbox_pred=torch.from_numpy(deltas),
        img_meta=dict(img_shape=limit),
        rcnn_test_cfg=_model(cfg).test_cfg.rcnn,
    )
    ours = host.find(proposals, scores, deltas, limit)
    assert len(ours.boxes) == {"none": 0, "one": 1, "many": 100, "equal": 100}[case]
    assert ours.labels.tolist() == theirs.labels.tolist()
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
    np.testing.assert_allclose(ours.boxes, theirs.bboxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 700])
@pytest.mark.parametrize("ties", [False, True])
def test_suppression_is_torchvision_s_and_mmcv_s(count, ties):
    """Equal boxes, boxes without area, IoUs of exactly the threshold; equal scores as torchvision orders them.

    The order of equal scores is arbitrary in mmcv, whose sort is not stable.
    """
    draw = np.random.default_rng(count)
    boxes = draw.integers(0, 30, (count, 4)).astype(np.float32)
    boxes[:, 2:] = boxes[:, :2] + draw.integers(0, 12, (count, 2))
    scores = draw.integers(0, 5, count) if ties else draw.permutation(count)
    scores = scores.astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    groups = draw.integers(0, 4, count)
    shifted = boxes + (groups * 100)[:, None].astype(np.float32)
    theirs = torch.from_numpy(shifted), torch.from_numpy(scores)
    for overlap in (0.5, 0.7, 0.0):
        expected = torchvision.ops.nms(*theirs, overlap).tolist()
        for limit in (10, 1000):
            for known in (None, groups[order]):
                kept = suppress(shifted[order], np.float64(overlap), limit, known)
                assert order[kept].tolist() == expected[:limit]
            if not ties:
                _, of_mmcv = nms(*theirs, overlap, max_num=limit)
                assert order[suppress(shifted[order], overlap, limit)].tolist() == of_mmcv.tolist()


# --- masks ---------------------------------------------------------------------------------------------------


def test_masks_are_pasted_as_mmdet_pastes_them():
    """Inside and outside, of every size, less than a pixel, without a width or a height, on pixels' centres."""
    draw = np.random.default_rng(0)
    height, width, count = 60, 83, 400
    corner = draw.uniform(-20, 80, (count, 2))
    sides = np.exp(draw.uniform(np.log(0.2), np.log(90), (count, 2)))
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    boxes[:40, 2] = boxes[:40, 0]
    boxes[20:60, 3] = boxes[20:60, 1]
    boxes[30:50] = np.round(boxes[30:50]) + 0.5
    boxes[60:100] = np.round(boxes[60:100])
    masks = draw.uniform(0, 1, (count, 1, 28, 28)).astype(np.float32)
    masks[100:200] = masks[100:200] > 0.5  # 0.5 exactly between two pixels
    masks[200:300] = (
        cv2.resize(masks[200:300, 0].transpose(1, 2, 0), (4, 4))
        .transpose(2, 0, 1)[:, None]
        .repeat(7, 2)
        .repeat(7, 3)
    )
    masks[390:] = 1
    found = coco_mask.decode(encode(masks[:, 0], boxes, height, width)).transpose(2, 0, 1).astype(bool)
    different = close = 0
    for number in range(count):
        expected = np.zeros((height, width), bool)
        x0, y0, x1, y1 = boxes[number]
        if x1 + 1 <= 0 or y1 + 1 <= 0 or x0 - 1 >= width or y0 - 1 >= height:  # mmdet fails
            assert not found[number].any()
            continue
        values, place = _do_paste_mask(
            torch.from_numpy(masks[number][None]), torch.from_numpy(boxes[number][None]), height, width
        )
        expected[place] = values[0].numpy() >= 0.5
        wrong = found[number] != expected
        undecided = np.zeros((height, width), bool)
        undecided[place] = np.abs(values[0].numpy() - 0.5) < 1e-4
        different += (wrong & ~undecided).sum()
        close += (wrong & undecided).sum()
    assert found.any(axis=(1, 2)).sum() > 150
    assert different == 0
    assert close < 200  # of two million pixels: where float32 says 0.5 or not


def test_a_mask_of_the_whole_picture_and_none_at_all():
    whole, none = encode(
        np.float32([np.full((28, 28), v) for v in (1, 0)]), np.float32([[-9, -9, 99, 99]] * 2), 7, 5
    )
    assert coco_mask.decode(whole).all()
    assert coco_mask.area(none) == 0
    assert none["size"] == [7, 5]
    assert encode(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 7, 5) == []
