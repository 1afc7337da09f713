"""A configuration is made to fit a data set: its files, its classes, the length of its training, its checkpoint."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vitdet
from ascendet_common import progress
from ascendet_common.checkpoints import CheckpointError
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from vitdet import launch
from vitdet.checkpoint import drop_class_layers
from vitdet.data import DataError, classes_of, count_pictures, fill, find_split, set_classes
from vitdet.infer import Trained
from vitdet.predictions import NumberedCocoMetric
from vitdet.recipe import RecipeRunner, fit, stretch

CONFIGS = Path(vitdet.__file__).parent / "configs"
GENERATOR = Path(__file__).parents[2] / "wheels" / "common" / "ascendet_common" / "shapes.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    command = [sys.executable, GENERATOR, "--out", folder / "shapes", "--train", "4", "--val", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def renamed(shapes, tmp_path, monkeypatch):
    """`shapes` with other names of classes, or with more of them, as the data set `mine`."""
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path))

    def make(*names):
        shutil.copytree(shapes / "shapes", tmp_path / "mine", dirs_exist_ok=True)
        for file in (tmp_path / "mine" / "annotations").iterdir():
            content = json.loads(file.read_text())
            content["categories"] = [dict(id=number, name=name) for number, name in enumerate(names, 1)]
            file.write_text(json.dumps(content))
        monkeypatch.setenv("DATASET", "mine")
        return Config.fromfile(CONFIGS / "vitdet-tiny.py")

    return make


# -- files and classes --


def test_coco_s_classes_are_mmdet_s_in_its_order():
    """COCO's categories have gaps in their ids; the file lists them by id, which is the order of mmdet's table."""
    names = CocoDataset.METAINFO["classes"]
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [number for number in range(1, 91) if number not in gaps]
    content = {"categories": [dict(id=number, name=name) for number, name in zip(ids, names, strict=True)]}
    assert classes_of(content) == names
    assert (names[ids.index(13)], names[ids.index(90)]) == ("stop sign", "toothbrush")


def test_ranks_hand_over_their_results_in_the_runs_folder(monkeypatch, tmp_path):
    """Not in the current folder, mmengine's choice: that is the checkout, which may be another user's."""
    monkeypatch.setenv("WORK_DIR", str(tmp_path))
    assert NumberedCocoMetric().collect_dir == f"{tmp_path}/.results"


@pytest.mark.parametrize("model", sorted(file.stem for file in CONFIGS.glob("*.py")))
def test_every_model_takes_every_data_set(renamed, model):
    renamed("a", "b", "c", "d", "e")
    cfg = Config.fromfile(CONFIGS / f"{model}.py")
    assert fill(cfg) == 4
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == ("a", "b", "c", "d", "e")
    assert cfg.test_evaluator.ann_file.endswith(cfg.test_dataloader.dataset.ann_file)
    init_default_scope("mmdet")
    with torch.device("meta"):
        built = MODELS.build(cfg.model)
    assert built.roi_head.bbox_head.fc_cls.out_features == 6
    assert built.roi_head.mask_head.num_classes == 5
    before = cfg.to_dict()
    assert fill(cfg) == 0, "it is filled already"
    assert cfg.to_dict() == before


def test_splits_that_are_missing_or_there_twice(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match="no split for train"):
        find_split(tmp_path, "train")
    for name in ("train", "train2"):
        (tmp_path / "annotations" / f"instances_{name}.json").touch()
    with pytest.raises(DataError, match="several splits for train: train, train2"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": 1, "annotations": 2, "categories": 3}', "\xff"])
def test_what_is_no_instances_file(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="is no COCO instances file"):
        vitdet.data.read(file)


# -- the length of a training --


@pytest.fixture(scope="module")
def recipes():
    """The configurations by model, read once; copy them."""
    return {name: Config.fromfile(CONFIGS / f"{name}.py") for name in ("vitdet-b", "vitdet-tiny")}


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_coco_s_training_is_the_recipe_s(ranks, recipes):
    plain, stretched = (copy.deepcopy(recipes["vitdet-b"]) for _ in range(2))
    stretch(stretched, 117_266)
    for cfg in (plain, stretched):
        fit(cfg, ranks)
    assert stretched.to_dict() == plain.to_dict()
    if ranks == 64:
        assert (plain.train_cfg.max_iters, plain.train_cfg.val_interval) == (184_375, 5_000)


def test_shapes_training_is_the_recipe_s(recipes):
    plain, stretched = (copy.deepcopy(recipes["vitdet-tiny"]) for _ in range(2))
    stretch(stretched, 600)
    assert stretched.to_dict() == plain.to_dict()


@pytest.mark.parametrize("pictures", [1, 40, 2_000, 1_000_000])
@pytest.mark.parametrize("epochs", [1, 12, 100])
def test_another_data_set_is_trained_for_as_many_epochs(pictures, epochs, recipes):
    cfg = copy.deepcopy(recipes["vitdet-b"])
    cfg.epochs = epochs
    stretch(cfg, pictures)
    end = cfg.train_cfg.max_iters
    assert end == pytest.approx(epochs * pictures / 64, rel=0.01, abs=1)
    warm_up, drops = cfg.param_scheduler
    assert 2 <= warm_up.end <= max(2, end / 5 + 1)
    assert warm_up.end <= 250
    assert drops.milestones == pytest.approx([end * 163_889 / 184_375, end * 177_546 / 184_375], abs=1)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval <= max(2, end / 5 + 1)


@pytest.mark.parametrize(("epochs", "interval"), [(1, 1), (3, 3), (4, 4), (60, 4)])
def test_epochs_of_the_tiny_model(epochs, interval, recipes):
    cfg = copy.deepcopy(recipes["vitdet-tiny"])
    cfg.epochs = epochs
    stretch(cfg, 10)
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (epochs, interval)
    assert cfg.param_scheduler[1].end == epochs
    assert cfg.param_scheduler[0].end == max(2, round(epochs * 10 / 4) // 5)


def test_only_pictures_that_are_trained_on_count():
    images = [dict(id=number, width=size, height=40) for number, size in ((1, 40), (2, 20), (3, 40))]
    content = dict(images=images, annotations=[dict(image_id=1), dict(image_id=1), dict(image_id=2)])
    assert count_pictures(content, {}) == 3
    assert count_pictures(content, dict(filter_empty_gt=True)) == 2
    assert count_pictures(content, dict(filter_empty_gt=True, min_size=32)) == 1


# -- checkpoints of other classes --


@pytest.fixture
def checkpoint(renamed, tmp_path):
    """Of the classes `dog` and two others, untrained."""
    cfg = renamed("dog", "cat", "cow")
    fill(cfg)
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    model.init_weights()
    for value in model.roi_head.bbox_head.fc_cls.parameters():
        value.data.fill_(7.0)  # what no initialisation makes
    meta = dict(dataset_meta=dict(classes=("dog", "cat", "cow")))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "dog.pth")
    return tmp_path / "dog.pth"


@pytest.mark.parametrize(
    "names", [("one", "two", "three"), ("a", "b", "c", "d", "e")], ids=["as many", "more"]
)
def test_a_training_starts_from_other_classes(renamed, checkpoint, names, tmp_path, monkeypatch):
    cfg = renamed(*names)
    cfg.work_dir, cfg.experiment_name, cfg.epochs = str(tmp_path / "run"), f"start{len(names)}", 1
    monkeypatch.setenv("CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("WORK_DIR", str(tmp_path))
    cfg.train_cfg.val_interval = 99
    runner = RecipeRunner.from_cfg(cfg)
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    seen = {}

    def watch(batch, *_, **__):
        seen.update({key: value.clone() for key, value in runner.model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.model, "train_step", watch)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    for key, value in before.items():
        if ".fc_cls." in key:
            assert not (seen[key] == 7.0).any(), key
        else:
            assert torch.equal(seen[key], value), key
    notes = [row.get("text") for row in progress.read(tmp_path)]
    assert "starts from a checkpoint of other classes; made anew: roi_head.bbox_head.fc_cls" in notes


def test_layers_without_classes_stay(recipes):
    cfg = copy.deepcopy(recipes["vitdet-b"])
    set_classes(cfg, ("a", "b"))
    init_default_scope("mmdet")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    weights = dict(model.state_dict())
    assert drop_class_layers(model, {"state_dict": dict(weights)}, by_name=False) == ()
    gone = drop_class_layers(model, {"state_dict": weights}, by_name=True)
    assert gone == (
        "roi_head.bbox_head.fc_cls",
        "roi_head.bbox_head.fc_reg",
        "roi_head.mask_head.conv_logits",
    )
    assert not any(key.startswith(gone) for key in weights)


def test_an_evaluation_of_other_classes_is_refused(renamed, checkpoint, tmp_path, monkeypatch):
    """As many classes, so every shape fits."""
    cfg = renamed("one", "two", "three")
    cfg.work_dir, cfg.experiment_name, cfg.load_from = str(tmp_path / "run"), "other", str(checkpoint)
    launch.leave_training_out(cfg)
    with pytest.raises(
        CheckpointError, match=r"it has 3 classes \(dog, cat, cow\), the data set has 3 \(one, two"
    ):
        RecipeRunner.from_cfg(cfg).test()


def test_detection_takes_the_checkpoint_s_classes(renamed, checkpoint, tmp_path):
    assert Trained(renamed("dog", "cat", "cow"), str(checkpoint)).classes == ("dog", "cat", "cow")
    with pytest.raises(
        CheckpointError, match=r"not one of this model: it has 3 classes .*, the data set has 1 \(dog"
    ):
        Trained(renamed("dog"), str(checkpoint))
    cfg = renamed("dog")
    shutil.rmtree(tmp_path / "mine")  # no data set is needed
    assert Trained(cfg, str(checkpoint)).classes == ("dog", "cat", "cow")
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["state_dict"], tmp_path / "bare.pth")
    with pytest.raises(DataError, match="does not say its classes"):
        Trained(cfg, str(tmp_path / "bare.pth"))
    assert Trained(renamed("x", "y", "z"), str(tmp_path / "bare.pth")).classes == ("x", "y", "z")


def test_a_checkpoint_of_another_model_is_no_start(renamed, tmp_path, monkeypatch):
    torch.save({"state_dict": {"other.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    cfg = renamed("a", "b", "c")
    cfg.work_dir, cfg.experiment_name = str(tmp_path / "run"), "no start"
    monkeypatch.setenv("CHECKPOINT", str(tmp_path / "other.pth"))
    with pytest.raises(CheckpointError, match="nothing of it fits"):
        RecipeRunner.from_cfg(cfg).train()


@pytest.mark.parametrize("axes", [(0,), (0, 1)])
def test_a_flipped_picture_of_one_row_is_packed(axes):
    """What is left of a long thin picture when it is resized. A stride is negative, yet numpy calls it contiguous."""
    pixels = np.flip(np.arange(12, dtype=np.uint8).reshape(1, 4, 3), axes)
    assert min(pixels.strides) < 0
    packed = TRANSFORMS.build(dict(type="PackDetInputs", meta_keys=()))({"img": pixels})["inputs"]
    assert packed.tolist() == pixels.transpose(2, 0, 1).tolist()
