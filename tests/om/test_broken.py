"""Pipelines that are broken on purpose, on simulated devices: each is caught, and what is wrong is named."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ascendet_common.errors import RunError
from conftest import run_program
from staged_om import atc
from staged_om.compare import COMPARISON, NoDetections, OmDiffers, Paths, run
from staged_om.device import AclError, Device
from staged_om.host import Batch
from staged_om.inputs import Inputs
from staged_om.meta import Meta
from staged_om.schedule import run_batch
from staged_om.session import RECORD, Session
from strip_detector import PICTURE, Faults, changed, export, install, pipeline

SOC = "Ascend910B3"
if "ASCEND_HOME_PATH" not in os.environ:
    pytest.skip(
        'no CANN tree: run it by `make test-om`, or after eval "$(python -m cann_sim env)"',
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device() as opened:
        yield opened


def convert(folder: Path, meta: Meta, precision: str, soc: str = SOC) -> Path:
    """Convert all stages as `make om` does, and return the folder of the OMs."""
    out = folder / f"{soc}-{precision}"
    stages = {}
    for stage in meta.stages:
        om = atc.convert(
            stage,
            folder / stage.file,
            out / f"{stage.name}.om",
            soc=soc,
            precision=precision,
            keep=stage.keep_fp32,
        )
        stages[stage.name] = {"om": om.name, "sha256": hashlib.sha256(om.read_bytes()).hexdigest()}
    record = {
        "export_id": meta.export_id,
        "soc": soc,
        "precision": precision,
        "atc_version": "",
        "stages": stages,
    }
    (out / RECORD).write_text(json.dumps(record))
    return out


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Meta]:
    """The detector without faults, converted in both modes."""
    folder = tmp_path_factory.mktemp("good")
    meta = export(folder)
    for precision in ("origin", "fp16"):
        convert(folder, meta, precision)
    return folder, meta


INPUTS = Inputs(names=("strip",), pictures=(PICTURE,), truth=None, digest="")


def compare(
    device: Device, folder: Path, meta: Meta, out: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> dict[str, Any]:
    """Climb the whole ladder, as `make om-compare PRECISION=fp16` does; return compare.json."""
    install(faults, monkeypatch.setitem)
    monkeypatch.setenv("CHECKPOINT", meta.checkpoint)
    oms = {"om-origin": folder / f"{SOC}-origin", "om": folder / f"{SOC}-fp16"}
    paths = Paths(device=device, meta=meta, steps=pipeline(meta), folder=folder, oms=oms)
    try:
        run(paths, INPUTS, 0.3, out)
    finally:
        content = json.loads((out / COMPARISON).read_text())
    return content  # type: ignore[no-any-return]


def test_the_detector_without_faults_holds_on_every_rung(
    device: Device, good: tuple[Path, Meta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = compare(device, *good, tmp_path, monkeypatch, Faults())
    assert [rung["rung"] for rung in content["ladder"]] == ["wrappers", "onnx", "om-origin", "om"]
    assert all(rung["holds"] for rung in content["ladder"])
    assert content["compare_with_pytorch"]["om"]["raw_count"] == 4
    assert content["pairs"]["all"]["unmatched"] == 0


# -- host steps that are told something wrong: the lowest rung that has host steps breaks --


@pytest.mark.parametrize(
    ("host", "error"),
    [
        pytest.param({"scale": 290.0}, OmDiffers, id="wrong normalisation"),
        pytest.param({"stride": 14}, OmDiffers, id="wrong stride"),
        pytest.param({"swapped": True}, (OmDiffers, NoDetections), id="swapped box order"),
    ],
)
def test_what_the_metadata_tells_host_steps_is_named(
    device: Device,
    good: tuple[Path, Meta],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: dict[str, Any],
    error: type[RunError],
) -> None:
    folder, meta = good
    wrong = replace(meta, host=meta.host | host)
    with pytest.raises(error) as caught:
        compare(device, folder, wrong, tmp_path, monkeypatch, Faults())
    content = json.loads((tmp_path / COMPARISON).read_text())
    assert next(rung["rung"] for rung in content["ladder"] if not rung["holds"]) == "wrappers"
    if isinstance(caught.value, OmDiffers):
        assert "wrappers breaks: the family's host steps" in caught.value.what


# -- graphs that float16 breaks: `origin` holds, the mode does not --


@pytest.mark.parametrize(
    ("faults", "stage"),
    [
        pytest.param(Faults(keep_fp32=("/levels/",)), "roi", id="fp16 RoIs"),
        pytest.param(
            Faults(by_area=True, keep_fp32=("RoiAlign", "Gather", "Slice")),
            "roi",
            id="w*h level assignment in fp16",
        ),
        pytest.param(Faults(mask=-1e9), "roi", id="-inf masks in fp16 softmax"),
    ],
)
def test_what_float16_breaks_is_named_with_its_stage(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults, stage: str
) -> None:
    folder = tmp_path / "exported"
    meta = export(folder, faults)
    for precision in ("origin", "fp16"):
        convert(folder, meta, precision)
    with pytest.raises((OmDiffers, NoDetections)) as caught:
        compare(device, folder, meta, tmp_path, monkeypatch, faults)
    content = json.loads((tmp_path / COMPARISON).read_text())
    assert {rung["rung"]: rung["holds"] for rung in content["ladder"]} == {
        "wrappers": True,
        "onnx": True,
        "om-origin": True,
        "om": False,
    }
    assert content["first_divergence"]["step"] == stage
    assert f"stage {stage}" in (caught.value.found or "")
    if isinstance(caught.value, OmDiffers):
        assert "om breaks: the precision mode" in caught.value.what


def test_an_om_that_finds_nothing_is_an_error_of_its_own(
    device: Device, good: tuple[Path, Meta], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first staged pipeline of the port report found nothing, and nothing said so."""
    folder, meta = good
    wrong = replace(meta, host=meta.host | {"scale": 25500.0})
    with pytest.raises(NoDetections) as caught:
        compare(device, folder, wrong, tmp_path, monkeypatch, Faults())
    assert caught.value.name == "om-no-detections"
    assert "nothing in 1 of 1 pictures" in caught.value.what


