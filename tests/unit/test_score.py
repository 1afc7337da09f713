"""The evaluator's 24 numbers equal pycocotools' on made-up cases, the easy and the odd ones."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from ascendet import paths
from ascendet.errors import AscendetError
from ascendet.run import folders
from ascendet.run.evaluate import score_files, score_or_keep
from ascendet.run.score import IMAGES, NAMES, PREDICTIONS, ScoreError, evaluate, restrict, score, table
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from truths import IDS, make_truth, perfect

Json = dict[str, Any]
SIZE = 240


def rle(mask: np.ndarray) -> Json:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box_mask(box: list[float], cut: float = 0.0) -> np.ndarray:
    """The mask of a box [x, y, width, height]; `cut` takes a part off its right side."""
    mask = np.zeros((SIZE, SIZE), bool)
    x, y, width, height = (round(value) for value in box)
    mask[y : y + height, x : x + max(1, round(width * (1 - cut)))] = True
    return mask


def truth(objects: list[tuple[int, int, list[float], bool]], images: int = 1, categories: int = 1) -> Json:
    """COCO annotations from (image, category, box, crowd)."""
    return {
        "info": {},
        "images": [{"id": image, "width": SIZE, "height": SIZE} for image in range(1, images + 1)],
        "categories": [{"id": category, "name": str(category)} for category in range(1, categories + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": float(box_mask(box).sum()),
                "iscrowd": int(crowd),
                "segmentation": rle(box_mask(box)),
            }
            for number, (image, category, box, crowd) in enumerate(objects, 1)
        ],
    }


def detection(image: int, category: int, box: list[float], confidence: float, cut: float = 0.0) -> Json:
    mask = rle(box_mask(box, cut))
    return {
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "score": confidence,
        "segmentation": mask,
    }


def reference(annotations: Json, results: list[Json], kind: Literal["bbox", "segm"]) -> dict[str, float]:
    """pycocotools' numbers, as mmdetection and COCO's own server get them."""
    results = copy.deepcopy(results)
    if kind == "segm":
        for result in results:
            del result["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(annotations)
        coco.createIndex()
        found = coco.loadRes(results) if results else COCO()
        evaluation = COCOeval(coco, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


def assert_equal(annotations: Json, results: list[Json]) -> None:
    for kind in ("bbox", "segm"):
        expected = reference(annotations, results, kind)  # type: ignore[arg-type]
        found = score(copy.deepcopy(annotations), copy.deepcopy(results), kind)  # type: ignore[arg-type]
        assert found == pytest.approx(expected, abs=1e-12), kind


SMALL, MEDIUM, LARGE = [10.0, 10, 20, 20], [40.0, 40, 60, 60], [100.0, 100, 120, 110]


@pytest.mark.parametrize(
    ("objects", "results"),
    [
        pytest.param([(1, 1, LARGE, False)], [(1, 1, LARGE, 0.9)], id="perfect"),
        pytest.param([(1, 1, LARGE, False)], [], id="nothing found"),
        pytest.param([(1, 1, LARGE, False)], [(1, 2, LARGE, 0.9)], id="wrong category"),
        pytest.param([(1, 1, LARGE, False)], [(2, 1, LARGE, 0.9)], id="wrong image"),
        pytest.param([(1, 1, LARGE, False)], [(1, 1, LARGE, 0.9), (1, 1, LARGE, 0.8)], id="twice"),
        pytest.param([(1, 1, LARGE, True)], [(1, 1, MEDIUM, 0.9)], id="only a crowd"),
        pytest.param(
            [(1, 1, LARGE, True), (1, 1, SMALL, False)],
            [(1, 1, [110.0, 110, 30, 30], 0.9), (1, 1, [150.0, 150, 30, 30], 0.8), (1, 1, SMALL, 0.7)],
            id="several in a crowd",
        ),
        pytest.param(
            [(1, 1, SMALL, False), (1, 1, MEDIUM, False), (1, 2, LARGE, False)],
            [(1, 1, SMALL, 0.5), (1, 1, [44.0, 40, 60, 60], 0.5), (1, 2, [90.0, 100, 120, 110], 0.5)],
            id="equal scores",
        ),
        pytest.param([(1, 1, SMALL, False)], [(1, 1, LARGE, 0.9), (1, 1, SMALL, 0.1)], id="false one first"),
    ],
)
def test_equals_pycocotools(
    objects: list[tuple[int, int, list[float], bool]], results: list[tuple[int, int, list[float], float]]
) -> None:
    assert_equal(truth(objects, images=2, categories=2), [detection(*result) for result in results])


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools_on_random_cases(seed: int) -> None:
    draw = random.Random(seed)
    objects, results = [], []
    for image in range(1, 13):
        for _ in range(draw.randrange(12)):
            side = draw.choice([8, 30, 33, 70, 95, 98, 120])
            box = [
                float(draw.randrange(SIZE - side)),
                float(draw.randrange(SIZE - side)),
                float(side),
                float(side),
            ]
            category = draw.randint(1, 4)  # the fourth may stay without objects
            objects.append((image, category, box, draw.random() < 0.1))
            for _ in range(draw.choice([0, 1, 1, 2])):
                shaken = [value + draw.randint(-4, 4) for value in box[:2]] + box[2:]
                shaken[:2] = [min(max(value, 0.0), SIZE - side) for value in shaken[:2]]
                other = draw.randint(1, 4) if draw.random() < 0.1 else category
                results.append(
                    detection(image, other, shaken, round(draw.random(), 1), draw.choice([0, 0.2, 0.4]))
                )
    # More than 100 in one image: the standard counts no more.
    results += [detection(1, 1, [float(x), 5.0, 30.0, 30.0], 0.3) for x in range(120)]
    assert_equal(truth(objects, images=12, categories=4), results)


def test_mask_size_is_the_masks_and_not_the_boxs() -> None:
    """A thin mask in a large box is a small object: with the box's area it would be sorted wrongly."""
    thin = [10.0, 10, 200, 200]
    annotations = truth([(1, 1, [10.0, 10, 4, 200], False)])
    result = detection(1, 1, thin, 0.9, cut=0.98)
    assert score(annotations, [result], "segm")["APs"] == 1.0


