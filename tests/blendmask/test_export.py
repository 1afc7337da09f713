"""An exported BlendMask: graphs that ATC can convert, and with the host's steps the detections of the model itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blendmask
import numpy as np
import onnx
import pytest
import torch
from blendmask import export, om
from blendmask.config import load
from blendmask.export import AT_BOXES, ROIS_FP32, Exported
from blendmask.mapper import Mapper
from blendmask.model import BlendMask
from blendmask_goldens import entry, fill_model, goldens, match
from blendmask_goldens import sample as golden_sample
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from staged_om import exporting
from staged_om.host import Batch, Detections
from staged_om.meta import Meta
from staged_om.onnx_runner import Runner, onnx_stages, torch_stages
from torchvision.ops import nms

CONFIGS = Path(blendmask.__file__).parent / "configs"
SIZE = (128, 160)
# What ATC's parser has, of what one could think that the exporter writes.
OPERATORS = {
    "Add", "Concat", "Constant", "Conv", "Flatten", "Gather", "Gemm", "InstanceNormalization", "MaxPool", "Mul",
    "ReduceSum", "Relu", "Reshape", "Resize", "RoiAlign", "Sigmoid", "Softmax", "Transpose",
}  # fmt: skip


def tiny(bias: float = 0.0) -> BlendMask:
    """A model that finds much everywhere: random weights, with a bias of the classes."""
    torch.manual_seed(0)
    model = BlendMask(load(CONFIGS / "blendmask-tiny.yaml")[0]).eval()
    head = model.proposal_generator.fcos_head
    torch.nn.init.normal_(head.cls_logits.weight, std=0.3)
    torch.nn.init.constant_(head.cls_logits.bias, bias)
    torch.nn.init.normal_(head.bbox_pred.weight, std=0.1)
    torch.nn.init.constant_(head.bbox_pred.bias, 2)
    torch.nn.init.normal_(model.top_layer.weight, std=0.2)
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].copy()


@dataclass(frozen=True)
class Made:
    """An exported model."""

    folder: Path
    meta: Meta
    model: BlendMask
    exported: Exported

    def run(self, pictures: list[np.ndarray[Any, Any]], *, onnx: bool) -> list[Detections]:
        stages = (
            onnx_stages(self.meta, self.folder) if onnx else torch_stages(self.meta, self.exported.modules())
        )
        return Runner(self.meta, om.pipeline(self.meta), stages).run(pictures).batch.detections

    def expected(self, pictures: list[np.ndarray[Any, Any]]) -> list[Instances]:
        """What the model finds in the same batch: pictures padded to the size of the input, and empty places."""
        mapper = Mapper(self.exported.cfg, training=False)
        samples = [mapper.sample(one, {"height": one.shape[0], "width": one.shape[1]}) for one in pictures]
        nothing = {"image": torch.zeros(3, 1, 1, dtype=torch.uint8), "height": 1, "width": 1}
        self.model.padded = self.exported.size
        results = self.model([*samples, *[nothing] * (self.meta.batch - len(pictures))])
        return [result["instances"] for result in results[: len(pictures)]]


def make(folder: Path, model: BlendMask, name: str = "blendmask-tiny", **options: Any) -> Made:
    cfg = load(CONFIGS / f"{name}.yaml")[0]
    exported = Exported(cfg, model, **({"size": SIZE, "batch": 1} | options))
    stages = exported.write(folder, 16)
    meta = Meta(
        family="blendmask",
        model=name,
        checkpoint="none",
        checkpoint_sha256="0" * 64,
        height=exported.size[0],
        width=exported.size[1],
        batch=exported.batch,
        classes=tuple(map(str, range(80))),
        category_ids=tuple(range(1, 81)),
        stages=stages,
        host=exported.host_facts(),
        export_id=exporting.export_id(stages),
    )
    meta.write(folder)
    return Made(folder=folder, meta=Meta.read(folder), model=model, exported=exported)


VARIANTS: dict[str, dict[str, Any]] = {
    "all rewrites": {},
    "none, two pictures": {"without": (AT_BOXES, ROIS_FP32), "batch": 2},
    "two pictures": {"batch": 2},
    "aipp": {"aipp": True, "batch": 2},
}


@pytest.fixture(scope="module", params=VARIANTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("export"), tiny(), **VARIANTS[request.param])


def decoded(one: Detections) -> np.ndarray[Any, Any]:
    return np.stack([coco_mask.decode(mask).astype(bool) for mask in one.masks])


def assert_same(found: Detections, expected: Instances, *, bits: bool) -> None:
    """Assert that both are the same detections: with `bits` to the last bit, masks but for the effects of one."""
    assert len(found.scores) == len(found.masks) == len(expected)
    if not len(expected):
        assert found.boxes.shape == (0, 4)
        return
    boxes, scores = expected.pred_boxes.tensor.numpy(), expected.scores.numpy()
    classes, masks = expected.pred_classes.numpy(), expected.pred_masks.numpy()
    assert (np.diff(found.scores) <= 0).all()
    if bits:
        # Which of two equal scores comes first is open in torch.
        mine = np.lexsort((*found.boxes.T, found.labels))
        theirs = np.lexsort((*boxes.T, classes))
        assert np.array_equal(found.labels[mine], classes[theirs])
        assert np.array_equal(found.boxes[mine], boxes[theirs])
        np.testing.assert_array_max_ulp(
            found.scores[mine], scores[theirs], 1
        )  # torch's square root is not rounded correctly
        assert (decoded(found)[mine] != masks[theirs]).mean() < 1e-5
        return
    own = Instances(expected.image_size)
    own.pred_boxes = Boxes(torch.from_numpy(found.boxes))
    own.scores, own.pred_classes = torch.from_numpy(found.scores), torch.from_numpy(found.labels)
    own.pred_masks = torch.from_numpy(decoded(found))
    match(own, boxes=boxes, scores=scores, classes=classes, masks=masks)


@pytest.mark.parametrize("onnx", [False, True], ids=["modules", "ONNX"])
def test_stages_and_host_steps_find_what_the_model_finds(made: Made, onnx: bool) -> None:
    pictures = [picture(100, 140), picture(300, 210, seed=1)][: made.meta.batch]
    found = made.run(pictures, onnx=onnx)
    expected = made.expected(pictures)
    assert [len(one) for one in expected] == [100] * len(pictures)
    for one, theirs in zip(found, expected, strict=True):
        assert one.masks
        assert_same(one, theirs, bits=not onnx)


def test_a_batch_may_have_fewer_pictures(made: Made) -> None:
    (found,) = made.run([picture(100, 140)], onnx=True)
    assert_same(found, made.expected([picture(100, 140)])[0], bits=False)


def test_graphs_are_such_that_atc_converts_them(made: Made) -> None:
    for stage in made.meta.stages:
        graph = onnx.load(made.folder / stage.file)
        assert [(one.domain, one.version) for one in graph.opset_import] == [("", 16)]
        assert {node.op_type for node in graph.graph.node} <= OPERATORS
        assert {node.domain for node in graph.graph.node} == {""}
        inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        assert {name for node in graph.graph.node for name in node.output} <= {one.name for one in values}
        for one in values:
            assert all(size.dim_value > 0 for size in one.type.tensor_type.shape.dim), one.name
        given = {one.name for one in graph.graph.initializer}
        for node in graph.graph.node:
            if node.op_type == "Resize":
                attributes = {one.name: one for one in node.attribute}
                assert attributes["mode"].s in (b"linear", b"nearest")
                assert len(node.input) >= 3
                constants = {one.output[0] for one in graph.graph.node if one.op_type == "Constant"}
                assert node.input[-1] in given | constants
            if node.op_type == "RoiAlign":
                attributes = {one.name: one for one in node.attribute}
                assert attributes["coordinate_transformation_mode"].s == b"half_pixel"
        # Scores of all locations, and features that never leave the device.
        assert all(port.dtype in ("float32", "int32") for port in (*stage.inputs, *stage.outputs))


def test_what_must_stay_float32_is_named(made: Made) -> None:
    detector, blend = made.meta.stages
    assert detector.keep_fp32 == ()
    nodes = [one.name for one in onnx.load(made.folder / blend.file).graph.node if one.op_type == "RoiAlign"]
    assert len(nodes) == 1
    assert blend.keep_fp32 == (
        ()
        if ROIS_FP32 in VARIANTS["none, two pictures"]["without"] and made.exported.everywhere
        else tuple(nodes)
    )


def test_the_rows_of_the_blender_are_the_detectors_buffer(made: Made) -> None:
    detector, blend = made.meta.stages
    outputs = {port.name: port for port in detector.outputs}
    shared = [port for port in blend.inputs if port.name in outputs]
    assert len(shared) == 2
    assert all(port == outputs[port.name] for port in shared)
    read = {name for step in om.pipeline(made.meta) for name in getattr(step, "reads", ())}
    assert not read & {port.name for port in shared}


def test_differences_from_pytorch_are_written_down(made: Made) -> None:
    checks = json.loads((made.folder / exporting.CHECK).read_text())
    assert list(checks) == ["detector", "blend"]
    for stage in made.meta.stages:
        rows = checks[stage.name]["outputs"]
        assert list(rows) == [port.name for port in stage.outputs]
        assert all(row["difference"] <= 1e-3 * row["largest"] for row in rows.values())
        assert all(row["largest"] > 0 for row in rows.values())
    assert not list(made.folder.glob(".tmp-*"))


# -- edges --


@pytest.mark.parametrize("bias", [-50.0, -3.0], ids=["nothing", "few"])
def test_little_above_the_threshold(tmp_path: Path, bias: float) -> None:
    model = tiny(bias)
    one = make(tmp_path, model)
    (expected,) = one.expected([picture(100, 140)])
    assert (len(expected) == 0) == (bias == -50)
    assert len(expected) < 100
    assert_same(one.run([picture(100, 140)], onnx=False)[0], expected, bits=True)
    assert_same(one.run([picture(100, 140)], onnx=True)[0], expected, bits=False)


def test_a_picture_of_one_colour_has_ties_and_both_find_as_much(tmp_path: Path) -> None:
    """Equal scores at many locations: which of them are taken is open, how many and how good is not."""
    one = make(tmp_path, tiny())
    grey = np.full((128, 160, 3), 128, np.uint8)
    (found,), (expected,) = one.run([grey], onnx=False), one.expected([grey])
    assert len(found.scores) == len(expected) == 100
    assert found.scores == pytest.approx(expected.scores.numpy(), abs=1e-3)


def test_one_candidate_at_a_corner_is_one_detection_that_ends_with_the_picture(made: Made) -> None:
    host = om.Host(made.meta)
    maps = [[np.zeros((channels, *size), np.float32) for size in host.grid.sizes] for channels in (80, 4)]
    scores, sides = maps
    scores[0][7, 0, 0], sides[0][:, 0, 0] = 0.25, (30, 20, 10, 40)
    found = host.find(scores, sides)
    assert found.boxes.tolist() == [[-28, -18, 12, 42]]
    batch = Batch(pictures=[np.zeros((64, 320, 3), np.uint8)])
    batch.values = {
        om.MASKS: np.ones((made.meta.batch * 100, 28, 28), np.float32),
        om._KEPT: [((32, 160), found)],
    }
    host.paste(batch)
    (one,) = batch.detections
    assert (one.boxes.tolist(), one.scores.tolist(), one.labels.tolist()) == ([[0, 0, 24, 64]], [0.5], [7])
    assert coco_mask.area(one.masks[0]) == 24 * 64


def test_of_many_candidates_of_a_level_the_best_are_taken() -> None:
    scores = np.random.default_rng(0).permutation(4000).astype(np.float32).reshape(4, 20, 50) / 4000
    found = om.best(scores, 0.05, 1000, start=7)
    expected = torch.from_numpy(scores).flatten().topk(1000)
    assert sorted(found.scores.tolist(), reverse=True) == expected.values.tolist()
    assert set((1000 * found.classes + found.places - 7).tolist()) == set(expected.indices.tolist())
    # Above the threshold, not at it.
    assert om.best(np.full((1, 2, 2), 0.05, np.float32), 0.05, 1000, start=0).scores.size == 0


@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_torchvisions(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = 600
    # Whole pixels and few scores: overlaps of exactly the threshold, equal boxes, boxes without area.
    corner = draw.integers(0, 40, (count, 2))
    boxes = np.concatenate([corner, corner + draw.integers(0, 12, (count, 2))], axis=1).astype(np.float32)
    scores = draw.integers(1, 20, count).astype(np.float32) / 20
    classes = draw.integers(0, 3, count)
    apart = boxes + 100 * classes[:, None].astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    for overlap in (0.5, 0.6):
        expected = nms(torch.from_numpy(apart), torch.from_numpy(scores), overlap).numpy()
        kept = order[om.suppress(apart[order], np.float64(overlap), count)]
        assert np.array_equal(kept, expected)
        assert np.array_equal(order[om.suppress(apart[order], np.float64(overlap), 7)], expected[:7])
    assert len(om.suppress(apart[:0], np.float64(0.6), 7)) == 0


def _boxes(count: int, height: int, width: int) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(0)
    corner = draw.uniform(-0.1, 1, (count, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + draw.uniform(0, 0.7, (count, 2)) ** 2 * (width, height)], axis=1)
    special = [
        [0, 0, width, height],
        [3, 5, 31, 33],  # 28 px: the mask's own
        [3, 5, 17, 19],  # half of it: 0.5 occurs
        [3.5, 5.5, 4.5, 6.5],
        [3.6, 5.6, 4.4, 6.4],  # no pixel's centre
        [width - 1, 0, width, height],
        [10, -0.0, 60, height],
        [0, height - 0.25, width, height],
        [0.3, 0.3, 0.3001, 50],
    ]
    boxes = np.concatenate([boxes, special]).clip(0, (width, height, width, height)).astype(np.float32)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


@pytest.mark.parametrize("kind", ["smooth", "noise", "saturated", "full"])
def test_masks_are_pasted_as_detectron2_does_it(kind: str) -> None:
    height, width = 97, 131
    boxes = _boxes(60, height, width)
    draw = np.random.default_rng(1)
    masks = draw.random((len(boxes), 28, 28)).astype(np.float32)
    if kind == "smooth":
        masks = draw.random((len(boxes), 4, 4)).astype(np.float32).repeat(7, axis=1).repeat(7, axis=2)
    elif kind == "saturated":
        masks = masks.round()
    elif kind == "full":
        masks = np.ones_like(masks)
    expected = paste_masks_in_image(
        torch.from_numpy(masks), torch.from_numpy(boxes), (height, width), threshold=0.5
    ).numpy()
    found = om.encode(masks, boxes, height, width)
    pixels = np.stack([coco_mask.decode(one) for one in found]).astype(bool)
    # Saturated masks have values of exactly 0.5 at pixels, where float32 coordinates decide.
    assert (pixels != expected).sum() <= {"saturated": 20, "full": 20}.get(kind, 2)
    assert expected.sum() > 10_000
    # The one way to write a mask: COCO's.
    assert found == coco_mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0).astype(np.uint8)))


def test_masks_that_are_no_numbers_are_empty_there() -> None:
    masks = np.full((1, 28, 28), np.nan, np.float32)
    masks[0, 10:20, 10:20] = 1
    box = np.array([[0, 0, 28, 28]], np.float32)
    (found,) = om.encode(masks, box, 28, 28)
    assert coco_mask.area(found) == 100


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (427, 640), (333, 500), (800, 1333), (1, 1), (2000, 300)]
)
def test_pictures_are_scaled_as_detectron2_does_it(made: Made, height: int, width: int) -> None:
    host = om.Host(made.meta)
    host.shortest, host.longest, host.size = 800, 1333, (1344, 1344)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    transform = ResizeShortestEdge(800, 1333).get_transform(pixels)
    assert np.array_equal(host.scale(pixels), transform.apply_image(pixels))


def test_a_picture_that_would_not_fit_is_scaled_to_fit(made: Made) -> None:
    host = om.Host(made.meta)
    host.shortest, host.longest, host.size = 800, 1333, (800, 1344)
    assert host.scaled_size(480, 640) == (800, 1067)
    assert host.scaled_size(640, 480) == (800, 600)
    assert host.scaled_size(480, 480) == (800, 800)


def test_a_picture_of_which_nothing_remains_is_refused(made: Made) -> None:
    with pytest.raises(om.ImageError, match="9000 x 1 pixels cannot be scaled"):
        made.run([np.zeros((1, 9000, 3), np.uint8)], onnx=False)


# -- the program --


def test_the_hosts_steps_need_neither_torch_nor_detectron2() -> None:
    program = (
        "import sys; import blendmask.om; "
        "print(sorted(set(sys.modules) & {'torch', 'detectron2', 'torchvision', 'fvcore', 'onnx'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sizes_that_the_model_cannot_take_are_refused() -> None:
    cfg = load(CONFIGS / "blendmask-tiny.yaml")[0]
    with pytest.raises(exporting.ConfigInvalid, match="cannot take pictures of this size") as caught:
        Exported(cfg, tiny(), size=(100, 128), batch=1)
    assert (caught.value.name, caught.value.advice) == ("config-invalid", {"SIZES": "112x128"})


class _Fickle(torch.nn.Module):
    """Computes something else each time: what is traced is not what it is compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class _Unknown(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("module", "error", "name"),
    [
        (_Fickle(), exporting.OnnxDiffers, "onnx-differs"),
        (_Unknown(), exporting.ExportError, "export-failed"),
    ],
    ids=["differs", "unknown operator"],
)
def test_a_graph_that_is_not_the_module_gets_no_name(
    tmp_path: Path, module: torch.nn.Module, error: type[exporting.ExportError], name: str
) -> None:
    stage = exporting.Module(name="one", module=module, inputs={"x": torch.ones(3)}, outputs=("y",), opset=16)
    with pytest.raises(error) as raised:
        exporting.write(stage, tmp_path)
    assert raised.value.name == name
    assert list(tmp_path.iterdir()) == []


