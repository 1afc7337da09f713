"""The report's JSON key for key, pairs of detections, and AP as `make eval` measures it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ascendet.run import score
from ascendet_common import results
from conftest import hand_made
from pycocotools import mask as coco_mask
from staged_om.ap import average_precision, coco_results
from staged_om.compare import COMPARISON, Paths, compare, keep_top1_per_label, lost_pictures, report
from staged_om.host import Detections
from staged_om.inputs import Inputs
from staged_om.meta import Meta
from staged_om.pairs import box_iou, match, summarize

META = hand_made(classes=("cat", "dog", "bird"), category_ids=(3, 7, 9))


def found(*rows: tuple[list[float], float, int], size: int = 0) -> Detections:
    """Return detections of (box, score, label); with a size, with masks that fill the boxes."""
    masks = []
    for (x0, y0, x1, y1), _, _ in rows if size else ():
        pixels = np.zeros((size, size), np.uint8, order="F")
        pixels[int(y0) : int(y1), int(x0) : int(x1)] = 1
        masks.append(coco_mask.encode(pixels))
    return Detections(
        boxes=np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[1] for row in rows], np.float32),
        labels=np.array([row[2] for row in rows], np.int64),
        masks=masks,
    )


CAT, DOG = [10.0, 10.0, 50.0, 50.0], [60.0, 20.0, 90.0, 90.0]
NOTHING = found()
# The keys of the port report's JSON, in its order.
SIDE = [
    "raw_count",
    "after_dedup",
    "after_score_thr",
    "dropped_by_dedup",
    "dropped_by_score_thr",
    "score_stats",
]


def test_the_keys_are_the_reports_in_its_order() -> None:
    one = found((CAT, 0.9, 0))
    made = report([one], [one], score_thr=0.3)
    assert list(made) == [
        "enabled", "pytorch_device", "dedup_policy", "score_thr", "om", "pytorch", "delta",
    ]  # fmt: skip
    assert list(made["om"]) == SIDE
    assert list(made["pytorch"]) == [*SIDE, "final_detections_topk"]
    assert list(made["om"]["score_stats"]) == ["max", "mean"]
    assert list(made["pytorch"]["final_detections_topk"][0]) == ["bbox", "score", "label"]
    assert list(made["delta"]) == ["raw_count", "after_dedup", "after_score_thr"]
    assert (made["enabled"], made["pytorch_device"]) == (True, "cpu")
    assert (made["dedup_policy"], made["score_thr"]) == ("keep_top1_per_label", 0.3)


def test_the_counts_are_those_of_the_reports_example() -> None:
    """The report: 49 raw, 19 labels, 1 from the score on, against 50, 16, 1."""

    def side(raw: int, labels: int, best: float) -> Detections:
        scores = np.full(raw, 0.1, np.float32)
        scores[0] = best
        return Detections(boxes=np.zeros((raw, 4), np.float32), scores=scores, labels=np.arange(raw) % labels)

    made = report([side(49, 19, 0.33896)], [side(50, 16, 0.34656)], score_thr=0.3)
    assert {key: made["om"][key] for key in SIDE[:5]} == {
        "raw_count": 49, "after_dedup": 19, "after_score_thr": 1, "dropped_by_dedup": 30, "dropped_by_score_thr": 18,
    }  # fmt: skip
    assert [made["pytorch"][key] for key in SIDE[:5]] == [50, 16, 1, 34, 15]
    assert made["delta"] == {"raw_count": -1, "after_dedup": 3, "after_score_thr": 0}
    assert made["om"]["score_stats"] == {"max": pytest.approx(0.33896), "mean": pytest.approx(0.33896)}
    assert len(made["pytorch"]["final_detections_topk"]) == 1


def test_nothing_found_is_counted_as_nothing() -> None:
    made = report([NOTHING], [NOTHING], score_thr=0.3)
    assert made["om"]["raw_count"] == 0
    assert made["om"]["score_stats"] == {"max": None, "mean": None}
    assert made["pytorch"]["final_detections_topk"] == []


def test_the_best_of_each_label_is_kept_and_of_equals_the_first() -> None:
    one = found((CAT, 0.2, 0), (CAT, 0.9, 1), (DOG, 0.9, 1), (DOG, 0.3, 0))
    assert keep_top1_per_label(one) == [1, 3]


def test_of_several_pictures_each_keeps_its_best() -> None:
    one = found((CAT, 0.9, 0))
    assert report([one, one], [one, NOTHING], score_thr=0.3)["delta"]["after_dedup"] == 1


@pytest.mark.parametrize(
    ("attributes", "lowest"),
    [({}, "pytorch"), ({"has_model": True}, "pytorch"), ({"has_model": False}, "wrappers")],
)
def test_where_no_model_takes_the_size_the_wrappers_are_the_lowest_rung(
    attributes: dict[str, bool], lowest: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    export: Any = types.ModuleType("handmade.export")
    for name, value in attributes.items():
        setattr(export, name, lambda _, value=value: value)
    monkeypatch.setitem(sys.modules, "handmade", types.ModuleType("handmade"))
    monkeypatch.setitem(sys.modules, "handmade.export", export)
    device: Any = None
    paths = Paths(device=device, meta=hand_made(), steps=(), folder=tmp_path, oms={})
    inputs = Inputs(names=(), pictures=(), truth=None, digest="d")
    assert next(iter(paths.rungs(inputs, checkpoint=True))) == lowest
    assert list(paths.rungs(inputs, checkpoint=False)) == ["onnx"]


# -- pairs --


def test_a_pair_tells_the_differences_of_box_score_and_mask() -> None:
    moved = found(([12.0, 10.0, 50.0, 50.0], 0.8, 0), size=100)
    pair = match(moved, found((CAT, 0.9, 0), size=100)).pairs[0]
    assert pair.box == 2
    assert pair.score == pytest.approx(-0.1)
    assert pair.iou == pytest.approx(38 / 40)
    assert pair.mask == pytest.approx(38 / 40)


def test_another_label_or_too_little_overlap_is_no_pair() -> None:
    for other in (found((CAT, 0.9, 1)), found(([30.0, 10.0, 70.0, 50.0], 0.9, 0))):
        matched = match(found((CAT, 0.9, 0)), other)
        assert (matched.pairs, matched.only_om, matched.only_pytorch) == ((), (0,), (0,))


def test_the_best_score_chooses_first_and_each_detection_once() -> None:
    near = [11.0, 10.0, 50.0, 50.0]
    matched = match(found((near, 0.5, 0), (CAT, 0.9, 0)), found((CAT, 0.9, 0)))
    assert [(pair.om, pair.pytorch) for pair in matched.pairs] == [(1, 0)]
    assert matched.only_om == (0,)


def test_empty_sides_have_no_pairs() -> None:
    one = found((CAT, 0.9, 0))
    assert match(NOTHING, one).only_pytorch == (0,)
    assert match(one, NOTHING).only_om == (0,)
    assert match(NOTHING, NOTHING).pairs == ()


def test_empty_boxes_and_empty_masks_break_nothing() -> None:
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0
    thin = found(([10.0, 10.0, 50.0, 10.4], 0.9, 0), size=100)  # its mask has no pixel
    assert match(thin, thin).pairs[0].mask == 1


def test_the_summary_counts_from_a_score_on_what_either_side_has_there() -> None:
    om = [found((CAT, 0.29, 0), (DOG, 0.05, 1))]
    pytorch = [found((CAT, 0.31, 0), ([0.0, 0.0, 5.0, 5.0], 0.5, 2))]
    summary = summarize(om, pytorch, [match(om[0], pytorch[0])], 0.3)
    assert (summary.count, summary.only_om, summary.only_pytorch) == (1, 0, 1)
    assert summary.unmatched == pytest.approx(1 / 3)
    assert summary.score == pytest.approx(0.02)
    assert summary.mask == 1


# -- AP --


def truth_of(one: Detections, meta: Meta, *, ids: list[Any]) -> dict[str, Any]:
    rows = coco_results([one], ids, meta)
    return {
        "images": [{"id": image, "height": 100, "width": 100, "file_name": f"{image}.jpg"} for image in ids],
        "categories": [
            {"id": number, "name": name} for number, name in zip(meta.category_ids, meta.classes, strict=True)
        ],
        "annotations": [
            {
                **{key: row[key] for key in ("image_id", "category_id", "bbox", "segmentation")},
                "id": number,
                "area": float(coco_mask.area(row["segmentation"])),
                "iscrowd": 0,
            }
            for number, row in enumerate(rows)
        ],
    }


TRUTH = truth_of(found((CAT, 1, 0), (DOG, 1, 1), size=100), META, ids=["picture"])
CASES = {
    "all": found((CAT, 0.9, 0), (DOG, 0.8, 1), size=100),
    "one of two": found((CAT, 0.9, 0), size=100),
    "moved": found((CAT, 0.9, 0), ([63.0, 20.0, 90.0, 90.0], 0.8, 1), size=100),
    "false first": found(([0.0, 0.0, 9.0, 9.0], 0.95, 0), (CAT, 0.9, 0), (DOG, 0.8, 1), size=100),
    "wrong label": found((CAT, 0.9, 1), (DOG, 0.8, 0), size=100),
}


@pytest.mark.parametrize("case", CASES)
def test_ap_is_that_of_make_eval(case: str) -> None:
    results = coco_results([CASES[case]], ["picture"], META)
    mine = average_precision(TRUTH, results, ["picture"])
    for kind in ("bbox", "segm"):
        assert mine[kind] == pytest.approx(score.score(TRUTH, results, kind)["AP"], abs=1e-9)  # type: ignore[arg-type]


def test_all_found_is_an_ap_of_one() -> None:
    assert average_precision(TRUTH, coco_results([CASES["all"]], ["picture"], META), ["picture"]) == {
        "bbox": pytest.approx(1),
        "segm": pytest.approx(1),
    }


def test_nothing_found_is_an_ap_of_zero() -> None:
    assert average_precision(TRUTH, [], ["picture"]) == {"bbox": 0.0, "segm": 0.0}


def test_only_the_compared_pictures_count() -> None:
    more = {**TRUTH, "images": [*TRUTH["images"], {"id": "other", "height": 9, "width": 9, "file_name": "o"}]}
    more["annotations"] = [*TRUTH["annotations"], {**TRUTH["annotations"][0], "id": 9, "image_id": "other"}]
    results = coco_results([CASES["all"]], ["picture"], META)
    assert average_precision(more, results, ["picture"])["bbox"] == pytest.approx(1)


# -- all of it --


def test_the_comparison_stands_beside_the_reports_json() -> None:
    from staged_om.ap import Truth

    content = compare(
        [CASES["one of two"]],
        [CASES["all"]],
        names=["picture.jpg"],
        meta=META,
        score_thr=0.3,
        truth=Truth(annotations=TRUTH, image_ids=["picture"]),
    )
    assert list(content) == ["compare_with_pytorch", "pairs", "AP", "pictures"]
    assert list(content["AP"]["difference"]) == ["bbox", "segm"], "the same bytes each time"
    assert content["AP"]["difference"] == {"bbox": pytest.approx(-0.5), "segm": pytest.approx(-0.5)}
    (picture,) = content["pictures"]
    assert picture["only_om"] == []
    assert [one["label"] for one in picture["only_pytorch"]] == ["dog"]
    assert picture["pairs"][0]["label"] == "cat"
    assert picture["compare_with_pytorch"] == content["compare_with_pytorch"]  # there is one picture


def test_a_picture_is_lost_if_the_om_finds_nothing_where_pytorch_finds_something() -> None:
    weak, strong = found((CAT, 0.1, 0)), found((CAT, 0.9, 0))
    assert lost_pictures([NOTHING, NOTHING, weak, NOTHING], [strong, weak, strong, NOTHING], 0.3) == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_result_before(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        results.write(tmp_path / COMPARISON, {"pictures": 1})
        with pytest.raises(OSError, match="No space left"):
            results.write(tmp_path / COMPARISON, {"pictures": [0.5] * 2**15})
        assert [file.name for file in tmp_path.iterdir()] == [COMPARISON]
        assert json.loads((tmp_path / COMPARISON).read_text()) == {"pictures": 1}
    finally:
        subprocess.run(["umount", tmp_path], check=True)