def test_the_classes_ap_is_their_part_of_the_whole() -> None:
    objects = [(1, 1, LARGE, False), (1, 2, MEDIUM, False), (2, 2, LARGE, False)]
    found = [detection(1, 1, LARGE, 0.9), detection(1, 2, MEDIUM, 0.9)]
    numbers, classes = evaluate(truth(objects, images=2, categories=3), found, "bbox")
    # One of class 2's two objects is found: precision 1 up to recall 0.5, that is 51 of COCO's 101 recall thresholds.
    assert classes == pytest.approx({"1": 1.0, "2": 51 / 101, "3": -1.0})
    assert numbers["AP"] == pytest.approx((1 + 51 / 101) / 2)


def test_a_case_worked_out_by_hand() -> None:
    """One object of 100 x 100, found 8 px off: IoU 92/108 = 0.852, so right at 8 of the 10 thresholds."""
    found = [detection(1, 1, [48.0, 40, 100, 100], 0.9)]
    numbers = score(truth([(1, 1, [40.0, 40, 100, 100], False)]), found, "bbox")
    assert (numbers["AP"], numbers["AP50"], numbers["AP75"], numbers["AR1"]) == pytest.approx(
        (0.8, 1, 1, 0.8)
    )
    # A false one before it halves the precision everywhere: 0.5 at these thresholds.
    false = detection(1, 1, [180.0, 180, 50, 50], 0.95)
    assert score(truth([(1, 1, [40.0, 40, 100, 100], False)]), [false, *found], "bbox")[
        "AP"
    ] == pytest.approx(0.4)