# -- what inference refuses --


def open_session(device: Device, folder: Path, meta: Meta) -> None:
    with Session(device, meta, pipeline(meta), folder):
        pass


def copied(good: tuple[Path, Meta], to: Path, **record: Any) -> Path:
    """Copy the OMs in mode `origin`, with a changed om.json, and return the folder."""
    source = good[0] / f"{SOC}-origin"
    to.mkdir()
    for file in source.glob("*.om"):
        (to / file.name).write_bytes(file.read_bytes())
    content = json.loads((source / RECORD).read_text()) | record
    (to / RECORD).write_text(json.dumps(content))
    return to


def test_metadata_and_oms_of_different_builds_are_refused(device: Device, good: tuple[Path, Meta]) -> None:
    folder, meta = good
    with pytest.raises(RunError) as caught:
        open_session(device, folder / f"{SOC}-origin", replace(meta, export_id="another"))
    assert caught.value.name == "om-mixed-builds"


def test_an_om_that_was_replaced_by_one_of_another_build_is_refused(
    device: Device, good: tuple[Path, Meta], tmp_path: Path
) -> None:
    folder = copied(good, tmp_path / "oms")
    (folder / "roi.om").write_bytes((good[0] / f"{SOC}-fp16" / "roi.om").read_bytes())
    with pytest.raises(RunError) as caught:
        open_session(device, folder, good[1])
    assert caught.value.name == "om-mixed-builds"


