"""wheels/common's findings: what is counted must be what COCO's evaluation counts."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from ascendet_common.findings import __main__ as program
from ascendet_common.findings import inputs, matching, numbers
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
            objects.append(_object(image, category, box, crowd=crowd, form=form))
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
        right = np.zeros(len(detections), bool)
        seen = np.zeros(len(detections), bool)
        ignored = np.zeros(len(detections), bool)
        for part in expected.evalImgs:
            if part is None or part["aRng"] != expected.params.areaRng[0]:
                continue
            rows = np.array(part["dtIds"], int) - 1
            seen[rows] = True
            ignored[rows] = part["dtIgnore"][at].astype(bool)
            right[rows] = (part["dtMatches"][at] > 0) & ~ignored[rows]
        assert right.any()
        assert np.array_equal(matches.truth >= 0, right)
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
