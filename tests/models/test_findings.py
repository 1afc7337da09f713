"""wheels/common's findings: what is counted must be what COCO's evaluation counts."""

import contextlib
import copy
import doctest
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import PIL.Image
import pytest
from ascendet_common import svg
from ascendet_common.findings import __main__ as program
from ascendet_common.findings import charts, inputs, masks, matching, numbers, words
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = 96  # of a picture, in pixels


def _rle(box):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    left, top, width, height = (round(edge) for edge in box)
    mask[top : top + height, left : left + width] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _polygon(box):
    left, top, width, height = box
    return [[left, top, left + width, top, left + width, top + height, left, top + height]]


def _uncompressed(box):
    pixels = coco_mask.decode(_rle(box)).ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *changes, pixels.size]).tolist()
    return {"size": [SIZE, SIZE], "counts": [0, *runs] if pixels[0] else runs}


def _object(image, category, box, *, crowd=0, form=_polygon):
    mask = (_uncompressed if crowd else form)(box)
    fields = dict(image_id=image, category_id=category, bbox=list(box), area=box[2] * box[3])
    return fields | dict(iscrowd=crowd, segmentation=mask)


def _detection(image, category, box, score):
    return dict(image_id=image, category_id=category, bbox=list(box), score=score, segmentation=_rle(box))


def _annotations(objects, *, images=(1,), categories=((1, "cat"), (2, "dog"))):
    return dict(
        images=[dict(id=one, file_name=f"{one}.png", height=SIZE, width=SIZE) for one in images],
        categories=[dict(id=one, name=name) for one, name in categories],
        annotations=[item | dict(id=at) for at, item in enumerate(objects, 1)],
    )


def _write(folder, annotations, detections, images=None, split="val"):
    """Write an evaluation as `make eval` leaves it."""
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(annotations))
    ids = [image["id"] for image in annotations["images"]] if images is None else list(images)
    (folder / "images.json").write_text(json.dumps(dict(annotations=str(file), images=ids)))
    (folder / "predictions.json").write_text(json.dumps(detections))
    return folder


def _read(folder):
    return inputs.read(folder / "predictions.json", folder / "images.json")


def _findings(folder, *words):
    """Run the program as `make report` does; return findings.json."""
    out = folder / "findings"
    out.mkdir(exist_ok=True)
    files = [f"--predictions={folder / 'predictions.json'}", f"--images={folder / 'images.json'}"]
    program.main([*files, f"--out={out}", *words])
    return json.loads((out / "findings.json").read_text())


def _random(seed, *, images=12, gaps=(2, 3, 7, 90)):
    """Return annotations and detections with all that COCO has: crowds, all forms of masks, ties, crowded pictures."""
    rng = np.random.default_rng(seed)
    ids = sorted(rng.choice(1000, images, replace=False).tolist())
    objects, detections = [], []
    for image in ids[:-1]:  # the last one has no object
        for _ in range(int(rng.integers(0, 9))):
            box = [*rng.integers(0, 60, 2).tolist(), *rng.integers(2, 36, 2).tolist()]
            category, crowd = int(rng.choice(gaps[:-1])), int(rng.random() < 0.15)
            form = (_polygon, _rle, _uncompressed)[int(rng.integers(3))]
            objects += [_object(image, category, box, crowd=crowd, form=form)] * (
                2 if rng.random() < 0.1 else 1
            )
            for _ in range(int(rng.integers(0, 6))):
                near = np.clip(np.array(box) + rng.integers(-5, 6, 4) * (rng.random() < 0.8), 0, 60)
                label = category if rng.random() < 0.75 else int(rng.choice(gaps))
                near = [*near[:2].tolist(), *np.maximum(near[2:], 1).tolist()]
                detections.append(_detection(image, label, near, round(float(rng.random()), 1)))
    for image in rng.choice(ids, 20).tolist():
        box = [*rng.integers(0, 80, 2).tolist(), 10, 10]
        detections.append(_detection(image, int(rng.choice(gaps)), box, round(float(rng.random()), 1)))
    for _ in range(130):  # more than COCO counts
        box = [*rng.integers(0, 60, 2).tolist(), *rng.integers(10, 36, 2).tolist()]
        detections.append(_detection(ids[0], gaps[0], box, round(float(rng.random()), 2)))
    order = rng.permutation(len(detections))
    names = [(one, f"class {one}") for one in gaps]
    return _annotations(objects, images=ids, categories=names), [detections[at] for at in order]


