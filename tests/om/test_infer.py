"""Inference with OMs from pictures to results.json, over the labelled fake of pyACL."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ascendet_common.errors import RunError
from ascendet_common.images import ImageError
from conftest import hand_made, hand_made_steps, write_fake_oms
from fake_acl import FakeAcl
from PIL import Image
from staged_om import infer
from staged_om.device import Device


def exported(tmp_path: Path, **changed: Any) -> infer.Export:
    """Make the folders of an exported and converted model."""
    meta = hand_made(**changed)
    folder = tmp_path / f"{meta.height}x{meta.width}-b{meta.batch}"
    folder.mkdir()
    meta.write(folder)
    return infer.Export(
        meta=meta, steps=hand_made_steps(meta), folder=write_fake_oms(folder / "Ascend910B3-origin", meta)
    )


def pictures(folder: Path, values: list[int]) -> list[str]:
    files = []
    for number, value in enumerate(values):
        files.append(str(folder / f"{number}.png"))
        cv2.imwrite(files[-1], np.full((10 + number, 20, 3), value, np.uint8))
    return files


def detect(exports: list[infer.Export], files: list[str], out: Path, bad: str = "skip") -> dict[str, Any]:
    report = infer.Report(classes=exports[0].meta.classes, score=0.3)
    with Device() as device:
        infer.detect_all(device, exports, infer.Run(files, out, report, bad))
    return dict(json.loads((out / "results.json").read_text()))


def test_results_are_those_of_infer_with_latency_throughput_and_copies(fake: FakeAcl, tmp_path: Path) -> None:
    values = [0, 51, 102, 153, 204, 255, 255, 0, 51]
    files = pictures(tmp_path, values)
    results = detect([exported(tmp_path)], files, tmp_path)
    assert [one["file"] for one in results["images"]] == files
    scores = [one["detections"][0]["score"] for one in results["images"]]
    assert scores == pytest.approx([value / 255 + 1 for value in values])
    first = results["images"][0]
    assert first["detections"][0] | {"score": 0} == {
        "category": "thing",
        "score": 0,
        "bbox": [1.0, 1.0, 18.0, 8.0],
    }
    assert (first["width"], first["height"]) == (20, 10)
    assert all((tmp_path / one["picture"]).is_file() for one in results["images"])
    steps = ["read", "preprocess", "features", "propose", "head", "paste", "copies", "total"]
    assert list(results["latency"]["first_call"]) == steps
    (steady,) = results["latency"]["steady"].values()
    assert list(steady["p50"]) == steps
    assert steady["calls"] == 5
    assert results["overlap"]["pictures"] == 4
    assert results["copies"]["batches"] == 10  # the first one twice
    assert results["copies"]["stay_on_device"].keys() == {"p2", "p3"}
    assert "stay on the device: p2 p3, 0.0 MB per batch, 0 copies to the host" in results["summary"]
    assert fake.alive == {}


def test_a_single_picture_is_measured_too(fake: FakeAcl, tmp_path: Path) -> None:
    results = detect([exported(tmp_path)], pictures(tmp_path, [9]), tmp_path)
    assert results["latency"]["steady"]["8x8, batch 1"]["calls"] == 1
    assert results["overlap"]["images_per_second"] is None


def test_pictures_go_in_batches_that_are_as_full_as_can_be(fake: FakeAcl, tmp_path: Path) -> None:
    exports = [exported(tmp_path, batch=1), exported(tmp_path, batch=4)]
    batches = infer.assign([(10, 20)] * 9, exports)
    assert [(one.meta.batch, numbers) for one, numbers in batches] == [
        (1, [8]),
        (4, [0, 1, 2, 3]),
        (4, [4, 5, 6, 7]),
    ]
    files = pictures(tmp_path, [0, 51, 102, 153, 204, 255, 255, 0, 51])
    results = detect(exports, files, tmp_path)
    found = results["images"]
    assert results["latency"]["steady"].keys() == {"8x8, batch 1", "8x8, batch 4"}
    assert [one["file"] for one in found] == files
    assert len({tuple(one["milliseconds"].values()) for one in found[:4]}) == 1


def test_a_picture_goes_to_the_size_that_it_fills_best(tmp_path: Path) -> None:
    square, wide = (exported(tmp_path, height=h, width=w) for h, w in ((1024, 1024), (800, 1344)))
    sizes = [(480, 640), (500, 500), (427, 640), (640, 427), (1, 1)]
    chosen = {number: one for one, group in infer.assign(sizes, [square, wide]) for number in group}
    assert [chosen[number] is wide for number in range(5)] == [True, False, True, False, False]


def test_the_size_of_a_picture_is_that_after_turning(tmp_path: Path) -> None:
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    assert infer.size_of(str(file)) == (40, 30)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert infer.size_of(str(tmp_path / "broken.png")) == (1, 1)


def test_damaged_pictures_are_skipped_or_refused(fake: FakeAcl, tmp_path: Path) -> None:
    export = exported(tmp_path, batch=2)
    files = pictures(tmp_path, [0, 51, 102, 153])
    Path(files[0]).write_bytes(b"no picture")
    Path(files[1]).write_bytes(b"none, too")  # a batch without any picture
    Path(files[3]).write_bytes(b"")
    results = detect([export], files, tmp_path)
    assert [one["file"] for one in results["images"]] == [files[2]]
    assert [one["file"] for one in results["skipped"]] == [files[0], files[1], files[3]]
    with pytest.raises(ImageError, match="cannot be decoded"):
        detect([export], files, tmp_path, bad="refuse")
    with pytest.raises(ImageError, match="none of the 2 pictures"):
        detect([export], files[:2], tmp_path)
    assert fake.alive == {}


def test_what_was_found_before_the_device_was_lost_is_kept(fake: FakeAcl, tmp_path: Path) -> None:
    export = exported(tmp_path)
    files = pictures(tmp_path, [255] * 9)
    detect([export], files, tmp_path)
    fake.code, fake.lost, fake.fail_at = 507010, True, 3 * len(fake.calls) // 4
    fake.calls.clear()
    with pytest.raises(RunError, match=r"; (\d+) of 9 pictures are done and kept") as caught:
        detect([export], files, tmp_path)
    assert caught.value.name == "npu-lost"
    kept = json.loads((tmp_path / "results.json").read_text())["images"]
    assert f"; {len(kept)} of 9" in caught.value.what
    assert 0 < len(kept) < 9
    assert fake.alive == {}


def test_a_device_that_is_lost_when_a_thread_begins_is_named_and_nothing_waits(
    fake: FakeAcl, tmp_path: Path
) -> None:
    """Threads take the device's context beside each other, and the pool ends while they do."""
    export = exported(tmp_path)
    files = pictures(tmp_path, [255] * 9)
    detect([export], files, tmp_path)
    begins = [number for number, name in enumerate(fake.calls) if name == "set_context"]
    assert len(begins) > 1
    fake.code, fake.lost = 507010, True
    for fake.fail_at in begins * 5:
        fake.calls.clear()
        with pytest.raises(RunError) as caught:
            detect([export], files, tmp_path)
        assert caught.value.name == "npu-lost"
        assert fake.alive == {}


def test_the_program_reads_the_command_line_and_the_family_of_the_metadata(
    fake: FakeAcl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, om = types.ModuleType("handmade"), types.ModuleType("handmade.om")
    om.pipeline = hand_made_steps  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handmade", family)
    monkeypatch.setitem(sys.modules, "handmade.om", om)
    monkeypatch.setenv("WORK_DIR", str(tmp_path))
    (tmp_path / "images.json").write_text(json.dumps(pictures(tmp_path, [0, 255])))
    folder = exported(tmp_path).folder
    monkeypatch.setattr(sys, "argv", ["infer", f"--om={folder}", f"--images={tmp_path / 'images.json'}"])
    infer.main()
    assert len(json.loads((tmp_path / "results.json").read_text())["images"]) == 2
