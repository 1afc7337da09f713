import json
import platform
import tomllib

import numpy as np
import pytest
from ascendet import paths
from ascendet.core import files
from ascendet.run import score
from ascendet_common import shapes
from pycocotools import mask as coco_mask


def _make(out, *, seed=0, train=24, val=12):
    assert (
        shapes.main(["--out", str(out), "--seed", str(seed), "--train", str(train), "--val", str(val)]) == 0
    )
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _make(tmp_path_factory.mktemp("shapes"))


def _content(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def _annotations(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def test_equal_seeds_give_equal_bytes_and_others_do_not(folder, tmp_path):
    assert _content(_make(tmp_path / "same")) == _content(folder)
    other = _content(_make(tmp_path / "other", seed=1))
    assert other.keys() == _content(folder).keys()
    assert other["train/000001.png"] != _content(folder)["train/000001.png"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the acceptance bands were measured on x86_64")
def test_the_acceptance_bands_are_of_what_the_generator_makes(tmp_path):
    """Else `make eval` applies them to nothing: measure them again, and name the new annotations."""
    made = tomllib.loads((paths.REQUIREMENTS / "datasets.toml").read_text())["shapes"]
    folder = _make(tmp_path, seed=made["seed"], train=1, val=made["splits"]["val"])
    digest = files.digest(folder / "annotations" / "instances_val.json")
    bands = {
        file.stem: tomllib.loads(file.read_text())
        for file in (paths.REQUIREMENTS / "bands").glob("*_shapes.toml")
    }
    assert bands.keys() == {"vitdet-tiny_shapes", "blendmask-tiny_shapes"}
    assert {band["annotations"] for band in bands.values()} == {digest}


def test_a_larger_split_begins_with_the_smaller_one(folder, tmp_path):
    larger = _content(_make(tmp_path / "larger", train=26))
    smaller = _content(folder)
    images = [name for name in smaller if name.startswith("train/")]
    assert len(images) == 24
    assert all(larger[name] == smaller[name] for name in images)


def test_the_splits_share_no_image(folder):
    content = _content(folder)
    train = {content[name] for name in content if name.startswith("train/")}
    val = {content[name] for name in content if name.startswith("val/")}
    assert len(train) == 24
    assert len(val) == 12
    assert not train & val


def test_the_set_holds_what_it_promises(folder):
    content = _annotations(folder, "train")
    objects = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    crowds = [entry for entry in content["annotations"] if entry["iscrowd"]]
    assert {category["name"] for category in content["categories"]} == {"triangle", "rectangle", "star"}
    assert {entry["category_id"] for entry in objects} == {1, 2, 3}
    assert crowds, "some crowd regions"
    assert all(isinstance(entry["segmentation"]["counts"], list) for entry in crowds)
    areas = np.array([entry["area"] for entry in objects])
    assert (areas < 32**2).any(), "small objects"
    assert (areas > 96**2).any(), "large objects"
    polygons = [entry["segmentation"] for entry in objects if isinstance(entry["segmentation"], list)]
    assert any(len(pieces) > 1 for pieces in polygons), "objects that others cut in two"
    coded = [entry["segmentation"] for entry in objects if isinstance(entry["segmentation"], dict)]
    assert all(isinstance(rle["counts"], str) for rle in coded), "compressed, as tools write it"
    assert 0.02 < len(coded) / len(objects) < 0.3
    assert len({entry["id"] for entry in content["annotations"]}) == len(content["annotations"])


def test_it_holds_what_coco_holds():
    """Of 200 scenes: nothing, a crowd and nothing else, a tiny object among others."""
    scenes = [shapes.make_scene(np.random.default_rng(seed), 256, 256) for seed in range(200)]
    kinds = [[thing.crowd for thing in scene] for scene in scenes]
    areas = [thing.visible.area for scene in scenes for thing in scene if not thing.crowd]
    assert 0 < kinds.count([]) < 30
    assert 0 < kinds.count([True]) < 15
    tiny = [area for area in areas if area < shapes.TINY_AREA]
    assert 0 < len(tiny) < 30
    assert min(tiny) < 4**2
    assert max(map(len, scenes)) == 6


def test_a_split_is_counted(folder):
    content = _annotations(folder, "train")
    counts = shapes.check_split(folder, "train")
    assert counts["images"] == 24
    assert counts["objects"] + counts["crowds"] == len(content["annotations"])
    assert counts["crowds"] == sum(entry["iscrowd"] for entry in content["annotations"])
    assert counts["tiny"] <= counts["small"] < counts["objects"]
    assert counts["in pieces"] > 0
    assert counts["as RLE"] > 0
    annotated = {entry["image_id"] for entry in content["annotations"]}
    assert counts["empty"] == 24 - len(annotated)


def test_an_rle_of_another_size_is_found(folder, tmp_path):
    copy = _make(tmp_path / "copy")
    file = copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    coded = next(entry for entry in content["annotations"] if isinstance(entry["segmentation"], dict))
    coded["segmentation"]["size"].reverse()
    coded["segmentation"]["size"][0] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="an RLE of size"):
        shapes.check_split(copy, "train")


def test_masks_do_not_overlap_and_boxes_touch(folder):
    """An annotation is what is seen: at a pixel's centre there is one thing at most."""
    content = _annotations(folder, "val")
    overlaps = False
    for image in content["images"]:
        total = np.zeros((image["height"], image["width"]), int)
        boxes = []
        for entry in (entry for entry in content["annotations"] if entry["image_id"] == image["id"]):
            total += coco_mask.decode(shapes.as_rle(entry["segmentation"], image["height"], image["width"]))
            boxes.append(entry["bbox"])
        assert (total > 1).mean() < 0.01  # rounding along shared edges
        overlaps |= bool((np.triu(coco_mask.iou(boxes, boxes, [0] * len(boxes)), 1) > 0.05).any())
    assert overlaps, "objects lie over each other"


def test_a_wrong_area_is_found(folder, tmp_path):
    copy = _make(tmp_path / "copy")
    file = copy / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][3]["area"] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="val: annotation 4 has an area or box"):
        shapes.check_split(copy, "val")


def test_a_missing_image_is_found(folder, tmp_path):
    copy = _make(tmp_path / "copy")
    (copy / "val" / "000003.png").unlink()
    with pytest.raises(ValueError, match=r"val/000003\.png is missing"):
        shapes.check_split(copy, "val")


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_truth_as_predictions_scores_one(folder, kind):
    content = _annotations(folder, "val")
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    results = []
    for entry in content["annotations"]:
        if entry["iscrowd"]:
            continue
        rle = shapes.as_rle(entry["segmentation"], *sizes[entry["image_id"]])
        if isinstance(rle["counts"], bytes):
            rle["counts"] = rle["counts"].decode()
        results.append(
            {key: entry[key] for key in ("image_id", "category_id", "bbox")}
            | {"score": 0.9, "segmentation": rle}
        )
    numbers = score.score(content, results, kind)
    assert numbers["AP"] == pytest.approx(1.0)
    assert numbers["AR100"] == pytest.approx(1.0)
    wrong = [result | {"category_id": result["category_id"] % 3 + 1} for result in results]
    assert score.score(content, wrong, kind)["AP"] < 0.05