def test_the_program_exports_a_checkpoint_and_its_stages_load_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load(CONFIGS / "blendmask-tiny.yaml")[0]
    content = json.loads(next((data / "shapes" / "annotations").glob("instances_val*.json")).read_text())
    classes = [category["name"] for category in content["categories"]]
    cfg.MODEL.FCOS.NUM_CLASSES = cfg.MODEL.BASIS_MODULE.NUM_CLASSES = len(classes)
    torch.manual_seed(0)
    model = BlendMask(cfg).eval()
    torch.nn.init.constant_(model.proposal_generator.fcos_head.cls_logits.bias, 0)
    checkpoint, folder = tmp_path / "model.pth", tmp_path / "work"
    folder.mkdir()
    torch.save({"model": model.state_dict(), "meta": {"classes": classes}}, checkpoint)
    variables = {
        "MODEL": "blendmask-tiny",
        "DATASET": "shapes",
        "ASCENDET_DATA": str(data),
        "CHECKPOINT": str(checkpoint),
        "WORK_DIR": str(folder),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sys, "argv", ["export", "--size=128x128", "--opset=17", "--no-rewrite", ROIS_FP32, "--aipp"]
    )
    export.main()
    meta = Meta.read(folder)
    assert (meta.height, meta.width, meta.batch, meta.classes) == (128, 128, 1, tuple(classes))
    assert meta.category_ids == tuple(category["id"] for category in content["categories"])
    assert [stage.opset for stage in meta.stages] == [17, 17]
    assert [stage.keep_fp32 for stage in meta.stages] == [(), ()]
    assert "min_chn_0: 0.53\n" in (folder / export.AIPP).read_text()

    pixels = picture(90, 128)
    steps = om.pipeline(meta)
    again = torch_stages(meta, export.torch_stages(meta, checkpoint))
    (first,) = Runner(meta, steps, again).run([pixels]).batch.detections
    (second,) = Runner(meta, steps, onnx_stages(meta, folder)).run([pixels]).batch.detections
    assert len(first.scores) == len(second.scores) > 0
    assert first.scores == pytest.approx(second.scores, abs=1e-4)
    found = export.open_detector(meta, checkpoint)(pixels)
    assert [row["category"] for row in found] == [classes[label] for label in first.labels]
    assert [row["score"] for row in found] == pytest.approx(first.scores.tolist(), abs=1e-4)
    torch.save({"model": model.state_dict()}, checkpoint)
    with pytest.raises(export.CheckpointMismatch, match="not the one that was exported"):
        export.torch_stages(meta, checkpoint)