def test_an_om_for_another_soc_is_refused(device: Device, good: tuple[Path, Meta], tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        open_session(device, copied(good, tmp_path / "oms", soc="Ascend310P3"), good[1])
    assert caught.value.name == "om-other-soc"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="truncated"),
        pytest.param(lambda content: b"PNG" + content[3:], id="no OM"),
        pytest.param(lambda _: b"", id="empty"),
    ],
)
def test_a_corrupt_om_is_refused(
    device: Device, good: tuple[Path, Meta], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder = copied(good, tmp_path / "oms")
    (folder / "rpn.om").write_bytes(damage((folder / "rpn.om").read_bytes()))
    with pytest.raises(RunError) as caught:
        open_session(device, folder, good[1])
    assert caught.value.name == "om-corrupt"


# -- what pyACL refuses, or does not --


class Rpn:
    """The stage rpn's OM with buffers of its own; `short` bytes are missing in the output's."""

    def __init__(self, device: Device, file: Path, short: int = 0) -> None:
        self.device = device
        self.model = device.call("mdl.load_from_file", str(file))
        description = device.get("mdl.create_desc")
        device.call("mdl.get_desc", description, self.model)
        self.sets, self.pointers, self.sizes = [], [], []
        for side, missing in (("input", 0), ("output", short)):
            self.sizes.append(device.get(f"mdl.get_{side}_size_by_index", description, 0))
            self.pointers.append(device.call("rt.malloc", self.sizes[-1], 0))
            data_set = device.get("mdl.create_dataset")
            buffer = device.get("create_data_buffer", self.pointers[-1], self.sizes[-1] - missing)
            device.call("mdl.add_dataset_buffer", data_set, buffer)
            self.sets.append(data_set)

    def write(self, value: float) -> None:
        data = np.full(self.sizes[0] // 4, value, np.float32)
        self.device.call("rt.memcpy", self.pointers[0], self.sizes[0], data.ctypes.data, data.nbytes, 1)

    def read(self) -> np.ndarray:
        data = np.empty(self.sizes[1] // 4, np.float32)
        self.device.call("rt.memcpy", data.ctypes.data, data.nbytes, self.pointers[1], data.nbytes, 2)
        return data


def test_a_buffer_64_bytes_short_passes_and_65_bytes_short_is_refused(
    device: Device, good: tuple[Path, Meta]
) -> None:
    file = good[0] / f"{SOC}-origin" / "rpn.om"
    for short, passes in ((64, True), (65, False)):
        rpn = Rpn(device, file, short)
        rpn.write(1.0)
        if passes:
            device.call("mdl.execute", rpn.model, *rpn.sets)
            continue
        with pytest.raises(AclError) as caught:
            device.call("mdl.execute", rpn.model, *rpn.sets)
        assert caught.value.code == 145000


def test_an_output_that_is_read_before_the_stream_is_synchronised_is_stale(
    good: tuple[Path, Meta], tmp_path: Path
) -> None:
    """In a process of its own: another model, slowed down 100 times, runs before it when the copy happens."""
    job = f"""
from pathlib import Path
from staged_om.device import Device
from test_broken import Rpn
with Device() as device:
    first, rpn = (Rpn(device, Path({str(good[0] / f"{SOC}-origin" / "rpn.om")!r})) for _ in range(2))
    first.write(1.0)
    rpn.write(1.0)
    device.call("rt.memset", rpn.pointers[1], rpn.sizes[1], 7, rpn.sizes[1])
    stream = device.call("rt.create_stream")
    device.call("mdl.execute_async", first.model, *first.sets, stream)
    device.call("mdl.execute_async", rpn.model, *rpn.sets, stream)
    early = bytes(rpn.read())
    device.call("rt.synchronize_stream", stream)
    print(set(early) == {{7}}, bytes(rpn.read()) != early)
"""
    done = run_program(job, CANN_SIM_FAULT="slow-device:100")
    assert done.returncode == 0
    assert done.stdout.split()[-2:] == ["True", "True"]


def test_a_gear_that_the_om_does_not_have_is_145013(
    device: Device, good: tuple[Path, Meta], tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(good[0] / "rpn.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "geared.onnx")
    (port,) = next(stage for stage in good[1].stages if stage.name == "rpn").inputs
    shape = ",".join(map(str, (-1, *port.shape[1:])))
    done = subprocess.run(
        [
            "atc",
            "--framework=5",
            "--model=geared.onnx",
            "--output=geared",
            f"--soc_version={SOC}",
            f"--input_shape={port.name}:{shape}",
            "--dynamic_batch_size=1,2",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    number = device.call("mdl.load_from_file", str(tmp_path / "geared.om"))
    description = device.get("mdl.create_desc")
    device.call("mdl.get_desc", description, number)
    data_set = device.get("mdl.create_dataset")
    for index in range(device.get("mdl.get_num_inputs", description)):
        size = device.get("mdl.get_input_size_by_index", description, index)
        buffer = device.get("create_data_buffer", device.call("rt.malloc", size, 0), size)
        device.call("mdl.add_dataset_buffer", data_set, buffer)
    gear = device.call("mdl.get_input_index_by_name", description, "ascend_mbatch_shape_data")
    device.call("mdl.set_dynamic_batch_size", number, data_set, gear, 2)
    with pytest.raises(AclError) as caught:
        device.call("mdl.set_dynamic_batch_size", number, data_set, gear, 3)
    assert caught.value.code == 145013


def test_a_device_that_is_lost_in_the_middle_keeps_the_results_so_far(
    good: tuple[Path, Meta], tmp_path: Path
) -> None:
    import cv2

    pictures = []
    for number in range(4):
        file = tmp_path / f"{number}.png"
        cv2.imwrite(str(file), PICTURE)
        pictures.append(str(file))
    (tmp_path / "images.json").write_text(json.dumps(pictures))
    job = f"""
from strip_detector import Faults, install
install(Faults(), lambda modules, name, value: modules.__setitem__(name, value))
from staged_om.infer import main
sys.argv = ["infer", "--om={good[0] / f"{SOC}-origin"}", "--images={tmp_path / "images.json"}", "--score=0.3"]
main()
"""
    # The first picture runs twice, three stages each; the tenth stage is the first of the third run.
    done = run_program(job, CANN_SIM_FAULT="device-lost@launch:10", WORK_DIR=str(tmp_path))
    assert done.returncode != 0
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["name"] == "npu-lost"
    results = json.loads((tmp_path / "results.json").read_text())
    kept = len(results["images"])
    assert 0 < kept < 4
    assert f"{kept} of 4 pictures are done and kept" in error["what"]
    assert all(len(image["detections"]) == 4 for image in results["images"])


def test_a_batch_runs_the_same_by_session_and_by_functions(device: Device, good: tuple[Path, Meta]) -> None:
    """The ladder looks for the first diverging step with functions; they must compute what inference computes."""
    from staged_om.onnx_runner import Runner

    folder, meta = good
    with Session(device, meta, pipeline(meta), folder / f"{SOC}-fp16") as session:
        one = run_batch(session, session.lanes[0], Batch(pictures=[PICTURE])).batch.detections[0]
        other = Runner(meta, pipeline(meta), session.functions()).run([PICTURE]).batch.detections[0]
    np.testing.assert_array_equal(one.scores, other.scores)


def test_changed_metadata_is_written_where_inference_reads_it(
    good: tuple[Path, Meta], tmp_path: Path
) -> None:
    assert changed(good[1], tmp_path, stride=14) == Meta.read(tmp_path)


@pytest.mark.parametrize(
    ("atc_says", "remembered"),
    [
        ("echo E10001: no such mode; exit 1", True),
        ("kill -9 $$", False),
        ("echo 'E19999: OSError: [Errno 28] No space left on device'; exit 1", False),
    ],
)
def test_only_what_atc_refuses_is_remembered(
    atc_says: str,
    remembered: bool,
    device: Device,
    good: tuple[Path, Meta],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An atc that was killed says nothing about the choice: the next search must measure it."""
    from staged_om.evaluate import Evaluator
    from staged_om.memory import Memory

    folder, meta = good
    evaluator = Evaluator(
        device=device,
        converted=atc.Converted.read(folder / "Ascend910B3-origin"),
        steps=pipeline(meta),
        inputs=INPUTS,
        truth=None,
        reference={},
        memory=Memory(tmp_path / "measured.jsonl"),
        work=tmp_path,
    )
    (tmp_path / "atc").write_text(f"#!/bin/bash\n{atc_says}\n")
    (tmp_path / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if remembered:
        assert evaluator.measure("fp16", {})["AP"] is None
    else:
        with pytest.raises(atc.AtcFailed):
            evaluator.measure("fp16", {})
    assert (tmp_path / "measured.jsonl").is_file() == remembered


def test_the_search_finds_the_operators_that_float16_breaks(device: Device, tmp_path: Path) -> None:
    """Without the nodes that the export keeps, the boxes of RoIs are rounded: the search must name what reads them."""
    from staged_om import graph as graphs
    from staged_om.evaluate import Evaluator, detections_as_truth
    from staged_om.memory import Memory
    from staged_om.onnx_runner import Runner, onnx_stages
    from staged_om.precision import search, split, whole_stages

    folder = tmp_path / "exported"
    meta = export(folder, Faults(keep_fp32=()))
    converted = atc.Converted.read(convert(folder, meta, "origin"))
    found = Runner(meta, pipeline(meta), onnx_stages(meta, folder)).run([PICTURE]).batch.detections
    truth = detections_as_truth(found, INPUTS, meta, 0.3)
    evaluator = Evaluator(
        device=device,
        converted=converted,
        steps=pipeline(meta),
        inputs=INPUTS,
        truth=truth,
        reference=truth.score(found, meta),
        memory=Memory(tmp_path / "measured.jsonl"),
        work=tmp_path,
    )
    known = {stage.name: graphs.read(folder / stage.file) for stage in meta.stages}
    result = search(
        whole_stages({"roi": known["roi"]}, {}),
        lambda choice: float(evaluator.measure("fp16", choice)["loss"]),
        lambda group: split(known[group.stage], group),
        bound=0.002,
    )
    assert result.loss_none > 0.002 >= result.loss
    kept = {known["roi"].by_name[name].operator for name in result.choice["roi"]}
    assert "RoiAlign" in kept
    assert sum(len(group.nodes) for group in result.groups) < len(known["roi"].nodes) / 2
