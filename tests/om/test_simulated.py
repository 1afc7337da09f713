"""The hand-made model from ONNX to detections: converted by the simulated atc, run through the simulated pyACL."""

from __future__ import annotations

import json
import os
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from ascendet_common.errors import RunError
from cann_sim.atc.__main__ import main as atc
from conftest import Picture, digest, hand_made, hand_made_steps, run_program
from onnx import TensorProto, helper, numpy_helper
from staged_om import ranges
from staged_om.device import Device
from staged_om.host import Batch, HostStep, Step
from staged_om.meta import Meta, Port
from staged_om.schedule import overlapped
from staged_om.session import Session

pytestmark = pytest.mark.skipif(
    "ASCEND_HOME_PATH" not in os.environ, reason="no CANN tree in the environment: run it by make test-om"
)


def graphs(meta: Meta) -> dict[str, onnx.ModelProto]:
    """Return the stages: `scores` becomes four times a picture's mean, three from the maps and one from `rois`."""
    features, head = meta.stages
    nodes = {
        "features": [
            helper.make_node("Conv", ["image", "third"], ["p2"], kernel_shape=[1, 1]),
            helper.make_node("Add", ["p2", "p2"], ["p3"]),
            helper.make_node("GlobalAveragePool", ["p2"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "quarter"], ["hint"]),
        ],
        "head": [
            helper.make_node("Add", ["p2", "p3"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "quarter"], ["of_maps"]),
            helper.make_node("MatMul", ["rois", "fifth"], ["of_rois"]),
            helper.make_node("Add", ["of_maps", "of_rois"], ["scores"]),
        ],
    }
    weights = {
        "features": {"third": np.full((4, 3, 1, 1), 1 / 3), "quarter": np.full((4, 2), 1 / 4)},
        "head": {"quarter": np.full((4, 1), 1 / 4), "fifth": np.full((5, 1), 1 / 5)},
    }

    def values(ports: tuple[Port, ...]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(port.name, TensorProto.FLOAT, port.shape) for port in ports]

    return {
        stage.name: helper.make_model(
            helper.make_graph(
                nodes[stage.name],
                stage.name,
                values(stage.inputs),
                values(stage.outputs),
                [
                    numpy_helper.from_array(value.astype(np.float32), name)
                    for name, value in weights[stage.name].items()
                ],
            ),
            opset_imports=[helper.make_opsetid("", stage.opset)],
            ir_version=8,
        )
        for stage in (features, head)
    }