def test_an_exported_r50_gives_the_originals_maps(tmp_path: Path) -> None:
    model = BlendMask(load(CONFIGS / "blendmask-r50.yaml")[0])
    fill_model(model)
    one = make(tmp_path, model.eval(), "blendmask-r50", batch=2, without=(AT_BOXES,))
    given = model.batch([golden_sample(0), golden_sample(1)])
    found = onnx_stages(one.meta, tmp_path)["detector"]({om.PICTURE: given.numpy()})
    golden = goldens("r50")
    maps = {"bases": found[om.BASES]}
    rows = found[om.ATTENTION].reshape(2, -1, model.blender.channels).transpose(0, 2, 1)
    grid = om.Host(one.meta).grid
    for level, start, size, stride in zip(
        one.exported.levels, grid.starts, grid.sizes, grid.strides, strict=True
    ):
        maps[f"reg/{level}"] = found[om.sides_of(level)] / stride
        end = start + size[0] * size[1]
        maps[f"top_feats/{level}"] = rows[:, :, start:end].reshape(2, -1, *size)
    for name, value in maps.items():
        expected = golden[f"eval/{name}"]
        actual = entry(torch.from_numpy(np.ascontiguousarray(value)), len(expected) - 3)
        # The goldens' weights make much of rounding, and batch normalisation is part of the convolutions here.
        assert actual[3:] == pytest.approx(expected[3:], rel=1e-3, abs=1e-3), name
        assert actual[1] == pytest.approx(expected[1], rel=1e-4), name