def test_only_the_evaluated_images_count() -> None:
    objects = [(1, 1, LARGE, False), (2, 1, LARGE, False)]
    whole = truth(objects, images=3)
    assert score(whole, [detection(1, 1, LARGE, 0.9)], "bbox")["AP"] == pytest.approx(51 / 101)
    part = restrict(truth(objects, images=3), [1, 3])
    assert [image["id"] for image in part["images"]] == [1, 3]
    assert score(part, [detection(1, 1, LARGE, 0.9)], "bbox")["AP"] == 1.0


@pytest.mark.parametrize("kind", [kind for kind in IDS if kind != "equal"])
@pytest.mark.parametrize("of", ["images", "categories", "objects"])
def test_the_numbers_depend_on_no_id(kind: str, of: str) -> None:
    """Of detections that are good, bad, and equal in score, so that the order of images matters."""
    draw = random.Random(0)
    usual = make_truth(draw, "from one", "from one", "from one")
    while len(usual["annotations"]) < 20 or len(usual["images"]) < 4 or len(usual["categories"]) < 3:
        usual = make_truth(draw, "from one", "from one", "from one")
    results = perfect(usual)
    for result in results:
        result["score"] = draw.choice([0.3, 0.6])
        result["category_id"] = draw.choice([result["category_id"], 1])
        result["bbox"] = [*result["bbox"][:2], result["bbox"][2] * draw.uniform(0.5, 1), result["bbox"][3]]
    changed, found = copy.deepcopy(usual), copy.deepcopy(results)
    # In the order of ids: that of the images decides between equal scores.
    new = dict(enumerate(sorted(map(IDS[kind], range(20)), key=lambda one: (isinstance(one, str), one)), 1))
    lists = {"images": changed["images"], "categories": changed["categories"], "objects": []}
    for entry in lists[of]:
        entry["id"] = new[entry["id"]]
    key = {"images": "image_id", "categories": "category_id", "objects": ""}[of]
    for entry in (*changed["annotations"], *found) if key else ():
        entry[key] = new[entry[key]]
    for count, entry in enumerate(changed["annotations"] if of == "objects" else ()):
        entry["id"] = IDS[kind](count)
    for measured in ("bbox", "segm"):
        expected = reference(usual, results, measured)  # type: ignore[arg-type]
        assert 0 < expected["AP"] < 1
        assert score(changed, found, measured) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(60))
def test_the_truth_as_predictions_scores_one(seed: int) -> None:
    """For whatever ids, with and without objects, crowds and objects of every size, in masks of every form."""
    draw = random.Random(seed)
    kinds = list(IDS)
    truth = make_truth(draw, *draw.choices(kinds[:-1], k=2), draw.choice(kinds))
    before = copy.deepcopy(truth)
    something = any(not entry["iscrowd"] for entry in truth["annotations"])
    for kind in ("bbox", "segm"):
        numbers, classes = evaluate(truth, perfect(truth), kind)  # type: ignore[arg-type]
        assert numbers["AP"] == (pytest.approx(1) if something else -1)
        for name in NAMES[:6]:
            assert numbers[name] in (pytest.approx(1), -1), name
        of_objects = {entry["category_id"] for entry in truth["annotations"] if not entry["iscrowd"]}
        for category in truth["categories"]:
            expected = pytest.approx(1) if category["id"] in of_objects else -1
            assert classes[category["name"]] == expected
    assert truth == before


def test_what_cannot_count_is_said() -> None:
    annotations = truth([(1, 1, LARGE, False), (7, 1, LARGE, False)])
    with pytest.warns(UserWarning, match="1 of 2 objects are not counted"):
        assert score(annotations, [detection(1, 1, LARGE, 0.9)], "bbox")["AP"] == 1
    annotations = truth([(1, 1, LARGE, False)])
    with pytest.warns(UserWarning, match="1 of 2 results are not counted"):
        score(annotations, [detection(1, 1, LARGE, 0.9), detection(1, 3, LARGE, 0.9)], "bbox")
    annotations["images"][0]["height"] += 1
    with pytest.warns(UserWarning, match="1 of 1 objects have a mask of another size than their image"):
        score(annotations, [], "segm")


