"""atc's arguments, the folders of exported models, and headers of OM files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from ascendet.om import convert, exported, header, infer_om, info
from ascendet.om.exported import Exported
from ascendet.run.target import Target
from conftest import fails

STAGE = {
    "name": "roi",
    "file": "roi.onnx",
    "opset": 16,
    "sha256": "1",
    "inputs": [
        {"name": "p2", "dtype": "float32", "shape": [1, 256, 64, 64]},
        {"name": "rois", "dtype": "float32", "shape": [1000, 5]},
    ],
    "outputs": [],
    "keep_fp32": ["/roi/Log", "/roi/Add"],
}


@pytest.mark.parametrize(
    ("precision", "option"),
    [
        ("origin", "--precision_mode_v2=origin"),
        ("mixed_float16", "--precision_mode_v2=mixed_float16"),
        ("force_fp16", "--precision_mode=force_fp16"),
        ("allow_mix_precision_bf16", "--precision_mode=allow_mix_precision_bf16"),
    ],
)
def test_atc_gets_a_mode_by_the_option_that_has_it(precision: str, option: str) -> None:
    assert convert.arguments(STAGE, model="../roi.onnx", soc="Ascend910B3", precision=precision) == [
        "--framework=5",
        "--model=../roi.onnx",
        "--output=roi",
        "--soc_version=Ascend910B3",
        "--input_shape=p2:1,256,64,64;rois:1000,5",
        option,
    ]


def test_atc_is_told_what_stays_float32() -> None:
    found = convert.arguments(
        STAGE, model="m", soc="s", precision="fp16", keep="roi.keep_dtype.cfg", more=["--log=info"]
    )
    assert found[-2:] == ["--keep_dtype=roi.keep_dtype.cfg", "--log=info"]


def test_a_mode_that_atc_does_not_have_is_refused() -> None:
    assert "mixed_float16" in str(fails("usage", exported.check_precision, "fp8").expected)


@pytest.mark.parametrize("text", ["1024", "1024x", "0x5", "1024x1024;800x1344", "x"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    fails("usage", exported.parse_sizes, text)


@pytest.mark.parametrize("text", ["0", "one", "1;4", "-1"])
def test_batches_that_are_none_are_refused(text: str) -> None:
    fails("usage", exported.parse_batches, text)


def make_export(aim: Target, height: int, width: int, batch: int) -> Exported:
    folder = exported.home() / exported.folder_name(aim, (height, width), batch)
    folder.mkdir(parents=True)
    meta = {
        "model": aim.model,
        "height": height,
        "width": width,
        "batch": batch,
        "stages": [STAGE],
        "export_id": "e" * 64,
        "checkpoint": "last.pth",
        "checkpoint_sha256": "c" * 64,
    }
    (folder / exported.META).write_text(json.dumps(meta))
    return exported.read(folder)


def make_om(one: Exported, simulated: bool = True) -> Path:
    folder = one.om_folder("Ascend910B3", "origin")
    folder.mkdir()
    write_om(folder / "roi.om", simulated)
    entry = {
        "om": "roi.om",
        "sha256": convert.files.digest(folder / "roi.om"),
        "command": ["atc", "--framework=5"],
    }
    record = {
        "export_id": one.meta["export_id"],
        "soc": "Ascend910B3",
        "soc_source": "npu-smi",
        "precision": "origin",
        "stages": {"roi": entry},
    }
    (folder / exported.RECORD).write_text(json.dumps(record))
    return folder


def write_om(file: Path, simulated: bool) -> None:
    user = b"simulated by cann_sim" if simulated else b""
    head = struct.pack(
        "<III64sIBBBB32sI32sII20sB3xQ64x",
        *(0x444F4D49, 256, 0x20000000, b"", 8, 0, 0, 0, 0, b"roi", 3, user, 0, 1, b"8.5.0", 0, 8),
    )
    file.write_bytes(head + bytes(8))


def test_exports_are_found_by_size_and_batch(aim: Target) -> None:
    for size, batch in (((1024, 1024), 1), ((800, 1344), 1), ((1024, 1024), 4)):
        make_export(aim, *size, batch)
    found = exported.find(aim, [(1024, 1024)], [])
    assert [(one.size, one.batch) for one in found] == [((1024, 1024), 1), ((1024, 1024), 4)]
    assert len(exported.find(aim, [], [])) == 3
    error = fails("om-missing", exported.find, aim, [(1024, 1024), (512, 512)], [1])
    assert error.expected == "vitdet-tiny-shapes-512x512-b1"


def test_nothing_exported_is_said(aim: Target) -> None:
    error = fails("om-missing", exported.find, aim, [], [])
    assert "make export" in error.hint


def test_oms_of_this_export_are_not_converted_again_and_damaged_ones_are(aim: Target) -> None:
    one = make_export(aim, 64, 64, 1)
    folder = make_om(one)
    assert convert.fresh(one, folder)
    assert not convert.fresh(Exported(folder=one.folder, meta=one.meta | {"export_id": "f"}), folder)
    (folder / "roi.om").write_bytes(b"damaged")
    assert not convert.fresh(one, folder)
    assert not convert.fresh(one, folder.with_name("absent"))


def test_inference_takes_what_is_converted_and_says_what_there_is_otherwise(aim: Target) -> None:
    one, other = make_export(aim, 64, 64, 1), make_export(aim, 96, 96, 1)
    folder = make_om(one)
    assert infer_om.find_oms([one, other], "Ascend910B3", "origin") == [folder]
    error = fails("om-missing", infer_om.find_oms, [one, other], "Ascend910B3", "fp16")
    assert "Ascend910B3-origin" in str(error.found)


def test_pictures_do_not_go_to_models_of_different_trainings(aim: Target) -> None:
    exports = [make_export(aim, 64, 64, 1), make_export(aim, 96, 96, 4)]
    for one in exports:
        make_om(one)
    assert len(infer_om.find_oms(exports, "Ascend910B3", "origin")) == 2
    exports[1].meta["checkpoint_sha256"] = "d" * 64
    error = fails("om-mixed-builds", infer_om.find_oms, exports, "Ascend910B3", "origin")
    assert error.hint == "make export SIZES=64x64,96x96 BATCH=1,4"
    assert infer_om.find_oms(exports[1:], "Ascend910B3", "origin")


def test_info_says_what_headers_and_records_hold(aim: Target) -> None:
    one = make_export(aim, 64, 64, 1)
    assert info.show(info.describe(one)).endswith("no OM: make om")
    make_om(one)
    facts = info.describe(one)
    (build,) = facts["builds"]
    assert build["of_this_export"]
    assert build["stages"][0] | {"command": 0} == {
        "stage": "roi",
        "name": "roi",
        "bytes": 264,
        "atc_version": "8.5.0",
        "user_info": "simulated by cann_sim",
        "simulated": True,
        "command": 0,
    }
    assert "ATC 8.5.0 (simulated by cann_sim)" in info.show(facts)


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "no OM"), (b"PK" + bytes(300), "no OM"), (None, "truncated")],
    ids=["empty", "zip", "truncated"],
)
def test_a_file_that_is_no_whole_om_is_refused(tmp_path: Path, content: bytes | None, what: str) -> None:
    file = tmp_path / "x.om"
    write_om(file, simulated=False)
    assert not header.read(file).simulated
    file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    assert what in fails("om-corrupt", header.read, file).what
    file.unlink()
    fails("om-missing", header.read, file)


def test_atcs_error_is_taken_from_its_log() -> None:
    log = "ATC start working now, please wait for a moment.\nATC run failed, Please check the detail log\n"
    assert convert.message(log).startswith("ATC run failed")
    assert convert.message(log + "E16005: The model has 2 domains\n        Solution: one\n").startswith(
        "E16005"
    )
    assert convert.message(log + "SIM001: [PID: 1] Not_Simulated cann_sim\n").startswith("SIM001: ")
    assert convert.message("nothing\n") == ""
