"""From COCO's annotations to what the model learns: classes, masks, crowds, damaged files, order, batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import blendmask
import cv2
import numpy as np
import pytest
import torch
from ascendet_common.data import DataError
from blendmask.config import load
from blendmask.data import Batches, Pictures, load_split, to_train_on
from blendmask.mapper import Mapper
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import PolygonMasks
from pycocotools import mask as coco_mask

CONFIGS = Path(blendmask.__file__).parent / "configs"
STAR = [20.0, 5.0, 50.0, 40.0, 15.0, 55.0]
CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}]


def rle(compressed: bool) -> dict[str, Any]:
    mask = np.zeros((64, 96), np.uint8, order="F")
    mask[10:30, 40:80] = 1
    encoded = coco_mask.encode(mask)
    if compressed:
        return {"size": [64, 96], "counts": encoded["counts"].decode()}
    flat = np.diff(np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=2, append=2)))
    counts = flat.tolist() if mask[0, 0] == 0 else [0, *flat.tolist()]
    return {"size": [64, 96], "counts": counts}


OBJECTS = [
    {"image_id": 1, "category_id": 9, "bbox": [15, 5, 35, 50], "segmentation": [STAR], "iscrowd": 0},
    {"image_id": 1, "category_id": 4, "bbox": [40, 10, 40, 20], "segmentation": rle(True), "iscrowd": 0},
    {"image_id": 1, "category_id": 4, "bbox": [40, 10, 40, 20], "segmentation": rle(False), "iscrowd": 1},
    {"image_id": 1, "category_id": 9, "bbox": [60, 60, 0, 4], "segmentation": [[60, 60, 60, 64, 60, 62]]},
    {"image_id": 2, "category_id": 9, "bbox": [0, 0, 90, 60], "segmentation": rle(False), "iscrowd": 1},
    {"image_id": 4, "category_id": 4, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
    {"image_id": 4, "category_id": 77, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Image 1: a polygon, an RLE, a crowd, an object without width; 2: a crowd alone; 3: nothing; 4: a tiny object."""
    folder = tmp_path / "mine" / "train1"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(1, 5):
        pixels = draw.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    images = [
        {"id": number, "file_name": f"{number}.png", "height": 64, "width": 96} for number in range(1, 5)
    ]
    content = {
        "images": images,
        "annotations": [one | {"id": number} for number, one in enumerate(OBJECTS, 1)],
        "categories": CATEGORIES,
    }
    (tmp_path / "mine" / "annotations").mkdir()
    (tmp_path / "mine" / "annotations" / "instances_train1.json").write_text(json.dumps(content))
    return tmp_path / "mine"


def mapper(side: int = 64, *, training: bool = True) -> Mapper:
    cfg, _ = load(CONFIGS / "blendmask-tiny.yaml")
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (side,), 4 * side, "none"
    return Mapper(cfg, training=training)


def test_a_split_is_in_detectron2s_catalogs_with_the_files_classes(root: Path) -> None:
    split = load_split(root, "train")
    assert split.classes == ("dog", "cat")
    assert split.categories == (9, 4)
    assert DatasetCatalog.get("mine_train1") == split.found
    assert MetadataCatalog.get("mine_train1").thing_classes == ["dog", "cat"]
    assert [one["category_id"] for one in split.found[0]["annotations"]] == [0, 1, 1, 0]
    assert len(split.found[3]["annotations"]) == 1  # that of no listed category is left out
    assert load_split(root, "train").found == split.found  # again


def test_crowds_alone_and_empty_images_are_not_trained_on(root: Path) -> None:
    found = load_split(root, "train").found
    assert [record["image_id"] for record in to_train_on(found, "x")] == [1, 4]
    with pytest.raises(DataError, match="no image with an object"):
        to_train_on(found[1:3], "x")


