"""Annotation files: each way in which one can be broken has a name; what is accepted scores 1.0 against itself."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ascendet import paths
from ascendet.data import annotations as checks
from ascendet.data import data
from ascendet.data.annotation_masks import measure_polygons, measure_runs
from ascendet.data.annotation_rules import RULES
from ascendet.errors import AscendetError
from PIL import Image

Content = dict[str, Any]
WIDTH, HEIGHT = 100, 80
BOX = [10.0, 12.0, 30.0, 20.0]


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def runs(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    """A rectangle's run lengths."""
    counts = [x * HEIGHT + y]
    for _ in range(width):
        counts += [height, HEIGHT - height]
    counts[-1] = WIDTH * HEIGHT - sum(counts[:-1])
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def compressed(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    from pycocotools import mask

    rle = mask.frPyObjects(runs(x, y, width, height), HEIGHT, WIDTH)
    return rle | {"counts": rle["counts"].decode()}


def valid() -> Content:
    """Three pictures, the last one without objects; polygons in one and two pieces, run lengths, a crowd."""
    return {
        "info": {"year": 2024},
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT}
            for number in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            entry(1, 1, 1, BOX, [rectangle(*BOX)]),
            entry(2, 1, 2, [50.0, 5.0, 40.0, 60.0], runs(50, 5, 40, 60)),
            entry(
                3,
                2,
                1,
                [0.0, 0.0, 60.0, 70.0],
                [rectangle(0, 0, 60, 20), rectangle(0, 40, 60, 30)],
                area=3000.0,
            ),
            entry(4, 2, 2, [70.0, 10.0, 20.0, 60.0], compressed(70, 10, 20, 60)),
            entry(5, 2, 1, [62.0, 2.0, 6.0, 70.0], runs(62, 2, 6, 70), iscrowd=1),
        ],
    }


