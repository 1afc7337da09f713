"""Masks made when they are asked for, against mmdet's own."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import vitdet
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from pycocotools import mask as coco_mask
from vitdet.data import fill
from vitdet.masks import DeferredMasks, LoadDeferredAnnotations, ReadyMasks, encode

CONFIGS = Path(vitdet.__file__).parent / "configs"


def _blobs(random, objects, height, width):
    masks = np.zeros((objects, height, width), np.uint8)
    for mask in masks[1:]:  # the first one stays empty
        centre = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(mask, centre, int(random.integers(1, max(2, height // 2))), 1, thickness=-1)
    return masks


def _deferred(bitmaps):
    """The masks, run-length encoded."""
    encoded = [coco_mask.encode(np.asfortranarray(bitmap)) for bitmap in bitmaps]
    return DeferredMasks.of(encoded, *bitmaps.shape[1:])


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
    stock, ours = BitmapMasks(annotated, *annotated.shape[1:]), _deferred(annotated)
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
        return _deferred(annotated).crop(np.array([3, 4, 20, 15]))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_gets_masks_made(workers):
    """A worker has chosen the rows and columns; padding to the size that they have copies nothing."""
    loader = torch.utils.data.DataLoader(_Samples(), batch_size=None, num_workers=workers)
    for index, received in enumerate(loader):
        assert isinstance(received, ReadyMasks if workers else DeferredMasks)
        assert np.array_equal(received.masks, _Samples()[index].masks)
        assert received.pad((received.height, received.width)) is received
        assert received.masks.flags.writeable


def test_annotations_of_every_kind_equal_mmdets():
    """Polygons in pieces, out of the image, of too few points; RLE in all its forms; and what is at the borders."""
    random, height, width = np.random.default_rng(0), 61, 83
    bitmaps = np.concatenate([_blobs(random, 5, height, width), np.ones((1, height, width), np.uint8)])
    bitmaps[0, -1, -1] = bitmaps[0, 0, 0] = 1
    encoded = [coco_mask.encode(np.asfortranarray(one)) for one in bitmaps]
    counts = [
        np.diff(np.flatnonzero(np.diff(one.T.ravel(), prepend=2, append=2))).tolist() for one in bitmaps
    ]
    masks = [
        *({"size": [height, width], "counts": one["counts"].decode()} for one in encoded),
        *(
            {"size": [height, width], "counts": [0, *runs] if one[0, 0] else runs}
            for one, runs in zip(bitmaps, counts, strict=True)
        ),
        *([random.uniform(-9, 90, 2 * points).tolist()] for points in (3, 4, 9)),
        [random.uniform(0, 40, 8).tolist(), random.uniform(30, 61, 10).tolist(), [1, 2, 3]],
        [[1, 1, 2, 2]],
        [],
        {"size": [height, width]},
    ]
    loaded = []
    for loader in (LoadAnnotations, LoadDeferredAnnotations):
        entries = [{"mask": mask, "ignore_flag": 0} for mask in masks]
        results = {"ori_shape": (height, width), "instances": entries}
        loader(with_bbox=False, with_label=False, with_mask=True)(results)
        loaded.append(results)
    theirs, ours = (results["gt_masks"] for results in loaded)
    assert np.array_equal(ours.masks[: len(bitmaps)], bitmaps)
    assert np.array_equal(ours.masks, theirs.masks)
    assert torch.equal(ours.get_bboxes("hbox").tensor, theirs.get_bboxes("hbox").tensor)
    assert np.array_equal(loaded[0]["gt_ignore_flags"], loaded[1]["gt_ignore_flags"])


@pytest.mark.parametrize(
    ("size", "counts", "reason"),
    [
        ([9, 8], [72], r"\[9, 8\] pixels in an image of \[8, 9\]"),
        ([8, 9], [7, 60], "67.* pixels, the image 8 x 9"),
    ],
)
def test_rle_of_another_size_is_refused(size, counts, reason):
    rle = encode({"size": size, "counts": counts}, *size)
    with pytest.raises(ValueError, match=reason):
        DeferredMasks.of([rle], 8, 9).masks  # noqa: B018


# A data loader's worker of ViTDet-B loads a picture of 4000 x 5000 pixels with so many objects of all sizes; the most
# memory of any worker so far, in MB.
WORKER = """
import json, os, resource, sys
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
from pathlib import Path
import cv2, numpy as np, torch_npu, vitdet
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from vitdet.data import fill
folder = Path(os.environ["ASCENDET_DATA"], "coco")
(folder / "annotations").mkdir(parents=True)
(folder / "train2017").mkdir()
cv2.imwrite(str(folder / "train2017" / "1.jpg"), np.zeros((4000, 5000, 3), np.uint8))
init_default_scope("mmdet")
for count in map(int, sys.argv[1:]):
    random = np.random.default_rng(0)
    things = []
    for number in range(1, count + 1):
        x, y = random.uniform(0, 4000), random.uniform(0, 3000)
        w, h = random.uniform(4, 1000, 2) if number % 8 == 0 else random.uniform(4, 80, 2)
        outline = [[x, y, x + w, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]]
        things.append(dict(id=number, image_id=1, category_id=1, bbox=[x, y, w, h], area=w * h, iscrowd=0,
                           segmentation=outline))
    content = dict(images=[dict(id=1, file_name="1.jpg", width=5000, height=4000)], annotations=things,
                   categories=[dict(id=1, name="thing")])
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    cfg = Config.fromfile(Path(vitdet.__file__).parent / "configs" / "vitdet-b.py")
    fill(cfg)
    cfg.train_dataloader.update(num_workers=1, batch_size=1, persistent_workers=False)
    for batch in Runner.build_dataloader(cfg.train_dataloader, seed=0):
        masks = batch["data_samples"][0].gt_instances.masks
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"{count} objects, {len(masks)} seen: {most} MB")
"""


def test_memory_does_not_grow_by_a_picture_per_object(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER, "4", "64"],
        env=os.environ | {"ASCENDET_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = (int(line.split()[-2]) for line in done.stdout.splitlines() if " seen: " in line)
    assert many - few < 60 * 4, "the picture's bitmap would be 20 MB per object"


def test_masks_of_several_images_are_joined():
    parts = [_blobs(np.random.default_rng(seed), 2, 9, 11) for seed in range(3)]
    joined = DeferredMasks.cat([_deferred(parts[0]), BitmapMasks(parts[1], 9, 11), _deferred(parts[2])])
    assert np.array_equal(joined.masks, np.concatenate(parts))


def test_a_copy_is_changed_alone():
    masks = _deferred(_blobs(np.random.default_rng(0), 2, 9, 11)).flip()
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
    stock, ours = BitmapMasks(annotated, 9, 11), _deferred(annotated)
    assert np.array_equal(_apply(ours, name, arguments).masks, _apply(stock, name, arguments).masks)


def test_polygons_stay_mmdets(coco):
    step = next(step for step in coco.pipeline if step.type == "LoadDeferredAnnotations")
    step.poly2mask = False
    assert isinstance(DATASETS.build(coco)[0]["data_samples"].gt_instances.masks, PolygonMasks)


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="'sideways'"):
        _deferred(np.zeros((1, 2, 2), np.uint8)).flip("sideways")


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
