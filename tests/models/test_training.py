"""ViTDet-tiny trains, stops, resumes and is evaluated, through mmengine's runner as mmdet's tools build it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import vitdet
from ascendet_common.checkpoints import CheckpointError
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from vitdet.data import DataError, fill

CONFIGS = Path(vitdet.__file__).parent / "configs"
GENERATOR = Path(__file__).parents[2] / "wheels" / "common" / "ascendet_common" / "shapes.py"


@HOOKS.register_module()
class RecordLosses(Hook):
    """Keep every iteration's total loss, exactly."""

    losses: list[float]

    def before_run(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    subprocess.run(
        [sys.executable, GENERATOR, "--out", folder / "shapes", "--train", "8", "--val", "4"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def config(data, monkeypatch):
    monkeypatch.setenv("ASCENDET_DATA", str(data))

    def make(work_dir, **changed):
        cfg = Config.fromfile(CONFIGS / "vitdet-tiny.py")
        fill(cfg)
        cfg.work_dir = str(work_dir)
        cfg.experiment_name = work_dir.name
        cfg.train_dataloader.batch_size = 4
        cfg.train_cfg.max_epochs = 2
        cfg.train_cfg.val_interval = 9
        cfg.custom_hooks.append(dict(type="RecordLosses"))
        cfg.merge_from_dict(changed)
        return cfg

    return make


def _train(cfg):
    runner = Runner.from_cfg(cfg)
    runner.train()
    return next(hook for hook in runner.hooks if isinstance(hook, RecordLosses)).losses


def test_a_resumed_training_repeats_the_uninterrupted_one(config, tmp_path):
    whole = _train(config(tmp_path / "whole"))
    assert len(whole) == 4
    saved = tmp_path / "whole" / "epoch_1.pth"
    content = torch.load(saved, weights_only=True)  # by PyTorch's rules, nothing allowed
    assert content["meta"]["epoch"] == 1
    assert content["optimizer"]["state"]
    rest = _train(config(tmp_path / "rest", resume=True, load_from=str(saved)))
    assert rest == whole[2:]
    again = torch.load(tmp_path / "rest" / "epoch_2.pth", weights_only=True)["state_dict"]
    for key, value in torch.load(tmp_path / "whole" / "epoch_2.pth", weights_only=True)["state_dict"].items():
        assert torch.equal(value, again[key]), key


def test_a_checkpoint_is_tested_and_that_of_another_model_is_refused(config, tmp_path):
    cfg = config(tmp_path / "train", **{"train_cfg.max_epochs": 1})
    _train(cfg)
    saved = tmp_path / "train" / "epoch_1.pth"
    out = {"test_evaluator.outfile_prefix": str(tmp_path / "predictions"), "test_evaluator.format_only": True}
    Runner.from_cfg(config(tmp_path / "test", load_from=str(saved), **out)).test()
    for kind in ("bbox", "segm"):
        assert isinstance(json.loads((tmp_path / f"predictions.{kind}.json").read_text()), list)
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["backbone.extra"] = content["state_dict"].pop("neck.fpn1.0.bias")
    torch.save(content, tmp_path / "other.pth")
    runner = Runner.from_cfg(config(tmp_path / "refused", load_from=str(tmp_path / "other.pth"), **out))
    with pytest.raises(CheckpointError, match="not one of this model") as caught:
        runner.test()
    assert "missing: neck.fpn1.0.bias" in str(caught.value)
    assert "unexpected: backbone.extra" in str(caught.value)
    resumed = Runner.from_cfg(
        config(tmp_path / "resumed", resume=True, load_from=str(tmp_path / "other.pth"))
    )
    with pytest.raises(CheckpointError, match="not one of this model"):
        resumed.train()


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.py")))
def test_every_configuration_builds(name):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    init_default_scope("mmdet")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e5
    assert any(hook["type"] == "PlainCheckpointHook" for hook in cfg.custom_hooks)


@pytest.fixture
def coco(data, tmp_path, monkeypatch):
    """The generated images under COCO's names and in its layout."""
    names = {"triangle": "person", "rectangle": "car", "star": "dog"}
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "coco" / f"{split}2017").symlink_to(data / "shapes" / split)
        content = json.loads((data / "shapes" / "annotations" / f"instances_{split}.json").read_text())
        for category in content["categories"]:
            category["name"] = names[category["name"]]
        others = [name for name in CocoDataset.METAINFO["classes"] if name not in names.values()]
        content["categories"] += [dict(id=number, name=name) for number, name in enumerate(others, 100)]
        target = tmp_path / "coco" / "annotations" / f"instances_{split}2017.json"
        target.write_text(json.dumps(content))
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path))


def _dataset(cfg):
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    return DATASETS.build(cfg)


def _filled(model, dataset, monkeypatch, training=True):
    monkeypatch.setenv("DATASET", dataset)
    cfg = Config.fromfile(CONFIGS / f"{model}.py")
    fill(cfg, training=training)
    return cfg


def test_the_published_recipe_s_images_have_one_size(coco, monkeypatch):
    cfg = _filled("vitdet-b", "coco", monkeypatch)
    train, val = _dataset(cfg.train_dataloader.dataset), _dataset(cfg.val_dataloader.dataset)
    for _ in range(3):  # the jitter is drawn anew each time
        sample = train[0]
        assert sample["inputs"].shape == (3, 1024, 1024)
        assert sample["data_samples"].gt_instances.masks.masks.shape[1:] == (1024, 1024)
    assert val[0]["inputs"].shape == (3, 1024, 1024)


def test_a_part_is_evaluated_with_its_own_annotations(coco, tmp_path, monkeypatch):
    (tmp_path / "coco-val200" / "annotations").mkdir(parents=True)
    file = tmp_path / "coco-val200" / "annotations" / "instances_val2017.json"
    shutil.copy(tmp_path / "coco" / "annotations" / file.name, file)
    cfg = _filled("vitdet-b", "coco-val200", monkeypatch, training=False)
    assert cfg.test_dataloader.dataset.data_root == f"{tmp_path}/coco-val200/"
    assert cfg.test_dataloader.dataset.ann_file == "annotations/instances_val2017.json"
    assert cfg.test_evaluator.ann_file == str(file)
    with pytest.raises(DataError, match="no split for train"):
        _filled("vitdet-b", "coco-val200", monkeypatch)


def test_the_tiny_model_takes_coco_with_its_80_classes(coco, monkeypatch):
    cfg = _filled("vitdet-tiny", "coco", monkeypatch)
    train = _dataset(cfg.train_dataloader.dataset)
    assert len(train.metainfo["classes"]) == 80
    assert max(train[0]["inputs"].shape) == 128


def test_overfitting_evaluates_the_images_that_it_trains_on(coco, monkeypatch):
    cfg = _filled("vitdet-b-overfit", "coco", monkeypatch)
    train, val = _dataset(cfg.train_dataloader.dataset), _dataset(cfg.val_dataloader.dataset)
    assert len(train) == len(val) == 7, "one of the 8 pictures has no objects"
    for index in range(7):
        assert train[index]["data_samples"].img_path == val[index]["data_samples"].img_path
        assert torch.equal(train[index]["inputs"], val[index]["inputs"])
    truth = val[0]["data_samples"].instances
    assert len(truth) == len(train[0]["data_samples"].gt_instances) + len(
        train[0]["data_samples"].ignored_instances
    )
    assert "mask" in truth[0]
