"""What `make speed` measures, with a detector that takes a known time and memory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ascendet_common import progress, speed
from ascendet_common.data import DataError
from ascendet_common.detect import Detections, Detector
from ascendet_common.images import ImageError, Pixels
from ascendet_common.watch import STAGES, Watch
from conftest import MakeShapes


class Known:
    """A detector that takes 300 ms at its first call and 5 ms at others, and finds as many objects as it had calls.

    It allocates 4 bytes per pixel on the NPU.
    """

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def detect(self, pixels: Pixels, name: str, watch: Watch) -> Detections:
        self.shapes.append(pixels.shape)
        with watch("preprocess"):
            pass
        with watch("device"):
            torch.zeros(pixels.shape[:2], device="npu")
            time.sleep(0.3 if len(self.shapes) == 1 else 0.005)
        with watch("postprocess"):
            found: list[dict[str, Any]] = [{} for _ in self.shapes]
        return found

    def detector(self) -> Detector:
        return Detector(classes=["x"], detect=self.detect, synchronize=torch.npu.synchronize)


@pytest.fixture
def npu() -> None:
    if not (hasattr(torch, "npu") and torch.npu.is_available()):
        pytest.skip("no NPU in this process: neither a card nor cann_sim")


def test_the_first_call_is_apart_and_every_size_is_listed(
    npu: None, make_shapes: MakeShapes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK_DIR", str(tmp_path))
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    files = speed.first_pictures(make_shapes(1, 4) / "shapes", 3)
    assert [Path(file).name for file in files] == ["000001.png", "000002.png", "000003.png"]
    known = Known()
    held = torch.zeros(2**20, device="npu")
    content = speed.measure(known.detector(), files, tmp_path)
    assert json.loads((tmp_path / speed.FILE).read_text()) == content

    fixed, pictures = content["fixed"], content["pictures"]
    assert (fixed["width"], fixed["height"]) == (640, 427)
    assert known.shapes[:13] == [(427, 640, 3)] * 13, "the first call, two more, and ten that count"
    assert fixed["first_call"].keys() == {*STAGES, "total"}
    assert fixed["first_call"]["device"] > 300
    assert fixed["first_call"]["total"] == pytest.approx(sum(fixed["first_call"][name] for name in STAGES))
    steady = fixed["steady"]
    assert steady["calls"] == 10
    assert 5 < steady["p50"]["device"] <= steady["p90"]["device"]
    assert steady["p50"]["device"] < 300, "the first call does not count"
    assert fixed["objects"] == 13

    assert [(call["height"], call["width"]) for call in pictures["calls"]] == [
        shape[:2] for shape in known.shapes[13:]
    ]
    assert [call["objects"] for call in pictures["calls"]] == [14, 15, 16]
    total = sum(call["milliseconds"]["total"] for call in pictures["calls"])
    assert pictures["times"]["images_per_second"] == pytest.approx(3e3 / total)
    assert fixed["memory"]["allocated"] >= held.nbytes + 4 * 640 * 427
    assert held.nbytes < pictures["memory"]["allocated"] < fixed["memory"]["allocated"], "a peak of its own"
    assert pictures["memory"]["reserved"] >= pictures["memory"]["allocated"]
    rows = list(progress.read(tmp_path))
    assert {row["phase"] for row in rows} == {"speed"}
    assert (rows[-1]["step"], rows[-1]["of"]) == (3, 3)


def test_a_fast_detector_is_measured_a_hundred_times(
    npu: None, make_shapes: MakeShapes, tmp_path: Path
) -> None:
    files = speed.first_pictures(make_shapes(1, 1) / "shapes", 200)
    assert len(files) == 1, "no more than there are"
    assert speed.measure(Known().detector(), files, tmp_path)["fixed"]["steady"]["calls"] == 100


def test_percentiles_are_of_the_calls() -> None:
    rows = [dict.fromkeys(STAGES, float(number)) for number in range(1, 12)]
    found = speed.distribution(rows)
    assert found["p50"] == {**dict.fromkeys(STAGES, 6.0), "total": 24.0}
    assert found["p90"] == {**dict.fromkeys(STAGES, 10.0), "total": 40.0}
    assert found["images_per_second"] == pytest.approx(11e3 / np.sum([4 * n for n in range(1, 12)]))


def test_what_cannot_be_measured_is_named(make_shapes: MakeShapes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split for val"):
        speed.first_pictures(tmp_path, 1)
    root = make_shapes(1, 2) / "shapes"
    files = speed.first_pictures(root, 2)
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:100])
    with pytest.raises(ImageError, match=r"000002\.png"):
        speed.measure(Known().detector(), files, tmp_path)
    assert not (tmp_path / speed.FILE).exists()
    annotations = root / "annotations/instances_val.json"
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"images": []}))
    with pytest.raises(DataError, match="has no images"):
        speed.first_pictures(root, 2)