def entry(
    identity: int, image: int, category: int, box: list[float], mask: Any, area: float = 0.0, iscrowd: int = 0
) -> Content:
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "segmentation": mask,
        "area": area or box[2] * box[3],
        "iscrowd": iscrowd,
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three pictures of `valid`, one in upper case, one turned by EXIF, one of another size, one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in (1, 2, 3):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / f"{number}.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "Upper.PNG")
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / os.fsdecode("图片.png".encode("gbk")))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "other.png")
    (folder / "none.png").write_text("no picture")
    noise = Image.effect_noise((WIDTH, HEIGHT), 64)
    for name in ("whole.jpg", "whole.png", "whole.bmp", "whole.webp"):
        noise.convert("RGB").save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name.replace("whole", "cut")).write_bytes(whole[: len(whole) * 2 // 3])
        (folder / name.replace("whole", "more")).write_bytes(whole + b"\0" * 9 + b"a camera's own data" * 9)
    (folder / "sub").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "sub" / "1.png")
    return folder


def written(content: Any, folder: Path) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def at(*keys: Any, value: Any) -> Callable[[Content], None]:
    """Set what is at these keys."""

    def change(content: Content) -> None:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def without(*keys: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]

    return change


def every(name: str, change: Callable[[Content], Any]) -> Callable[[Content], None]:
    """Change every entry of a list."""

    def apply(content: Content) -> None:
        for one in content[name]:
            change(one)

    return apply


def both(*changes: Callable[[Content], None]) -> Callable[[Content], None]:
    def apply(content: Content) -> None:
        for change in changes:
            change(content)

    return apply


def shift_ids(content: Content) -> None:
    for one in content["images"] + content["categories"] + content["annotations"]:
        one["id"] -= 1
    for one in content["annotations"]:
        one["image_id"] -= 1
        one["category_id"] -= 1


def name_ids(content: Content) -> None:
    for one in content["images"] + content["categories"] + content["annotations"]:
        one["id"] = f"x{one['id']}"
    for one in content["annotations"]:
        one["image_id"], one["category_id"] = f"x{one['image_id']}", f"x{one['category_id']}"


def quote_ids(content: Content) -> None:
    for one in content["images"]:
        one["id"] = str(one["id"])


def huge_ids(content: Content) -> None:
    for one in content["images"]:
        one["id"] += 2**40
    for one in content["annotations"]:
        one["image_id"] += 2**40


def to_corners(one: Content) -> None:
    x, y, width, height = one["bbox"]
    one["bbox"] = [x, y, x + width, y + height]


def to_fractions(one: Content) -> None:
    one["bbox"] = [value / size for value, size in zip(one["bbox"], [WIDTH, HEIGHT] * 2, strict=True)]


def roboflow(content: Content) -> None:
    """Roboflow's export: the project's name is category 0."""
    content["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
        one | {"supercategory": "pets"} for one in content["categories"]
    ]


def twin(content: Content) -> None:
    content["images"].append(content["images"][0] | {"id": 9})
    content["annotations"][1]["image_id"] = 9


FIRST = ("annotations", 0)
# How the file is broken, and the rules that then apply, the gravest first; no other rule may.
BROKEN: dict[str, tuple[Callable[[Content], None], list[str]]] = {
    "no images list": (without("images"), ["not-coco"]),
    "no annotations list": (without("annotations"), ["not-coco"]),
    "images is an object": (at("images", value={"1": {}}), ["not-coco"]),
    "no categories": (at("categories", value=[]), ["categories-none"]),
    "category without id": (without("categories", 0, "id"), ["category-invalid"]),
    "category without name": (without("categories", 0, "name"), ["category-invalid"]),
    "category with blank name": (at("categories", 0, "name", value="  "), ["category-invalid"]),
    "category is text": (at("categories", 0, value="cat"), ["category-invalid"]),
    "categories of one id": (at("categories", 1, "id", value=1), ["category-id-twice"]),
    "categories of one name": (at("categories", 1, "name", value="cat"), ["category-name-twice"]),
    "no images": (at("images", value=[]), ["images-none"]),
    "images of one id": (at("images", 1, "id", value=1), ["image-id-twice"]),
    "absolute file_name": (at("images", 0, "file_name", value="/etc/passwd"), ["file-name-outside"]),
    "Windows' absolute file_name": (at("images", 0, "file_name", value="C:\\1.png"), ["file-name-outside"]),
    "file_name that climbs": (at("images", 0, "file_name", value="../1.png"), ["file-name-outside"]),
    "one file, two sizes": (
        lambda content: content["images"].append(content["images"][0] | {"id": 9, "file_name": "./1.png"}),
        ["file-name-form", "file-name-twice"],
    ),
    "no picture there": (
        every("images", lambda one: one.update(file_name=f"images/{one['file_name']}")),
        ["pictures-missing", "images-none"],
    ),
    "boxes in fractions": (every("annotations", to_fractions), ["boxes-in-fractions"]),
    "boxes as corners": (every("annotations", to_corners), ["boxes-corners"]),
    "boxes of other objects": (
        every("annotations", at("bbox", value=[1.0, 1.0, 5.0, 5.0])),
        ["boxes-contradict-masks"],
    ),
    "boxes as corners, no masks": (
        both(every("annotations", to_corners), every("annotations", without("segmentation"))),
        ["masks-absent", "boxes-corners"],
    ),
    "no masks": (every("annotations", without("segmentation")), ["masks-absent"]),
    "masks are empty lists": (every("annotations", at("segmentation", value=[])), ["masks-absent"]),
    "all crowd": (every("annotations", at("iscrowd", value=1)), ["all-crowd"]),
    "no objects": (at("annotations", value=[]), ["nothing-to-train-on", "category-unused"]),
    "unknown images only": (
        every("annotations", at("image_id", value=77)),
        ["nothing-to-train-on", "object-image-unknown"],
    ),
    "image is null": (at("images", 2, value=None), ["image-invalid"]),
    "image without id": (without("images", 2, "id"), ["image-invalid"]),
    "image id is a list": (at("images", 2, "id", value=[3]), ["image-invalid"]),
    "image without file_name": (without("images", 2, "file_name"), ["file-name-invalid"]),
    "file_name is a number": (at("images", 2, "file_name", value=3), ["file-name-invalid"]),
    "file_name with a lone surrogate": (
        at("images", 2, "file_name", value="\ud800.png"),
        ["file-name-invalid"],
    ),
    "picture missing": (
        at("images", 0, "file_name", value="gone.png"),
        ["picture-missing", "object-image-dropped"],
    ),
    "picture is no picture": (at("images", 2, "file_name", value="none.png"), ["picture-unreadable"]),
    **{
        f"truncated {kind}": (at("images", 2, "file_name", value=f"cut.{kind}"), ["picture-unreadable"])
        for kind in ("jpg", "png", "bmp", "webp")
    },
    "picture of another size": (at("images", 2, "file_name", value="other.png"), ["image-size-differs"]),
    "width is negative": (at("images", 2, "width", value=-100), ["image-size-invalid"]),
    "width is half a pixel": (at("images", 2, "width", value=99.5), ["image-size-invalid"]),
    "object is a list": (at(*FIRST, value=[]), ["object-invalid"]),
    "object of no image": (without(*FIRST, "image_id"), ["object-image-unknown"]),
    "object of an unknown image": (at(*FIRST, "image_id", value=99), ["object-image-unknown"]),
    "object of an unknown category": (at(*FIRST, "category_id", value=99), ["object-category-unknown"]),
    "object of category null": (at(*FIRST, "category_id", value=None), ["object-category-unknown"]),
    "iscrowd is 2": (at(*FIRST, "iscrowd", value=2), ["crowd-invalid"]),
    "box is text": (at(*FIRST, "bbox", value="10 12 30 20"), ["box-invalid"]),
    "box of three numbers": (at(*FIRST, "bbox", value=BOX[:3]), ["box-invalid"]),
    "box with text": (at(*FIRST, "bbox", value=[10, "12", 30, 20]), ["box-invalid"]),
    "box with an endless number": (at(*FIRST, "bbox", value=[10, 12, 30, 10**400]), ["box-invalid"]),
    "box of negative width": (at(*FIRST, "bbox", value=[40, 12, -30, 20]), ["box-negative"]),
    "box of no height": (at(*FIRST, "bbox", value=[10, 12, 30, 0]), ["box-empty"]),
    "box outside": (at(*FIRST, "bbox", value=[200, 200, 30, 20]), ["box-outside"]),
    "box elsewhere": (at(*FIRST, "bbox", value=[60, 50, 30, 20]), ["box-contradicts-mask"]),
    "box absent, mask too": (both(without(*FIRST, "bbox"), without(*FIRST, "segmentation")), ["box-invalid"]),
    "mask absent": (without(*FIRST, "segmentation"), ["mask-absent"]),
    "mask is null": (at(*FIRST, "segmentation", value=None), ["mask-absent"]),
    "mask is text": (at(*FIRST, "segmentation", value="10 12"), ["mask-invalid"]),
    "mask is a list of text": (at(*FIRST, "segmentation", value=["a"]), ["mask-invalid"]),
    "mask of two points": (at(*FIRST, "segmentation", value=[[10, 12, 40, 32]]), ["mask-invalid"]),
    "mask of an odd number": (at(*FIRST, "segmentation", value=[rectangle(*BOX)[:7]]), ["mask-invalid"]),
    "run lengths turned": (
        at("annotations", 1, "segmentation", "size", value=[WIDTH, HEIGHT]),
        ["mask-size"],
    ),
    "run lengths without size": (without("annotations", 1, "segmentation", "size"), ["mask-size"]),
    "run lengths too short": (at("annotations", 1, "segmentation", "counts", value=[5, 5]), ["mask-counts"]),
    "run lengths negative": (
        at("annotations", 1, "segmentation", "counts", value=[-8, 8 + WIDTH * HEIGHT]),
        ["mask-counts"],
    ),
    "run lengths cut": (at("annotations", 3, "segmentation", "counts", value="o0"), ["mask-counts"]),
    "run lengths not of the code": (
        at("annotations", 3, "segmentation", "counts", value="\x7f~"),
        ["mask-counts"],
    ),
    "run lengths of nothing": (
        at("annotations", 1, "segmentation", "counts", value=[WIDTH * HEIGHT]),
        ["mask-empty"],
    ),
    "polygon on a line": (at(*FIRST, "segmentation", value=[[10, 12.2, 40, 12.2, 25, 12.2]]), ["mask-empty"]),
    "polygon at infinity": (at(*FIRST, "segmentation", value=[rectangle(1e15, 0, 1e15, 9)]), ["mask-far"]),
    "Roboflow's first category": (roboflow, ["category-root"]),
    "ids from 0": (shift_ids, ["category-ids", "image-ids", "object-ids"]),
    "ids are names": (name_ids, ["category-ids", "image-ids", "object-ids"]),
    "ids beyond 2^31": (huge_ids, ["image-ids"]),
    "ids in quotes": (quote_ids, ["id-form"]),
    "ids with a point": (at(*FIRST, "id", value=1.0), ["id-form"]),
    "objects of one id": (at(*FIRST, "id", value=2), ["object-ids"]),
    "object without id": (without(*FIRST, "id"), ["object-ids"]),
    "category name is a number": (at("categories", 0, "name", value=7), ["category-name-number"]),
    "category listed twice": (
        lambda content: content["categories"].append(dict(content["categories"][0])),
        ["category-repeated"],
    ),
    "image listed twice": (
        lambda content: content["images"].append(dict(content["images"][0])),
        ["image-repeated"],
    ),
    "two images, one file": (twin, ["file-name-twice"]),
    "no sizes": (every("images", lambda one: (one.pop("width"), one.pop("height"))), ["image-size-absent"]),
    "backslash": (at("images", 0, "file_name", value="sub\\1.png"), ["file-name-form"]),
    "the file's name is GBK": (at("images", 0, "file_name", value="图片.png"), ["file-name-encoding"]),
    "upper case": (at("images", 0, "file_name", value="upper.png"), ["file-name-case"]),
    "no iscrowd": (every("annotations", without("iscrowd")), ["crowd-absent"]),
    "iscrowd is false": (at(*FIRST, "iscrowd", value=False), ["crowd-form"]),
    "no area": (every("annotations", without("area")), ["area-absent"]),
    "area is 0": (at(*FIRST, "area", value=0), ["area-invalid"]),
    "area is text": (at(*FIRST, "area", value="600"), ["area-invalid"]),
    "area is endless": (at(*FIRST, "area", value=10**400), ["area-invalid"]),
    "box absent": (without(*FIRST, "bbox"), ["box-absent"]),
    "box and mask beyond the picture": (
        both(
            at(*FIRST, "bbox", value=[-20, 12, 60, 20]),
            at(*FIRST, "segmentation", value=[rectangle(-20, 12, 60, 20)]),
        ),
        ["box-clipped", "mask-outside"],
    ),
    "flat mask": (at(*FIRST, "segmentation", value=rectangle(*BOX)), ["mask-flat"]),
    "mask with a polygon of a point": (
        at(*FIRST, "segmentation", value=[rectangle(*BOX), [1, 2]]),
        ["polygon-invalid"],
    ),
    "mask with a polygon far away": (
        at(*FIRST, "segmentation", value=[rectangle(*BOX), rectangle(1e9, 0, 5, 5)]),
        ["polygon-invalid"],
    ),
    "unused category": (
        lambda content: content["categories"].append({"id": 3, "name": "cow"}),
        ["category-unused"],
    ),
    "picture turned": (at("images", 2, "file_name", value="turned.jpg"), ["picture-turned"]),
    "box narrower than a pixel": (
        both(
            at(*FIRST, "bbox", value=[10, 12, 0.9, 20]),
            at(*FIRST, "segmentation", value=[rectangle(10, 12, 0.9, 20)]),
            at(*FIRST, "area", value=18.0),
        ),
        ["box-thin"],
    ),
    "area of something else": (at(*FIRST, "area", value=5), ["area-differs"]),
}


def inspect(content: Content, pictures: Path, folder: Path, *, training: bool = True) -> checks.Report:
    return checks.inspect(written(content, folder), pictures, training=training)


def test_a_valid_file_passes_without_a_word(pictures: Path, tmp_path: Path) -> None:
    report = inspect(valid(), pictures, tmp_path)
    assert report.findings == []
    assert report.content == valid()
    assert report.classes == ["cat", "dog"]
    assert report.counts == {
        "pictures": 3,
        "usable": 2,
        "objects": 4,
        "crowds": 1,
        "per_class": {"cat": 2, "dog": 2},
    }


@pytest.mark.parametrize("name", BROKEN)
def test_every_fault_is_named(name: str, pictures: Path, tmp_path: Path) -> None:
    change, expected = BROKEN[name]
    content = valid()
    change(content)
    path = written(content, tmp_path)
    before = path.read_bytes()
    report = checks.inspect(path, pictures, training=True)
    assert [finding.name for finding in report.findings] == expected
    assert all(finding.count and finding.what in report.table() for finding in report.findings)
    assert path.read_bytes() == before
    if not report.refused:
        assert checks.check(path, pictures, training=True).content == report.content
        assert_whole(report)
        return
    assert report.content == {}
    with pytest.raises(AscendetError) as caught:
        checks.check(path, pictures, training=True)
    assert caught.value.name == "annotations-invalid"
    assert RULES[expected[0]][1] in caught.value.render()


def assert_whole(report: checks.Report) -> None:
    """What is accepted is accepted again without repairs, and scores 1.0 against itself."""
    again = checks.Report(path=report.path)
    path = report.path.with_name("again.json")
    path.write_text(json.dumps(report.content, allow_nan=False), encoding="utf-8")
    again = checks.inspect(path, None, training=True)
    assert [finding.name for finding in again.findings if finding.action != "noted"] == []
    assert again.content == report.content
    assert_perfect(report.content)


def assert_perfect(content: Content) -> None:
    """Ground truth as predictions: AP of boxes and masks is 1.0, by pycocotools and by faster-coco-eval."""
    import contextlib
    import io

    import faster_coco_eval
    import pycocotools.coco
    import pycocotools.cocoeval

    pairs = (
        (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
        (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    )
    for api, evaluation in pairs:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = api()
            truth.dataset = copy.deepcopy(content)
            truth.createIndex()
            results = [
                {
                    "image_id": one["image_id"],
                    "category_id": one["category_id"],
                    "score": 1.0,
                    "bbox": one["bbox"],
                    "segmentation": truth.annToRLE(one),
                }
                for one in truth.dataset["annotations"]
                if not one["iscrowd"]
            ]
            for kind in ("bbox", "segm"):
                done = evaluation(truth, truth.loadRes(copy.deepcopy(results)), kind)
                done.evaluate()
                done.accumulate()
                done.summarize()
                assert done.stats[0] == pytest.approx(1.0), (api, kind)


# -- files --

FILES: dict[str, tuple[Callable[[str], bytes], list[str]]] = {
    "empty": (lambda text: b"", ["not-json"]),
    "blank": (lambda text: b" \n", ["not-json"]),
    "cut": (lambda text: text[: len(text) // 2].encode(), ["not-json"]),
    "a picture": (lambda text: b"\xff\xd8\xff\xe0" + bytes(range(256)), ["not-text"]),
    "GBK": (lambda text: text.replace('"dog"', '"\u72d7"').encode("gbk"), ["not-text"]),
    "nested without end": (lambda text: b"[" * 10**6, ["not-json"]),
    "a number of 5,000 digits": (
        lambda text: text.replace('"area": 600.0', f'"area": {"9" * 5000}').encode(),
        ["not-json"],
    ),
    "results": (lambda text: b'[{"image_id": 1, "score": 0.5}]', ["not-coco"]),
    "a number": (lambda text: b"7", ["not-coco"]),
    "null": (lambda text: b"null", ["not-coco"]),
    "annotations twice": (lambda text: (text[:-1] + ', "annotations": []}').encode(), ["key-twice"]),
    "id twice": (lambda text: text.replace('"id": 5', '"id": 6, "id": 5').encode(), ["key-twice"]),
    "byte order mark": (lambda text: text.encode("utf-8-sig"), ["byte-order-mark"]),
    "UTF-16": (lambda text: text.encode("utf-16"), ["utf-16"]),
    "UTF-16 without a mark": (lambda text: text.encode("utf-16-le"), ["utf-16"]),
    "area NaN": (
        lambda text: text.replace('"area": 600.0', '"area": NaN').encode(),
        ["area-absent", "number-literal"],
    ),
    "area 1e999": (lambda text: text.replace('"area": 600.0', '"area": 1e999').encode(), ["area-invalid"]),
    "box with NaN": (
        lambda text: text.replace("[10.0, 12.0, 30.0, 20.0]", "[10.0, NaN, 30.0, 20.0]").encode(),
        ["box-invalid", "number-literal"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_every_fault_of_the_file_is_named(name: str, pictures: Path, tmp_path: Path) -> None:
    change, expected = FILES[name]
    path = tmp_path / "annotations.json"
    path.write_bytes(change(json.dumps(valid())))
    report = checks.inspect(path, pictures, training=True)
    assert {finding.name for finding in report.findings} == set(expected)
    if report.refused:
        with pytest.raises(AscendetError, match="annotations-invalid"):
            checks.check(path, pictures, training=True)
    else:
        assert_whole(report)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AscendetError) as caught:
        checks.check(tmp_path / "none.json", None, training=True)
    assert caught.value.name == "data-missing"
    with pytest.raises(AscendetError):
        checks.check(tmp_path, None, training=True)


def test_every_rule_is_broken_here() -> None:
    named = {rule for table in (BROKEN, FILES) for _, rules in table.values() for rule in rules}  # type: ignore[attr-defined]
    elsewhere = {"nothing-to-score", "file-name-conflict"}
    assert named | elsewhere >= RULES.keys()


def test_for_evaluation_a_file_without_objects_is_only_noted(pictures: Path, tmp_path: Path) -> None:
    content = valid() | {"annotations": []}
    report = inspect(content, pictures, tmp_path, training=False)
    assert [finding.name for finding in report.findings] == ["category-unused", "nothing-to-score"]
    assert report.counts["usable"] == 0


def test_one_file_with_two_sizes_is_refused_without_pictures(tmp_path: Path) -> None:
    content = valid()
    content["images"].append(content["images"][0] | {"id": 9, "width": 50})
    report = checks.inspect(written(content, tmp_path), None, training=True)
    assert [finding.name for finding in report.findings] == ["file-name-conflict"]


def test_old_ids_are_kept(pictures: Path, tmp_path: Path) -> None:
    content = valid()
    name_ids(content)
    report = inspect(content, pictures, tmp_path)
    assert [one["original_id"] for one in report.content["images"]] == ["x1", "x2", "x3"]
    assert [one["id"] for one in report.content["images"]] == [1, 2, 3]
    assert [one["image_id"] for one in report.content["annotations"]] == [1, 1, 2, 2, 2]


def test_the_first_ids_are_shown_and_all_are_counted(pictures: Path, tmp_path: Path) -> None:
    content = valid()
    content["annotations"] += [entry(number, 99, 1, BOX, [rectangle(*BOX)]) for number in range(10, 40)]
    report = inspect(content, pictures, tmp_path)
    assert report.findings[0].count == 30
    assert report.findings[0].line().endswith("(30: 10, 11, 12, 13, 14, …)")


# -- geometry --


def test_extents_are_those_of_drawn_masks() -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for _ in range(100):
        bitmap = np.asfortranarray(
            rng.random((HEIGHT, WIDTH)) < rng.choice([0.001, 0.5, 0.999]), dtype=np.uint8
        )
        rle = mask.encode(bitmap)
        measured = measure_runs({"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}, WIDTH, HEIGHT)
        if not bitmap.any():
            assert measured == "mask-empty"
            continue
        assert not isinstance(measured, str)
        x, y, width, height = mask.toBbox(rle).tolist()
        assert measured == (bitmap.sum(), [x, y, x + width, y + height])


def test_areas_are_by_shoelace() -> None:
    from array import array

    polygons = [array("d", rectangle(1, 2, 3, 4)), array("d", [0, 0, 4, 0, 0, 4])]
    extent = measure_polygons(polygons, np.array([[10.0, 10.0]] * 2))
    assert extent.area.tolist() == [12.0, 8.0]
    assert extent.bounds.tolist() == [[1, 2, 4, 6], [0, 0, 4, 4]]


# -- COCO --


def coco_like(pictures: int, seed: int = 0) -> Content:
    """What COCO's files are like: 80 categories with gaps, odd ids, polygons to 2 decimals, crowds as run lengths.

    Pictures without objects; boxes rounded otherwise than their masks; polygons a little outside; areas by shoelace;
    and the two objects without height that train2017 has.
    """
    rng = random.Random(seed)
    names = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    content: Content = {
        "info": {},
        "licenses": [],
        "images": [
            {"id": 9 + 5 * number, "file_name": f"{9 + 5 * number:012d}.jpg", "width": 640, "height": 427}
            for number in range(pictures)
        ],
        "categories": [{"supercategory": "s", "id": one, "name": f"class {one}"} for one in names],
        "annotations": [],
    }
    for number, image in enumerate(content["images"][::-1]):
        for _ in range(0 if number % 100 == 7 else 1 + int(rng.expovariate(1 / 6))):
            content["annotations"].append(_coco_object(rng, image["id"], rng.choice(names)))
        if number % 12 == 3:
            content["annotations"].append(_coco_crowd(rng, image["id"], rng.choice(names)))
    for box, mask in (
        ([296.65, 388.33, 1.03, 0.0], [296.65, 388.33, 296.65, 388.33, 297.68, 388.33, 297.68, 388.33]),
        ([9.98, 188.56, 5.54, 0.0], [9.98, 188.56, 15.52, 188.56, 15.52, 188.56, 11.09, 188.56]),
    ):
        content["annotations"].append(entry(0, content["images"][0]["id"], 1, box, [mask]) | {"area": 0.0})
    for number, one in enumerate(content["annotations"]):
        one["id"] = 900_100_000_000 % 2**30 + 7 * number if one["iscrowd"] else 156 + 3 * number
    return content


def _coco_object(rng: random.Random, image: int, category: int) -> Content:
    pieces = []
    for _ in range(1 if rng.random() < 0.9 else 3):
        radius = 2.0 + rng.expovariate(1 / 50)
        x, y = min(max(rng.gauss(320, 110), 5), 635), min(max(rng.gauss(213, 70), 5), 422)
        corners = rng.randint(5, 40)
        piece = []
        for corner in range(corners):
            angle, far = 2 * math.pi * corner / corners, radius * rng.uniform(0.6, 1)
            piece.append(round(min(max(x + far * math.cos(angle), -0.3), 640.4), 2))
            piece.append(round(min(max(y + far * math.sin(angle), 0.0), 427.6), 2))
        pieces.append(piece)
    xs, ys = ([value for piece in pieces for value in piece[start::2]] for start in (0, 1))
    area = sum(
        abs(sum(p[i] * p[(i + 3) % len(p)] - p[(i + 2) % len(p)] * p[i + 1] for i in range(0, len(p), 2))) / 2
        for p in pieces
    )
    box = [min(xs), min(ys), round(max(xs) - min(xs), 2), round(max(ys) - min(ys), 2)]
    return entry(0, image, category, box, pieces, area=area)


def _coco_crowd(rng: random.Random, image: int, category: int) -> Content:
    x, y, width, height = rng.randint(0, 400), rng.randint(0, 300), rng.randint(20, 200), rng.randint(20, 100)
    counts = [x * 427 + y] + [height, 427 - height] * (width - 1) + [height]
    counts.append(640 * 427 - sum(counts))
    box = [float(one) for one in (x, y, width, height)]
    return entry(0, image, category, box, {"counts": counts, "size": [427, 640]}, iscrowd=1)


def test_coco_s_own_peculiarities_pass(tmp_path: Path) -> None:
    content = coco_like(500)
    before = copy.deepcopy(content)
    report = checks.check(written(content, tmp_path), None, training=True)
    alarming = [finding for finding in report.findings if finding.action != "noted"]
    assert [(finding.name, finding.count) for finding in alarming] == [("box-empty", 2)]
    assert {finding.name for finding in report.findings} <= {"box-empty", "box-thin"}
    assert report.counts["pictures"] == 500
    assert report.counts["usable"] == 495
    assert report.classes == [one["name"] for one in before["categories"]]
    kept = {one["id"]: one for one in report.content["annotations"]}
    assert [one for one in before["annotations"] if one["id"] in kept] == list(kept.values())


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp"])
def test_bytes_after_a_picture_s_end_are_no_damage(pictures: Path, tmp_path: Path, kind: str) -> None:
    content = valid()
    for name in ("whole", "more"):
        content["images"][2]["file_name"] = f"{name}.{kind}"
        assert not checks.check(written(content, tmp_path), pictures, training=True).findings


# -- the receipt --


@pytest.fixture
def dataset(build: Path, monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Path:
    """A data set of the user's, `own`, below the data folder."""
    monkeypatch.setenv("ASCENDET_DATA", str(build / "data"))
    folder = build / "data" / "own"
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        for number in (1, 2, 3):
            (folder / split / f"{number}.png").write_bytes((pictures / f"{number}.png").read_bytes())
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(valid()))
    return folder


def test_an_unchanged_file_is_checked_once(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = dataset / "annotations" / "instances_train2017.json", dataset / "train2017"
    first = checks.check_once(path, folder, training=True)
    times = []
    real = checks.inspect
    monkeypatch.setattr(checks, "inspect", lambda *a, **k: times.append(a) or real(*a, **k))  # type: ignore[func-returns-value]
    assert checks.check_once(path, folder, training=True) == first
    assert not times
    (folder / "3.png").unlink()
    (folder / "3.png").symlink_to("nowhere")
    with pytest.raises(AscendetError) as caught:
        checks.check_once(path, folder, training=True)
    assert times
    assert "picture-unreadable" in caught.value.render()


def test_a_file_that_needs_repair_is_not_trained_on_as_it_stands(dataset: Path) -> None:
    content = valid()
    without(*FIRST, "area")(content)
    path = written(content, dataset)
    with pytest.raises(AscendetError) as caught:
        checks.check_once(path, dataset / "train2017", training=True)
    assert caught.value.name == "annotations-invalid"
    assert "make data DATASET=" in caught.value.hint
    content["annotations"][0] |= {"area": 600, "bbox": [10, 12, 30, 0]}  # mmdet passes over it
    report = checks.check_once(written(content, dataset), dataset / "train2017", training=True)
    assert [finding.name for finding in report.findings] == ["box-empty"]


# -- make data-check --


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    data.configure_parser(parser)
    data.execute(parser.parse_args(["--check", *arguments]))


def test_data_check_prints_a_table(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = valid()
    at(*FIRST, "image_id", value=99)(content)
    (dataset / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    run("--dataset", "own")
    lines = capsys.readouterr().out.splitlines()
    assert "instances_train2017.json" in lines[0]
    assert "pictures: 3, with objects: 2, objects: 4, crowds: 1, classes: 2" in lines[1]
    assert any(line.split()[:3] == ["dropped", "1", "object-image-unknown:"] for line in lines)
    run("--dataset", "own", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["checked"]["val2017"]["findings"][0]["first"] == ["1"]


def test_data_check_says_all_and_fails_where_a_file_is_refused(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = valid()
    every("annotations", to_corners)(content)
    (dataset / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(AscendetError) as caught:
        run("--dataset", "own")
    assert caught.value.name == "annotations-invalid"
    printed = capsys.readouterr().out
    assert "boxes-corners" in printed
    assert "instances_val2017.json" in printed


def test_data_check_of_what_is_not_there(dataset: Path) -> None:
    with pytest.raises(AscendetError) as caught:
        run("--dataset", "nobody")
    assert caught.value.name == "dataset-unknown"


# -- anything at all --

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    0.5,
    1e308,
    -1e308,
    10**400,
    2**31,
    2**63,
    "",
    "1",
    "\ud800",
    [],
    {},
    [[]],
    [None],
]
ODD += [
    float("nan"),
    float("inf"),
    [1, 2, 3, 4],
    [[1, 2, 3]],
    {"counts": "", "size": []},
    "a\0b",
    ".",
    [{}],
    "x" * 9,
]


def mutate(value: Any, rng: random.Random) -> Any:
    """Change one thing somewhere inside: take it away, put something odd there, double it, or cut a list."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            return {name: one for name, one in value.items() if name != key}
        return value | {key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:index] + value[index : index + 1] * 2 + value[index + 1 :]
        if rng.random() < 0.1:
            return value[:index]
        return [*value[:index], mutate(value[index], rng), *value[index + 1 :]]
    if type(value) in (int, float) and abs(value) < 1e300 and rng.random() < 0.5:
        return value * rng.choice([-1, 0, 0.01, 1.5, 1000, 1e12])
    return copy.deepcopy(rng.choice(ODD))


@pytest.mark.parametrize("seed", range(8))
def test_anything_ends_in_a_report_or_a_named_error(seed: int, pictures: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    accepted = 0
    for _ in range(60):
        content: Any = valid()
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            content = mutate(content, rng)
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        folder, training = rng.choice([pictures, None]), rng.random() < 0.7
        report = checks.inspect(path, folder, training=training)
        assert report.table()
        if report.refused:
            with pytest.raises(AscendetError, match="annotations-invalid"):
                checks.check(path, folder, training=training)
            continue
        if report.content["annotations"] and any(not one["iscrowd"] for one in report.content["annotations"]):
            accepted += 1
            assert_perfect(report.content)
    assert accepted


def test_bytes_at_random_end_in_a_report_or_a_named_error(tmp_path: Path) -> None:
    rng = random.Random(1)
    text = json.dumps(valid()).encode()
    for _ in range(100):
        broken = bytearray(text)
        for _ in range(rng.choice([1, 3, 30])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        path = tmp_path / "annotations.json"
        path.write_bytes(bytes(broken))
        assert checks.inspect(path, None, training=True).table()


# -- documentation --


@pytest.mark.parametrize("name", ["annotations.md", "annotations.zh-CN.md"])
def test_every_rule_is_explained(name: str) -> None:
    text = (paths.ROOT / "docs" / name).read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    explained = {rule.strip().strip("`"): action.strip() for rule, action in rows}
    words = {"noted": "提示", "repaired": "修复", "dropped": "丢弃", "refused": "拒绝"}
    chinese = "zh" in name
    assert explained == {rule: words[action] if chinese else action for rule, (action, _) in RULES.items()}
    if not chinese:
        assert all(what in text for _, what in RULES.values())
