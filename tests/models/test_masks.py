"""Masks made when they are asked for, against mmdet's own."""

import copy
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import vitdet
from mmdet.registry import DATASETS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from vitdet.data import fill
from vitdet.masks import DeferredMasks

CONFIGS = Path(vitdet.__file__).parent / "configs"


def _blobs(random, objects, height, width):
    masks = np.zeros((objects, height, width), np.uint8)
    for mask in masks[1:]:  # the first one stays empty
        centre = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(mask, centre, int(random.integers(1, max(2, height // 2))), 1, thickness=-1)
    return masks


def _step(random, height, width):
    """A random change and its arguments, for masks of this size."""
    name = str(random.choice(["flip", "rescale", "resize", "crop", "pad", "index"]))
    if name == "flip":
        return name, (str(random.choice(["horizontal", "vertical", "diagonal"])),)
    if name == "rescale":
        return name, ((int(random.integers(8, 130)), int(random.integers(8, 130))),)
    if name == "resize":
        return name, (tuple(int(side) for side in random.integers(1, 130, 2)),)
    if name == "crop":
        left, top = int(random.integers(width)), int(random.integers(height))
        right, bottom = left + int(random.integers(0, width)), top + int(random.integers(0, height))
        return name, (np.array([left, top, right, bottom]),)
    if name == "pad":
        return name, ((height + int(random.integers(20)), width + int(random.integers(20))),)
    return name, (np.flatnonzero(random.random(64) < 0.7),)


def _apply(masks, name, arguments):
    if name == "index":
        return masks[arguments[0][arguments[0] < len(masks)]]
    return getattr(masks, name)(*arguments)


@pytest.mark.parametrize("seed", range(40))
def test_any_sequence_of_changes_equals_mmdets(seed):
    random = np.random.default_rng(seed)
    annotated = _blobs(random, int(random.integers(0, 6)), *(int(side) for side in random.integers(1, 90, 2)))
    stock, ours = BitmapMasks(annotated, *annotated.shape[1:]), DeferredMasks(annotated)
    for _ in range(6):
        change = _step(random, stock.height, stock.width)
        stock, ours = _apply(stock, *change), _apply(ours, *change)
        assert isinstance(ours, DeferredMasks)
        assert (len(ours), ours.height, ours.width) == (len(stock), stock.height, stock.width)
        assert torch.equal(
            ours.get_bboxes(HorizontalBoxes).tensor, stock.get_bboxes(HorizontalBoxes).tensor
        ), change
    assert ours.masks.dtype == stock.masks.dtype
    assert np.array_equal(ours.masks, stock.masks)
    assert np.array_equal(pickle.loads(pickle.dumps(ours)).masks, stock.masks)


class _Samples(torch.utils.data.Dataset):
    """Masks of 0, 1 and 2 objects, cut out of annotated ones."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        annotated = _blobs(np.random.default_rng(index), index, 30, 40)
        return DeferredMasks(annotated).crop(np.array([3, 4, 20, 15]))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_gets_masks_made(workers):
    """A worker has chosen the rows and columns; padding to the size that they have copies nothing."""
    loader = torch.utils.data.DataLoader(_Samples(), batch_size=None, num_workers=workers)
    for index, received in enumerate(loader):
        assert ("masks" in vars(received)) == (workers > 0)
        assert np.array_equal(received.masks, _Samples()[index].masks)
        assert received.pad((received.height, received.width)) is received
        assert received.masks.flags.writeable


def test_masks_of_several_images_are_joined():
    parts = [_blobs(np.random.default_rng(seed), 2, 9, 11) for seed in range(3)]
    joined = DeferredMasks.cat(
        [DeferredMasks(parts[0]), BitmapMasks(parts[1], 9, 11), DeferredMasks(parts[2])]
    )
    assert np.array_equal(joined.masks, np.concatenate(parts))


def test_a_copy_is_changed_alone():
    masks = DeferredMasks(_blobs(np.random.default_rng(0), 2, 9, 11)).flip()
    other = copy.deepcopy(masks)
    other.masks[:] = 0
    assert masks.masks.any()
    assert np.array_equal(other.flip().masks, np.zeros((2, 9, 11)))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resize", ((20, 30), "bilinear")), ("pad", ((20, 30), 1)), ("translate", ((9, 11), 3))],
)
def test_what_interpolates_or_fills_is_mmdets(name, arguments):
    annotated = _blobs(np.random.default_rng(0), 3, 9, 11)
    stock, ours = BitmapMasks(annotated, 9, 11), DeferredMasks(annotated)
    assert np.array_equal(_apply(ours, name, arguments).masks, _apply(stock, name, arguments).masks)


def test_polygons_stay_mmdets(coco):
    step = next(step for step in coco.pipeline if step.type == "LoadDeferredAnnotations")
    step.poly2mask = False
    assert isinstance(DATASETS.build(coco)[0]["data_samples"].gt_instances.masks, PolygonMasks)


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="'sideways'"):
        DeferredMasks(np.zeros((1, 2, 2), np.uint8)).flip("sideways")


@pytest.fixture
def coco(tmp_path, monkeypatch):
    """A folder of data sets with three images; one object is a crowd, one lies on the border."""
    random = np.random.default_rng(3)
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    images, annotations = [], []
    for number, (width, height) in enumerate([(90, 60), (61, 90), (128, 128)], 1):
        name = f"{number}.png"
        cv2.imwrite(
            str(tmp_path / "coco" / "train2017" / name), random.integers(0, 256, (height, width, 3), np.uint8)
        )
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for left, top, right, bottom in ((0, 0, 40, 30), (20, 10, width - 3, height - 9), (50, 40, 58, 55)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "segmentation": [[left, top, right, top, right, bottom, left, (top + bottom) / 2]],
                    "iscrowd": int(len(annotations) == 2),
                }
            )
    init_default_scope("mmdet")
    monkeypatch.setenv("ASCENDET_DATA", str(tmp_path))
    cfg = Config.fromfile(CONFIGS / "vitdet-b.py")
    categories = [
        {"id": k, "name": name} for k, name in enumerate(DATASETS.get("CocoDataset").METAINFO["classes"], 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    for split in ("train2017", "val2017"):
        (tmp_path / "coco" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    fill(cfg)
    return cfg.train_dataloader.dataset


def test_the_recipes_samples_are_those_of_mmdets_own_transforms(coco):
    """Large-scale jitter: image, boxes, labels and masks, every bit."""
    stock = copy.deepcopy(coco)
    stock.type = "CocoDataset"
    for step in stock.pipeline:
        step.type = {
            "LoadCheckedImage": "LoadImageFromFile",
            "LoadDeferredAnnotations": "LoadAnnotations",
        }.get(step.type, step.type)
    datasets = [DATASETS.build(stock), DATASETS.build(coco)]
    objects = 0
    for seed in range(24):
        samples = []
        for dataset in datasets:
            set_random_seed(seed)
            samples.append(dataset[seed % len(dataset)])
        theirs, ours = samples
        assert torch.equal(theirs["inputs"], ours["inputs"])
        assert ours["inputs"].is_contiguous()
        one, other = (sample["data_samples"].gt_instances for sample in samples)
        assert torch.equal(one.bboxes.tensor, other.bboxes.tensor)
        assert torch.equal(one.labels, other.labels)
        assert isinstance(other.masks, DeferredMasks)
        assert np.array_equal(one.masks.masks, other.masks.masks)
        objects += len(one)
        assert theirs["data_samples"].metainfo == ours["data_samples"].metainfo
    assert objects > 24