def convert(folder: Path, meta: Meta, soc: str = "Ascend910B3", precision: str = "origin") -> Path:
    """Convert the stages into a folder with om.json, and return it."""
    folder.mkdir()
    stages = {}
    for name, graph in graphs(meta).items():
        onnx.save(graph, folder / f"{name}.onnx")
        command = ["--framework=5", f"--model={folder / name}.onnx", f"--output={folder / name}"]
        assert atc([*command, f"--soc_version={soc}", f"--precision_mode_v2={precision}"]) == 0
        stages[name] = {"om": f"{name}.om", "sha256": digest(folder / f"{name}.om")}
    record = {"export_id": meta.export_id, "soc": soc, "precision": precision, "stages": stages}
    (folder / "om.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The converted model; the current folder is an empty one, because atc leaves files there."""
    monkeypatch.chdir(tmp_path)
    return convert(tmp_path / "om", hand_made())


def free_bytes(device: Device) -> int:
    """Return the free memory of the device."""
    return int(device.call("rt.get_mem_info", 1)[0])


def test_lanes_do_not_mix_their_pictures_and_give_all_memory_back(folder: Path, picture: Picture) -> None:
    meta = hand_made()
    values = list(range(0, 240, 8))
    with Device() as device:
        before = free_bytes(device)
        with Session(device, meta, hand_made_steps(meta), folder, lanes=3) as session:
            sources = [lambda value=value: Batch(pictures=[picture(value)]) for value in values]
            scores = [float(done.batch.detections[0].scores[0]) for done in overlapped(session, sources)]
            assert free_bytes(device) < before
            assert session.copies["to host"].keys() == {"hint", "scores"}
            assert session.copies["to device"].keys() == {"image", "rois"}
            assert session.resident().keys() == {"p2", "p3"}
            assert session.device_seconds > 0
        assert free_bytes(device) == before
    assert scores == pytest.approx([4 * value / 255 for value in values], rel=1e-5)


def test_stages_are_functions_for_comparisons(folder: Path) -> None:
    meta = hand_made()
    with Device() as device, Session(device, meta, hand_made_steps(meta), folder) as session:
        functions = session.functions()
        made = functions["features"]({"image": np.full((1, 3, 8, 8), 0.5, np.float32)})
        assert {name: value.shape for name, value in made.items()} == {
            port.name: port.shape for port in meta.stages[0].outputs
        }
        given = {"p2": 2 * made["p2"], "p3": made["p3"], "rois": np.ones((1, 5), np.float32)}
        assert functions["head"](given)["scores"] == pytest.approx(3.0, rel=1e-6)


def test_host_steps_of_a_batch_run_beside_the_device_stages_of_another(
    folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clock: while the first batch's stage takes its half second, the second batch is prepared."""
    monkeypatch.setenv("CANN_SIM_MODEL_MS", "features:500")
    meta, noted, guard = hand_made(), [], threading.Lock()

    def noting(step: Step) -> Step:
        if not isinstance(step, HostStep):
            return step
        run = step.run

        def both(batch: Batch) -> None:
            with guard:
                noted.append((step.name, int(batch.pictures[0][0, 0, 0])))
            run(batch)

        return replace(step, run=both)

    steps = tuple(map(noting, hand_made_steps(meta)))
    with Device() as device, Session(device, meta, steps, folder, lanes=2) as session:
        sources = [lambda number=number: Batch(pictures=[picture(number)]) for number in range(2)]
        assert [done.number for done in overlapped(session, sources)] == [0, 1]
    assert {name for name, _ in noted[:2]} == {"preprocess"}  # of both, before either is proposed for
    first, second = (noted.index((name, noted[2][1])) for name in ("propose", "preprocess"))
    assert second < first


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no OM"])
def test_a_damaged_om_is_refused_by_name_and_nothing_stays_loaded(folder: Path, damage: str) -> None:
    meta, file = hand_made(), folder / "head.om"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    file.write_bytes({"truncated": content[:-7], "flipped": content, "no OM": b"PK"}[damage])
    with Device() as device:
        before = free_bytes(device)
        with pytest.raises(RunError) as caught:
            Session(device, meta, hand_made_steps(meta), folder)
        assert caught.value.name == "om-corrupt"
        assert caught.value.found
        assert free_bytes(device) == before


def test_an_om_for_another_soc_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    meta = hand_made()
    folder = convert(tmp_path / "om", meta, soc="Ascend910_9391")
    with Device() as device, pytest.raises(RunError) as caught:
        Session(device, meta, hand_made_steps(meta), folder)
    assert (caught.value.name, caught.value.found) == ("om-other-soc", "Ascend910_9391")


LOST = """
import json
from pathlib import Path
import cv2, numpy as np
from conftest import hand_made, hand_made_steps
from staged_om import infer
from staged_om import ranges
from staged_om.device import Device
folder = Path({folder!r})
files = []
for number in range(9):
    files.append(str(folder / f"{{number}}.png"))
    cv2.imwrite(files[-1], np.full((10, 20, 3), 255, np.uint8))
meta = hand_made()
export = infer.Export(meta=meta, steps=hand_made_steps(meta), folder=folder / "om")
report = infer.Report(classes=meta.classes, score=0.3)
with Device() as device:
    try:
        infer.detect_all(device, [export], infer.Run(files, folder, report, "skip"))
    except infer.RunError as error:
        print(json.dumps([error.name, error.what]))
"""


def test_a_lost_device_keeps_the_pictures_before_it(folder: Path) -> None:
    # A picture runs two models.
    done = run_program(LOST.format(folder=str(folder.parent)), CANN_SIM_FAULT="device-lost@launch:8")
    assert done.returncode == 0
    name, what = json.loads(done.stdout.splitlines()[-1])
    kept: list[Any] = json.loads((folder.parent / "results.json").read_text())["images"]
    assert name == "npu-lost"
    assert f"; {len(kept)} of 9 pictures are done and kept" in what
    assert len(kept) == 2  # the first picture runs twice, so the fourth run is the third picture's
    assert all(one["detections"][0]["score"] == pytest.approx(4, rel=1e-5) for one in kept)


def test_ranges_over_pictures_are_those_of_the_values(
    folder: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    om = types.ModuleType("handmade.om")
    om.pipeline = hand_made_steps  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handmade", types.ModuleType("handmade"))
    monkeypatch.setitem(sys.modules, "handmade.om", om)
    hand_made().write(folder)
    found = ranges.collect(folder, [picture(51), picture(255)])
    assert found.keys() == {"features", "head"}
    assert found["features"]["p3"] == pytest.approx((0.4, 2.0), rel=1e-6)
    assert found["head"]["scores"] == pytest.approx((0.8, 4.0), rel=1e-6)