def _pycocotools(annotations, detections, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        found = copy.deepcopy(detections)
        if kind == "segm":
            found = [{key: value for key, value in item.items() if key != "bbox"} for item in found]
        evaluation = COCOeval(truth, truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_matches_and_precision_are_those_of_pycocotools(tmp_path, kind, seed):
    annotations, detections = _random(seed)
    evaluation = _read(_write(tmp_path, annotations, detections))
    pairs = matching.pair(evaluation, kind)
    expected = _pycocotools(annotations, detections, kind)
    for at, iou in enumerate(numbers.THRESHOLDS):
        matches = matching.match(evaluation, pairs, iou)
        objects = np.full(len(detections), -1)
        seen = np.zeros(len(detections), bool)
        ignored = np.zeros(len(detections), bool)
        for part in expected.evalImgs:
            if part is None or part["aRng"] != expected.params.areaRng[0]:
                continue
            rows = np.array(part["dtIds"], int) - 1
            seen[rows] = True
            ignored[rows] = part["dtIgnore"][at].astype(bool)
            objects[rows] = np.where(ignored[rows], -1, part["dtMatches"][at].astype(int) - 1)
        assert (objects >= 0).any()
        assert np.array_equal(matches.truth, objects)
        assert np.array_equal(matches.ignored, ignored | ~seen)
    assert np.array_equal(numbers.precision(evaluation, pairs), expected.eval["precision"][:, :, :, 0, -1])


def _counts(folder, objects, detections, score=0.3, **options):
    evaluation = _read(_write(folder, _annotations(objects, **options), detections))
    shown = evaluation.found.score >= score
    pairs = matching.pair(evaluation, "bbox")
    matches = matching.match(evaluation, pairs, matching.IOU)
    kinds, missed = numbers.classify(evaluation, pairs, matches, shown)
    return kinds.tolist(), missed.tolist(), numbers.confusion(evaluation, pairs, matches, shown).tolist()


WHOLE = [10, 10, 40, 20]  # a part of it that is 20 * share high overlaps it by that share


@pytest.mark.parametrize(
    ("category", "box", "kind", "missed"),
    [
        (1, [10, 10, 40, 12], "correct", False),  # IoU 0.6
        (1, [10, 10, 40, 10], "correct", False),  # exactly 0.5
        (1, [10, 10, 40, 9], "place", False),  # 0.45
        (1, [10, 10, 40, 2], "place", False),  # exactly 0.1
        (1, [10, 10, 20, 3], "background", True),  # 0.075
        (1, [60, 60, 20, 20], "background", True),
        (2, [10, 10, 40, 12], "class", False),
        (2, [10, 10, 40, 9], "both", True),
        (2, [10, 10, 20, 3], "background", True),
    ],
)
def test_one_detection_is_of_the_kind_that_TIDE_says(tmp_path, category, box, kind, missed):
    kinds, left, _ = _counts(tmp_path, [_object(1, 1, WHOLE)], [_detection(1, category, box, 0.9)])
    assert (kinds, left) == ([kind], [missed])


def test_of_two_detections_of_an_object_the_better_one_is_correct(tmp_path):
    detections = [_detection(1, 1, WHOLE, 0.5), _detection(1, 1, [10, 10, 40, 12], 0.8)]
    assert _counts(tmp_path, [_object(1, 1, WHOLE)], detections)[:2] == (["duplicate", "correct"], [False])


def test_a_detection_below_the_score_neither_finds_nor_errs(tmp_path):
    detections = [_detection(1, 1, WHOLE, 0.29)]
    assert _counts(tmp_path, [_object(1, 1, WHOLE)], detections) == (
        [""],
        [True],
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
    )


def test_what_lies_in_a_crowd_of_its_class_does_not_count(tmp_path):
    inside = [12, 12, 4, 4]
    objects = [_object(1, 1, WHOLE, crowd=1)]
    detections = [_detection(1, 1, inside, 0.9), _detection(1, 1, WHOLE, 0.8), _detection(1, 2, inside, 0.7)]
    kinds, missed, matrix = _counts(tmp_path, objects, detections)
    assert (kinds, missed) == (["", "", "background"], [False])
    assert matrix == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_confusion_counts_each_object_and_each_detection_once(tmp_path):
    far, other = [60, 60, 20, 20], [60, 10, 20, 20]
    objects = [_object(1, 1, WHOLE), _object(1, 2, far), _object(1, 1, other)]
    detections = [
        _detection(1, 2, WHOLE, 0.95),  # would take the object if its own class did not come first
        _detection(1, 1, WHOLE, 0.9),
        _detection(1, 1, far, 0.8),
        _detection(1, 1, far, 0.7),  # the object is taken
    ]
    _, _, matrix = _counts(tmp_path, objects, detections)
    assert matrix == [
        [1, 0, 1],  # cats: one found, one missed
        [1, 0, 0],  # the dog was detected as a cat
        [1, 1, 0],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_add_up(tmp_path, seed):
    annotations, detections = _random(seed)
    found = _findings(_write(tmp_path, annotations, detections), "--score=0.45", f"--pictures={tmp_path}")
    assert found["kinds"] == ["bbox", "segm"]
    for row in found["errors"].values():
        assert all(row["counts"].values())
        assert sum(row["counts"].values()) - row["counts"]["missed"] + row["ignored"] == found["shown"]
    matrix = np.array(found["confusion"]["matrix"])
    assert np.trace(matrix) == found["errors"]["bbox"]["counts"]["correct"]
    assert matrix[:-1].sum(1).tolist() == [row["objects"] for row in found["classes"]]
    assert matrix.sum() - matrix[:-1, -1].sum() + found["errors"]["bbox"]["ignored"] == found["shown"]
    assert sum(row["detections"] for row in found["classes"]) == found["shown"]
    assert found["crowd"] + found["objects"] == len(annotations["annotations"])


def _picture(file, height=SIZE, width=SIZE):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file)


def _with_pictures(folder, annotations, detections, **options):
    for image in annotations["images"]:
        _picture(folder / "val" / image["file_name"])
    return _write(folder, annotations, detections, **options)


def test_the_folder_holds_what_the_contract_says_and_nothing_else(tmp_path):
    annotations, detections = _random(1)
    found = _findings(_with_pictures(tmp_path, annotations, detections))
    files = {file.name for file in (tmp_path / "findings").iterdir()}
    pictures = [picture["file"] for picture in found["pictures"]]
    assert files == {"findings.json", *found["charts"].values(), *pictures}
    assert [picture["role"] for picture in found["pictures"]] == ["best"] * 3 + ["worst"] * 3 + [
        "example"
    ] * 3
    assert len({picture["image_id"] for picture in found["pictures"]}) == 9
    qualities = [picture["quality"] for picture in found["pictures"]]
    assert sorted(qualities[:3], reverse=True) == qualities[:3]
    assert sorted(qualities[3:6]) == qualities[3:6]
    assert min(qualities[:3]) >= max(qualities[6:]) >= min(qualities[6:]) >= max(qualities[3:6])
    for picture in found["pictures"]:
        objects = sum(
            item["image_id"] == picture["image_id"] and not item["iscrowd"]
            for item in annotations["annotations"]
        )
        assert picture["correct"] + picture["missed"] == objects
    assert sum((tmp_path / "findings" / name).stat().st_size for name in pictures) < 1_500_000
    widths = [PIL.Image.open(tmp_path / "findings" / name).size[0] for name in pictures]
    assert 880 < max(widths) <= 900
    assert found["notes"] == []


def test_equal_inputs_give_equal_bytes(tmp_path):
    annotations, detections = _random(2)
    _findings(_with_pictures(tmp_path, annotations, detections))
    first = {file.name: file.read_bytes() for file in (tmp_path / "findings").iterdir()}
    _findings(tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "findings").iterdir()} == first


def test_quality_is_one_for_a_perfect_picture_and_falls_with_each_flaw(tmp_path):
    objects = [_object(one, 1, box) for one in (1, 2, 3, 4) for box in (WHOLE, [60, 60, 20, 20])]
    detections = [_detection(one, 1, box, 0.9) for one in (1, 2) for box in (WHOLE, [60, 60, 20, 20])]
    detections += [_detection(2, 1, [40, 40, 10, 10], 0.9)]  # a wrong one
    detections += [_detection(3, 1, WHOLE, 0.9)]  # one is missed
    detections += [_detection(5, 1, WHOLE, 0.9)]  # no object is there, nor in 6
    evaluation = _read(_write(tmp_path, _annotations(objects, images=range(1, 7)), detections))
    shown = evaluation.found.score >= 0.3
    matches = matching.match(evaluation, matching.pair(evaluation, "segm"), matching.IOU)
    rows = numbers.of_images(evaluation, matches, shown)
    assert rows["quality"] == pytest.approx([1, 4 / 5, 2 / 3, 0, 0, 1])
    assert rows["missed"].tolist() == [0, 0, 1, 2, 0, 0]
    assert rows["wrong"].tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("case", ["nothing found", "nothing there", "neither", "no class"])
def test_an_empty_side_is_no_error(tmp_path, case, language):
    categories = () if case == "no class" else ((1, "cat"), (7, "狗"))
    objects = [_object(1, 1, WHOLE)] if case == "nothing found" else []
    detections = [_detection(1, 7, WHOLE, 0.9)] if case == "nothing there" else []
    annotations = _annotations(objects, images=(1, 2), categories=categories)
    found = _findings(_with_pictures(tmp_path, annotations, detections), f"--language={language}")
    assert found["kinds"] == ["bbox", "segm"]
    for row in found["errors"].values():
        assert row["counts"]["missed"] == len(objects)
        assert row["counts"]["background"] == len(detections)
    for lines in found["precision_recall"].values():
        assert lines["mean"] == ([[round(at / 100, 2), 0] for at in range(101)] if objects else [])
    assert len(found["pictures"]) == 2


def test_classes_without_objects_do_not_lower_the_curves(tmp_path):
    annotations = _annotations([_object(1, 1, WHOLE)])
    found = _findings(_with_pictures(tmp_path, annotations, [_detection(1, 1, WHOLE, 0.9)]))
    assert found["precision_recall"]["segm"]["mean"] == [[round(at / 100, 2), 1] for at in range(101)]
    assert [row["objects"] for row in found["classes"]] == [1, 0]


def test_boxes_alone_and_masks_alone_are_compared(tmp_path):
    annotations = _annotations([_object(1, 1, WHOLE)])
    whole = _detection(1, 1, WHOLE, 0.9)
    boxes = {key: value for key, value in whole.items() if key != "segmentation"}
    masks = {key: value for key, value in whole.items() if key != "bbox"}
    assert _findings(_with_pictures(tmp_path, annotations, [boxes]))["kinds"] == ["bbox"]
    found = _findings(_write(tmp_path, annotations, [masks]))
    assert found["kinds"] == ["segm"]
    assert found["confusion"]["matrix"][0][0] == 1
    for item in annotations["annotations"]:
        item["segmentation"] = []  # as tools write it that know boxes only
    found = _findings(_write(tmp_path, annotations, [whole]))
    assert found["kinds"] == ["bbox"]
    assert len(found["notes"]) == 1


def test_a_part_of_the_split_is_compared_with_its_objects_only(tmp_path):
    objects = [_object(one, 1, WHOLE) for one in (1, 2, 3)]
    annotations = _annotations(objects, images=(1, 2, 3))
    found = _findings(
        _write(tmp_path, annotations, [_detection(2, 1, WHOLE, 0.9)], images=[2]), "--language=zh"
    )
    assert (found["images"], found["objects"]) == (1, 1)
    assert found["errors"]["segm"]["counts"]["missed"] == 0


def test_pictures_that_cannot_be_read_are_named_and_leave_the_numbers(tmp_path):
    annotations, detections = _random(3)
    folder = _with_pictures(tmp_path, annotations, detections)
    whole = _findings(folder)
    gone, cut, other = (picture["file_name"] for picture in whole["pictures"][:3])
    (tmp_path / "val" / gone).unlink()
    (tmp_path / "val" / cut).write_bytes(b"\x89PNG\r\n\x1a\n")
    _picture(tmp_path / "val" / other, height=SIZE + 1)
    found = _findings(folder)
    assert len(found["notes"]) == 1
    assert all(name in found["notes"][0] for name in (gone, cut, other))
    assert {picture["file_name"] for picture in found["pictures"]}.isdisjoint({gone, cut, other})
    for key in ("errors", "confusion", "precision_recall", "classes"):
        assert found[key] == whole[key]


def test_all_kinds_of_picture_files_are_drawn(tmp_path):
    names = ["grey.png", "cmyk.jpg", "转.jpg", "目录/图片 1.png"]
    annotations = _annotations([_object(one, 1, WHOLE) for one in (1, 2, 3, 4)], images=(1, 2, 3, 4))
    annotations["categories"] = [dict(id=1, name="消防栓")]
    folder = tmp_path / "val"
    for image, name in zip(annotations["images"], names, strict=True):
        image["file_name"] = name
        _picture(folder / name, height=SIZE, width=SIZE)
    PIL.Image.open(folder / names[0]).convert("L").save(folder / names[0])
    PIL.Image.new("CMYK", (SIZE, SIZE), (0, 80, 80, 0)).save(folder / names[1])
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    PIL.Image.new("RGB", (SIZE, SIZE + 20)).save(folder / names[2], exif=turned)
    annotations["images"][2].update(height=SIZE, width=SIZE + 20)  # as it is seen
    for item in annotations["annotations"]:
        item["segmentation"] = _polygon(WHOLE)
    detections = [_detection(one, 1, WHOLE, 0.9) for one in (1, 2, 4)]
    found = _findings(_write(tmp_path, annotations, detections), "--language=zh")
    assert found["notes"] == []
    assert {picture["file_name"] for picture in found["pictures"]} == set(names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read"),
        ('{"image_id": 1}', "no list of COCO results"),
        ("[7]", "result 0 is none of COCO's"),
        ('[{"image_id": 1, "category_id": 1, "score": "0.5", "bbox": [0, 0, 1, 1]}]', "result 0"),
        ('[{"image_id": 1, "category_id": 1, "score": NaN, "bbox": [0, 0, 1, 1]}]', "result 0"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1]}]', "result 0"),
        ('[{"image_id": 1, "category_id": 1, "score": 0.5}]', "result 0"),
        (
            '[{"image_id": 9, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}]',
            "1 images that were not evaluated",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [96, 96], "counts": "0"}}]',
            "runs do not add up",
        ),
        (
            '[{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [96], "counts": "0"}}]',
            "none of COCO's",
        ),
    ],
)
def test_a_broken_results_file_ends_with_a_sentence(tmp_path, content, message):
    folder = _write(tmp_path, _annotations([_object(1, 1, WHOLE)]), [])
    (folder / "predictions.json").write_text(content)
    with pytest.raises(SystemExit) as caught:
        _findings(folder)
    assert "predictions.json" in str(caught.value)
    assert message in str(caught.value)
    assert not list((folder / "findings").iterdir())