def test_results_of_unknown_images_are_refused() -> None:
    with pytest.raises(
        ScoreError, match="results for 2 images that the annotations do not have, such as image 7"
    ):
        score(truth([]), [detection(8, 1, LARGE, 0.9), detection(7, 1, LARGE, 0.9)], "bbox")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an evaluation leaves to be scored: one of two images, its one object found; beside it the annotations."""
    annotations, results = truth([(1, 1, LARGE, False)], images=2), [detection(1, 1, LARGE, 0.9)]
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    folder = tmp_path / "an eval"
    folder.mkdir()
    (folder / IMAGES).write_text(json.dumps({"annotations": f"{tmp_path}/val.json", "images": [1]}))
    (folder / PREDICTIONS).write_text(json.dumps(results))
    return folder


def test_predictions_stay_when_scoring_fails_and_the_next_command_scores_them(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    annotations, kept = folder.with_name("val.json"), folder.with_name("eval-failed")
    (kept / "of an earlier failure").mkdir(parents=True)
    content = annotations.read_text()
    annotations.write_text(content.replace('"images": [{"id": 1,', '"images": [{"id": 3,'))
    final = folder.with_name("eval")
    with pytest.raises(AscendetError) as caught, folders.replacing(final, "eval.log") as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)
        score_or_keep(work, final)
    error = caught.value
    assert error.name == "score-failed"
    assert error.found == f"error: {annotations} lacks 1 of the 1 evaluated images"
    assert sorted(file.name for file in kept.iterdir()) == [IMAGES, PREDICTIONS]
    assert sorted(file.name for file in folder.parent.iterdir()) == ["an eval", "eval-failed", "val.json"]
    assert f"the predictions are kept in {kept}" in capfd.readouterr().err
    typed = ["bash", "-c", error.hint]
    again = subprocess.run(typed, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr.strip()) == (1, error.found)
    annotations.write_text(content)
    done = subprocess.run(typed, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert "boxes    1.000" in done.stdout
    assert json.loads((kept / "metrics.json").read_text())["bbox"]["AP"] == 1


def test_predictions_stay_when_scoring_is_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ascendet.run.evaluate.score_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        score_or_keep(folder, folder.with_name("eval"))
    assert (folder.with_name("eval-failed") / PREDICTIONS).is_file()


@pytest.mark.parametrize("broken", [None, "{"])
def test_annotations_that_cannot_be_read_have_a_name(folder: Path, broken: str | None) -> None:
    annotations = folder.with_name("val.json")
    annotations.unlink()
    if broken:
        annotations.write_text(broken)
    with pytest.raises(AscendetError) as caught:
        score_files(folder)
    assert caught.value.name == "score-failed"
    assert str(caught.value.found).startswith(f"error: {annotations} cannot be read: ")


def test_warnings_of_the_evaluator_are_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / PREDICTIONS).write_text(json.dumps([detection(1, 9, LARGE, 0.9)]))
    assert score_files(folder)["bbox"]["AP"] == 0
    shown = capfd.readouterr()
    assert (
        shown.err
        == "warning: 1 of 1 results are not counted: the annotations list no such category or image\n"
    )
    assert "boxes    0.000" in shown.out


def test_as_a_program(folder: Path) -> None:
    command = [sys.executable, "-m", "ascendet.run.score", folder]
    done = subprocess.run(command, cwd=paths.ROOT / "scripts", check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert json.loads((folder / "classes.json").read_text()) == {
        "1": {"objects": 1, "bbox": 1.0, "segm": 1.0}
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {
        kind: {name: -1.0 if name in ("APs", "APm", "ARs", "ARm") else 1.0 for name in NAMES}
        for kind in ("bbox", "segm")
    }
    assert table(metrics) in done.stdout
    lines = table(metrics).splitlines()
    assert lines[0].split() == list(NAMES)
    assert lines[1].split() == ["boxes", "1.000", "1.000", "1.000", "-", "-", "1.000"] + ["1.000"] * 3 + [
        "-",
        "-",
        "1.000",
    ]
    assert lines[2].startswith("masks")
