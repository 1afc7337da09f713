"""The validation that chooses the best checkpoint: its numbers depend on no id."""

import json
import random

import pytest
import torch
from mmdet.evaluation import CocoMetric
from truths import IDS, PER_IMAGE, encode, make_truth, perfect
from vitdet.dataset import DataError
from vitdet.predictions import NumberedCocoMetric


def _samples(truth, *, results=None):
    """What the model and the data set hand to the metric, image by image; it finds `results`, else everything."""
    labels = {category["id"]: label for label, category in enumerate(truth["categories"])}
    results = perfect(truth) if results is None else results
    for image in truth["images"]:
        found = [one for one in results if one["image_id"] == image["id"]]
        objects = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        yield {
            "img_id": image["id"],
            "ori_shape": (image["height"], image["width"]),
            "pred_instances": {
                "bboxes": _corners(found),
                "scores": torch.tensor([one["score"] for one in found]),
                "labels": torch.tensor([labels[one["category_id"]] for one in found], dtype=torch.long),
                "masks": [one["segmentation"] for one in found],
            },
            "instances": [
                {
                    "bbox": box,
                    "bbox_label": labels[one["category_id"]],
                    "ignore_flag": one["iscrowd"],
                    "mask": encode(one, image),
                }
                for one, box in zip(objects, _corners(objects).tolist(), strict=True)
            ],
        }


def _corners(entries):
    """Boxes as (x1, y1, x2, y2), shape (n, 4)."""
    boxes = torch.tensor([one["bbox"] for one in entries], dtype=torch.float64).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def _metric(truth, tmp_path, kind=NumberedCocoMetric, **options):
    file = tmp_path / "val.json"
    file.write_text(json.dumps(truth))
    metric = kind(**({"ann_file": str(file), "metric": ["bbox", "segm"]} | options))
    metric.dataset_meta = {"classes": [category["name"] for category in truth["categories"]]}
    return metric


def _evaluate(metric, truth, **options):
    samples = list(_samples(truth, **options))
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize("travelling", [False, True], ids=["from the file", "with the images"])
@pytest.mark.parametrize("seed", range(15))
def test_the_truth_as_predictions_scores_one(tmp_path, seed, travelling):
    draw = random.Random(seed)
    kinds = list(IDS)
    truth = make_truth(draw, kinds[seed % 9], kinds[(seed + 4) % 9], kinds[seed % 10])
    something = any(not one["iscrowd"] for one in truth["annotations"])
    metric = _metric(truth, tmp_path, **({"ann_file": None} if travelling else {}))
    for _ in range(2):  # a training validates more than once
        numbers = _evaluate(metric, truth)
        for kind in ("bbox", "segm"):
            assert numbers[f"coco/{kind}_mAP"] == (1 if something else -1)
            assert {numbers[f"coco/{kind}_mAP_{part}"] for part in ("50", "75", "s", "m", "l")} <= {1, -1}


def _few(objects, images="from one"):
    """A data set of few objects, none a crowd, and of 2 images at least."""
    for seed in range(1000):
        truth = make_truth(random.Random(seed), images, "from one", objects)
        crowds = any(one["iscrowd"] for one in truth["annotations"])
        if 2 <= len(truth["annotations"]) <= PER_IMAGE and not crowds and len(truth["images"]) > 1:
            return truth
    raise AssertionError


def test_the_names_are_those_of_mmdet_and_its_numbers_were_wrong(tmp_path):
    usual, zero = _few("from one"), _few("from zero")
    theirs = _evaluate(_metric(usual, tmp_path, CocoMetric), usual)
    assert _evaluate(_metric(usual, tmp_path), usual) == theirs
    assert _evaluate(_metric(zero, tmp_path, CocoMetric), zero)["coco/bbox_mAP"] < 1, "or ours is not needed"
    assert _evaluate(_metric(zero, tmp_path), zero) == theirs


def test_nothing_found_is_an_ap_of_0(tmp_path):
    truth = _few("from zero")
    numbers = _evaluate(_metric(truth, tmp_path), truth, results=[])
    assert (numbers["coco/bbox_mAP"], numbers["coco/segm_mAP"]) == (0, 0)


def test_result_files_keep_the_ids(tmp_path):
    truth = _few("text", images="numbers and text")
    out = tmp_path / "predictions"
    _evaluate(_metric(truth, tmp_path, format_only=True, outfile_prefix=str(out)), truth)
    results = json.loads(out.with_suffix(".segm.json").read_text())
    ids = {(one["image_id"], one["category_id"]) for one in results}
    assert ids == {(one["image_id"], one["category_id"]) for one in truth["annotations"]}


def test_images_of_other_annotations_are_refused(tmp_path):
    truth = _few("from one")
    metric = _metric(truth, tmp_path)
    truth["images"][0]["id"] = "another"
    with pytest.raises(DataError, match="lack 1 images, such as 'another'"):
        _evaluate(metric, truth)
