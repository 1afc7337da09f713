"""Training steps in which something is missing: objects, regions, positives, negatives; on the CPU."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import vitdet
from empty_job import CASES
from mmdet.datasets import CocoDataset
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.registry import DATASETS, MODELS, TASK_UTILS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from stock import stock_mmdet
from vitdet.data import fill

JOB = Path(__file__).with_name("empty_job.py")
CONFIGS = Path(vitdet.__file__).parent / "configs"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the job says about stock mmdet and about ours."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "stock").mkdir()
    results = {}
    for whose, more in (("theirs", {"PYTHONPATH": str(stock_mmdet(folder / "stock"))}), ("ours", {})):
        file = folder / f"{whose}.json"
        done = subprocess.run(
            [sys.executable, JOB, whose, file],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ASCENDET_DATA": "data", **more},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        results[whose] = json.loads(file.read_text())
    return results


@pytest.mark.parametrize("case", CASES)
def test_losses_are_stock_mmdets(found, case):
    theirs, ours = (found[whose]["float32"][case]["losses"] for whose in ("theirs", "ours"))
    assert ("loss_cls" in theirs) == ("acc" in theirs)
    expected = {"loss_cls": 0.0} | theirs  # stock mmdet leaves it out where there are no regions
    assert ours == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_finite_and_reach_every_parameter(found, case, precision):
    """One rank's parameter without a gradient ends a training on several devices."""
    step = found["ours"][precision][case]
    assert all(math.isfinite(value) for value in step["losses"].values()), step["losses"]
    assert step["without gradient"] == step["not finite"] == []
    # Arithmetic in half precision is all that differs.
    assert step["losses"]["loss"] == pytest.approx(found["ours"]["float32"][case]["losses"]["loss"], rel=0.02)


@pytest.mark.parametrize("assigned", [[0, 0, 0], [1, 1, 1], [0, 1, 0], [-1, -1], [0], [1], []])
@pytest.mark.parametrize("kind", ["RandomSampler", "InstanceBalancedPosSampler", "IoUBalancedNegSampler"])
def test_samples_are_rows_of_four_however_few(kind, assigned):
    init_default_scope("mmdet")
    sampler = TASK_UTILS.build(dict(type=kind, num=8, pos_fraction=0.5, add_gt_as_proposals=False))
    count = len(assigned)
    inds = torch.tensor(assigned, dtype=torch.long)
    result = sampler.sample(
        AssignResult(1, inds, torch.zeros(count), torch.where(inds > 0, 0, -1)),
        InstanceData(priors=torch.arange(4.0 * count).view(count, 4)),
        InstanceData(bboxes=torch.ones(1, 4), labels=torch.zeros(1, dtype=torch.long)),
    )
    positives, negatives = ([i for i, one in enumerate(assigned) if one == of] for of in (1, 0))
    assert result.pos_inds.tolist() == positives
    assert result.neg_inds.tolist() == negatives
    assert result.priors.shape == (len(positives) + len(negatives), 4)
    assert result.pos_gt_bboxes.shape == (len(positives), 4)


def one_small_object_each(folder, pictures=20):
    """COCO's layout with `pictures` pictures of 640 x 480 pixels and one object of 8 to 40 pixels a side in each."""
    random = np.random.default_rng(0)
    (folder / "coco" / "train2017").mkdir(parents=True)
    (folder / "coco" / "annotations").mkdir()
    images, annotations = [], []
    for number in range(1, pictures + 1):
        name = f"{number}.jpg"
        picture = cv2.resize(random.integers(0, 256, (48, 64, 3), np.uint8), (640, 480))
        cv2.imwrite(str(folder / "coco" / "train2017" / name), picture)
        images.append({"id": number, "file_name": name, "width": 640, "height": 480})
        width, height = (int(side) for side in random.integers(8, 41, 2))
        left, top = int(random.integers(640 - width)), int(random.integers(480 - height))
        right, bottom = left + width, top + height
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [left, top, width, height],
                "area": width * height,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                "iscrowd": 0,
            }
        )
    categories = [{"id": k, "name": name} for k, name in enumerate(CocoDataset.METAINFO["classes"], 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def draw(dataset, draws):
    """Samples of the data set, each of an epoch of its own, so that the jitter differs."""
    return (dataset[(0, number // len(dataset), number % len(dataset))] for number in range(draws))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """ViTDet-B's training data, of one small object in each picture."""
    one_small_object_each(tmp_path)
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path))
    init_default_scope("mmdet")
    cfg = Config.fromfile(CONFIGS / "vitdet-b.py")
    for name in ("val_dataloader", "test_dataloader", "val_evaluator", "test_evaluator"):
        cfg.pop(name)
    fill(cfg)
    return cfg.train_dataloader.dataset


def test_large_scale_jitter_empties_pictures(recipe):
    counts = []
    for sample in draw(DATASETS.build(recipe), 200):
        assert sample["inputs"].shape == (3, 1024, 1024)
        objects = sample["data_samples"].gt_instances
        assert objects.bboxes.tensor.shape == (len(objects), 4)
        assert objects.masks.masks.shape == (len(objects), 1024, 1024)
        counts.append(len(objects))
    assert set(counts) == {0, 1}
    assert counts.count(0) < 50


def test_a_picture_that_the_crop_emptied_is_trained_on(recipe):
    """As the data loader gives it, beside one with its object and alone."""
    size = (128, 128)
    for step in recipe.pipeline:
        step.update(dict.fromkeys({"scale", "crop_size", "size"} & step.keys(), size))
    dataset = DATASETS.build(recipe)
    emptied, whole = (
        next(one for one in draw(dataset, 200) if len(one["data_samples"].gt_instances) == count)
        for count in (0, 1)
    )
    model = MODELS.build(Config.fromfile(CONFIGS / "vitdet-tiny.py").model).train()
    for batch in ([emptied], [emptied, emptied], [emptied, whole], [whole, emptied]):
        data = model.data_preprocessor(pseudo_collate(copy.deepcopy(batch)), True)
        total, parts = model.parse_losses(model(**data, mode="loss"))
        assert total.isfinite()
        assert (parts["loss_mask"] > 0) == any(sample is whole for sample in batch)
        model.zero_grad()
        total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