@pytest.mark.parametrize("score", ["nan", "-0.1", "2"])
def test_a_score_that_is_none_is_refused(tmp_path, score):
    with pytest.raises(SystemExit, match="2"):
        _findings(_write(tmp_path, _annotations([_object(1, 1, WHOLE)]), []), f"--score={score}")


def test_detections_of_unlisted_classes_and_masks_of_another_size_are_noted(tmp_path):
    other = {
        "size": [SIZE + 1, SIZE],
        "counts": coco_mask.encode(np.zeros((SIZE + 1, SIZE), np.uint8, order="F"))["counts"],
    }
    other["counts"] = other["counts"].decode()
    detections = [_detection(1, 1, WHOLE, 0.9), _detection(1, 55, WHOLE, 0.9)]
    detections.append(_detection(1, 2, WHOLE, 0.9) | dict(segmentation=other))
    found = _findings(_with_pictures(tmp_path, _annotations([_object(1, 1, WHOLE)]), detections))
    assert found["detections"] == 2
    assert len(found["notes"]) == 2
    assert found["errors"]["segm"]["counts"]["correct"] == 1


def test_whole_masks_are_told_from_cut_ones():
    rng = np.random.default_rng(0)
    whole = [
        coco_mask.encode(np.asfortranarray(rng.random(rng.integers(1, 150, 2)) < share, np.uint8))
        for share in (0, 0.01, 0.3, 0.5, 1)
        for _ in range(20)
    ]
    assert masks.are_whole(whole).all()
    assert not masks.are_whole([mask | {"counts": mask["counts"][:-1]} for mask in whole]).any()
    assert not masks.are_whole(
        [dict(size=[9, 9], counts=text) for text in ("", "!!", "oooo", "P" * 40)]
    ).any()


