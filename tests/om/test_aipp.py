"""An export that takes pictures as bytes, in the searches and the ladder: by the simulated atc, AIPP included."""

from __future__ import annotations

import json
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE, Picture, hand_made, hand_made_steps
from staged_om import graph as graphs
from staged_om import ranges
from staged_om.atc import Converted
from staged_om.bisect import StageProbe, find
from staged_om.compare import Paths
from staged_om.device import Device
from staged_om.evaluate import Evaluator, detections_as_truth
from staged_om.host import Batch, HostStep, Step
from staged_om.inputs import Inputs
from staged_om.memory import Memory
from staged_om.meta import Meta
from staged_om.onnx_runner import Runner, after_aipp, onnx_stages
from test_simulated import atc, convert, digest

pytestmark = pytest.mark.skipif(
    "ASCEND_HOME_PATH" not in os.environ, reason="no CANN tree in the environment: run it by make test-om"
)
STD = 255.0
AIPP = {"image": {"mean": [0.0] * 3, "std": [STD] * 3, "config": "features.aipp.cfg"}}


def with_bytes(meta: Meta) -> tuple[Step, ...]:
    """Return the hand-made pipeline with pictures as they are."""
    _, *rest = hand_made_steps(meta)

    def preprocess(batch: Batch) -> None:
        batch.values["image"] = np.stack([one[:SIZE, :SIZE] for one in batch.pictures])

    return HostStep(name="preprocess", run=preprocess, writes=("image",)), *rest


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converted:
    """The model converted with AIPP, `/roi` kept in float32 by KEEP_DTYPE; as make export and make om leave it."""
    monkeypatch.chdir(tmp_path)
    meta = hand_made(host={"aipp": AIPP})
    made = convert(tmp_path / "export", replace(meta, host={}))
    values = "".join(f"  var_reci_chn_{index}: {1 / STD:.9g}\n" for index in range(3))
    (made / "features.aipp.cfg").write_text(
        f"aipp_op {{\n  aipp_mode: static\n  input_format: RGB888_U8\n{values}}}\n"
    )
    stages = {stage.name: replace(stage, sha256=digest(made / stage.file)) for stage in meta.stages}
    meta = replace(meta, stages=tuple(stages.values()))
    meta.write(made)
    folder = made / "Ascend910B3-fp16"
    folder.mkdir()
    record = json.loads((made / "om.json").read_text()) | {"precision": "fp16", "atc_version": "8.5.0"}
    monkeypatch.chdir(folder)
    (folder / "features.keep_dtype.cfg").write_text("MatMul_0\n")
    more = ["--insert_op_conf=../features.aipp.cfg", "--keep_dtype=features.keep_dtype.cfg"]
    for name, entry in record["stages"].items():
        command = [
            "--framework=5",
            f"--model=../{name}.onnx",
            f"--output={name}",
            "--soc_version=Ascend910B3",
        ]
        command += ["--precision_mode_v2=fp16", *(more if name == "features" else [])]
        assert atc(command) == 0
        entry |= {"sha256": digest(folder / entry["om"]), "command": ["atc", *command]}
    (folder / "om.json").write_text(json.dumps(record))
    return Converted.read(folder)


@pytest.fixture
def inputs() -> Inputs:
    """A picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return Inputs(names=("a.png",), pictures=(pixels,), truth=None, digest="d")


def test_a_probe_of_bytes_is_fed_as_the_device_feeds_the_graph(converted: Converted, inputs: Inputs) -> None:
    meta, stage = converted.meta, converted.meta.stages[0]
    runner = Runner(meta, with_bytes(meta), onnx_stages(meta, converted.folder.parent))
    given = runner.run(list(inputs.pictures)).inputs["features"]
    assert given["image"].dtype == np.uint8
    graph = graphs.read(converted.folder.parent / stage.file)
    with Device() as device:
        probe = StageProbe(device, converted, stage, given, converted.folder)
        found = find(graph, probe, precision="fp16", chunk=len(graph.nodes))
    assert not found.kind, found.describe()
    assert all(row.difference.passed for row in found.rows)
    inner = [row for row in found.rows if not row.is_output]
    assert {row.node for row in inner} == {node.name for node in graph.nodes}


def test_a_probe_keeps_what_keep_dtype_kept(converted: Converted, inputs: Inputs) -> None:
    assert converted.keep(converted.meta.stages[0]) == ["MatMul_0"]
    assert converted.keep(converted.meta.stages[1]) == []


def test_a_choice_of_operators_is_measured_with_aipp(converted: Converted, inputs: Inputs) -> None:
    meta = converted.meta
    steps = with_bytes(meta)
    runner = Runner(meta, steps, onnx_stages(meta, converted.folder.parent))
    found = list(runner.run(list(inputs.pictures)).batch.detections)
    truth = detections_as_truth(found, inputs, meta, 0.3)
    with Device() as device:
        evaluator = Evaluator(
            device=device,
            converted=converted,
            steps=steps,
            inputs=inputs,
            truth=truth,
            reference=truth.score(found, meta),
            memory=Memory(converted.folder / "measured.jsonl"),
            work=converted.folder,
        )
        row = evaluator.measure("origin", {})
    assert (row.get("refused"), row["loss"]) == (None, 0)


def test_ranges_of_bytes_are_those_behind_aipp(
    converted: Converted, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    om = types.ModuleType("handmade.om")
    om.pipeline = with_bytes  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "handmade", types.ModuleType("handmade"))
    monkeypatch.setitem(sys.modules, "handmade.om", om)
    found = ranges.collect(converted.folder.parent, [picture(51), picture(255)])
    assert found["features"]["p3"] == pytest.approx((0.4, 2.0), rel=1e-3)


def test_the_rounding_of_aipp_is_a_rung_of_its_own(converted: Converted, inputs: Inputs) -> None:
    meta = converted.meta
    with Device() as device:
        paths = Paths(
            device=device,
            meta=meta,
            steps=with_bytes(meta),
            folder=converted.folder.parent,
            oms={"om": converted.folder},
        )
        rungs = paths.rungs(inputs, checkpoint=False)
        assert list(rungs) == ["onnx", "aipp", "om"]
        exact, rounded = (float(rungs[name]()[0].scores[0]) for name in ("onnx", "aipp"))
    assert exact != rounded
    assert exact == pytest.approx(rounded, rel=2**-10)
    without = replace(paths, meta=replace(meta, host={}))
    assert list(without.rungs(inputs, checkpoint=False)) == ["onnx", "om"]


def test_aipp_hands_on_float16_and_touches_nothing_but_pictures() -> None:
    meta = hand_made(host={"aipp": AIPP})
    given = {"image": np.full((1, SIZE, SIZE, 3), 85, np.uint8), "rois": np.ones((1, 5), np.float32) / 3}
    exact, rounded = (after_aipp(meta, given, rounds=rounds) for rounds in (False, True))
    assert exact["image"].shape == rounded["image"].shape == (1, 3, SIZE, SIZE)
    assert exact["image"][0, 0, 0, 0] == np.float32(85 / STD)
    assert rounded["image"][0, 0, 0, 0] == np.float16(85 / STD) != exact["image"][0, 0, 0, 0]
    assert rounded["image"].dtype == np.float32
    assert rounded["rois"] is given["rois"]