def test_masks_are_detectron2s_and_the_classes_map_is_cocos(root: Path) -> None:
    sample = mapper()(load_split(root, "train").found[0])
    instances = sample["instances"]
    assert instances.gt_classes.tolist() == [0, 1]  # neither the crowd nor what has no width
    assert instances.gt_boxes.tensor.tolist() == [[15, 5, 50, 55], [40, 10, 80, 30]]
    star = PolygonMasks([[np.array(STAR)]]).crop_and_resize(instances.gt_boxes.tensor[:1], 28)[0]
    assert torch.equal(instances.gt_crops[0], star)
    assert instances.gt_crops[1].all()  # it fills its box
    semantic = np.zeros((64, 96), np.int16)
    semantic[coco_mask.decode(coco_mask.frPyObjects([STAR], 64, 96))[..., 0] > 0] = 1
    semantic[10:30, 40:80] = 2  # later objects over earlier ones
    assert np.array_equal(sample["basis_sem"].numpy(), semantic)


@pytest.mark.parametrize("side", [32, 64, 100])
def test_scaled_polygons_are_filled_as_in_the_whole_image(root: Path, side: int) -> None:
    record = load_split(root, "train").found[0] | {}
    record["annotations"] = record["annotations"][:1]
    sample = mapper(side)(record)
    height, width = sample["image"].shape[1:]
    scaled = (np.array(STAR).reshape(-1, 2) * [width / 96, height / 64]).ravel().tolist()
    whole = coco_mask.decode(coco_mask.frPyObjects([scaled], height, width))[..., 0]
    assert np.array_equal(sample["basis_sem"].numpy(), whole)


def test_an_object_without_a_mask_is_its_box(root: Path) -> None:
    record = load_split(root, "train").found[3] | {}
    record["annotations"] = [record["annotations"][0] | {"segmentation": []}]
    assert mapper()(record)["instances"].gt_crops.all()


def test_in_use_there_are_no_targets(root: Path) -> None:
    sample = mapper(training=False)(load_split(root, "train").found[0])
    assert sample.keys() == {"file_name", "height", "width", "image_id", "image"}
    assert sample["image"].shape == (3, 85, 128)
    assert (sample["height"], sample["width"]) == (64, 96)


def test_a_damaged_image_is_skipped_in_training_and_named_otherwise(root: Path) -> None:
    found = load_split(root, "train").found
    Path(found[0]["file_name"]).write_bytes(b"\x89PNG")
    pictures = Pictures([found[0], found[3]], mapper())
    assert pictures[(0, 0, 0)]["image_id"] == 4
    with pytest.raises(DataError, match="damaged image") as caught:
        mapper(training=False)(found[0])
    assert caught.value.name == "image-damaged"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": []}, "has no images"),
        ({"images": [{"id": 1, "file_name": "none.png", "height": 1, "width": 1}]}, "not in"),
        ({"images": [{"id": 1}]}, "no COCO instances file"),
        ({"categories": None}, "must be lists"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(root: Path, change: dict[str, Any], said: str) -> None:
    file = root / "annotations" / "instances_train1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DataError, match=said):
        load_split(root, "train")


def records(count: int) -> list[dict[str, Any]]:
    return [{"width": 9 if number % 3 else 5, "height": 7} for number in range(count)]


def taken(count: int, number: int, **more: Any) -> list[list[tuple[int, int, int]]]:
    return list(itertools.islice(iter(Batches(records(count), 2, seed=1, **more)), number))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_image_comes_once_per_epoch_over_all_ranks(ranks: int) -> None:
    draws = [
        draw
        for rank in range(ranks)
        for batch in taken(10, 60 // ranks, rank=rank, ranks=ranks)
        for draw in batch
    ]
    for epoch in range(5):
        assert sorted(index for _, number, index in draws if number == epoch) == list(range(10))


def test_batches_are_of_one_orientation() -> None:
    for batch in taken(10, 30, rank=0, ranks=1):
        assert len({records(10)[index]["width"] for _, _, index in batch}) == 1


def test_a_resumed_training_goes_on_with_the_next_batch() -> None:
    assert taken(10, 20, rank=1, ranks=2)[7:] == taken(10, 13, rank=1, ranks=2, skip=7)