def test_of_many_classes_the_most_confused_are_drawn(tmp_path):
    names = [(one, f"class {one}") for one in range(1, 81)]
    objects = [_object(1, one, [one, 1, 1, 9]) for one in range(1, 81)]
    swapped = {one: one + 1 for one in range(11, 41)} | {41: 11}
    detections = [_detection(1, swapped.get(one, one), [one, 1, 1, 9], 0.9) for one in range(1, 81)]
    found = _findings(_with_pictures(tmp_path, _annotations(objects, categories=names), detections))
    assert len(found["confusion"]["matrix"]) == 81
    chosen = charts.most_confused(np.array(found["confusion"]["matrix"]))
    assert len(chosen) == 20
    assert set(chosen) <= set(range(10, 41))
    assert "20 of 80 classes" in (tmp_path / "findings" / "confusion.svg").read_text()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_charts_can_be_inlined_in_one_page(tmp_path, language):
    annotations, detections = _random(1)
    annotations["categories"][0]["name"] = '<b> & "狗"'
    annotations["categories"][1]["name"] = "$x_1$"
    found = _findings(_with_pictures(tmp_path, annotations, detections), f"--language={language}")
    names = []
    for name in found["charts"].values():
        text = (tmp_path / "findings" / name).read_text(encoding="utf-8")
        root = xml.etree.ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
        assert any(("错误" if language == "zh" else "wrong") in word for word in words) == (
            name == "errors.svg"
        )
        assert ("$x_1$" in words) == (name == "confusion.svg")
        assert "DejaVu" not in text
        assert not {"#000000", "#000", "black"} & set(re.findall(r"#\w+|black", text))
        names += re.findall(r'\bid="([^"]*)"', text)
    assert names  # of clip paths
    assert len(names) == len(set(names))


@pytest.mark.parametrize("module", [charts, masks, svg, words])
def test_examples_in_docstrings_are_true(module):
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


def test_sizes_that_are_not_stated_and_names_that_are_no_text_are_no_error(tmp_path):
    annotations = _annotations([_object(1, 1, WHOLE, form=_rle)], categories=[(1, "\udcd6\udcd0")])
    folder = _with_pictures(tmp_path, annotations, [_detection(1, 1, WHOLE, 0.9)])
    for image in annotations["images"]:
        del image["height"], image["width"]
    found = _findings(_write(folder, annotations, [_detection(1, 1, WHOLE, 0.9)]))
    assert (found["notes"], len(found["pictures"])) == ([], 1)
    assert found["classes"][0]["name"] == "\\xd6\\xd0"
