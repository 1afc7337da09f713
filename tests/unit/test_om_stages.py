"""make export and make om around their programs: folders, what is not made twice, and what a failure leaves."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ascendet.core import files
from ascendet.errors import AscendetError
from ascendet.om import convert, export, exported
from ascendet.om.soc import Choice
from ascendet.run import program, target
from ascendet.run.target import Target
from conftest import fails

STAGES = [
    {
        "name": name,
        "file": f"{name}.onnx",
        "opset": 17,
        "sha256": name,
        "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}],
        "outputs": [],
        "keep_fp32": kept,
    }
    for name, kept in (("backbone", []), ("roi", ["/roi/RoiAlign"]))
]
CHOICE = Choice(soc="Ascend910B3", source="npu-smi")


class Programs:
    """Stands for scripts/run.sh: notes what is started, and writes what the family's export or atc would."""

    def __init__(self) -> None:
        self.started: list[program.Run] = []
        self.fails = False

    def __call__(self, run: program.Run) -> None:
        self.started.append(run)
        work = run.log.parent
        run.log.write_text("ATC start working now\nE16005: more than one operator set\n  Solution: one\n")
        if self.fails:
            raise AscendetError("run-failed", "make failed", found="exit code 255", hint="less")
        if run.program == "export":
            size = next((a for a in run.arguments if a.startswith("--size=")), "--size=64x96")[7:].split("x")
            meta: dict[str, Any] = {
                "height": int(size[0]),
                "width": int(size[1]),
                "batch": 1,
                "stages": STAGES,
            }
            meta |= {"model": "vitdet-tiny", "export_id": f"of {len(self.started)}"}
            (work / exported.META).write_text(json.dumps(meta))
            for stage in STAGES:
                (work / str(stage["file"])).write_bytes(b"onnx")
        else:
            name = next(a for a in run.arguments if a.startswith("--output="))[9:]
            head = struct.pack(
                "<III64sIBBBB32sI32sII20sB3xQ64x",
                *(0x444F4D49, 256, 0, b"", 4, 0, 0, 0, 0, name.encode(), 1, b"", 0, 1, b"8.5.0", 0, 4),
            )
            (work / f"{name}.om").write_bytes(head + b"data")
            (work / "fusion_result.json").write_text(name)


@pytest.fixture
def programs(aim: Target, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs()
    monkeypatch.setattr(program, "execute", made)
    monkeypatch.setattr(target, "environ", lambda *_: {})
    monkeypatch.setattr(target, "software", lambda _: {"wheels": "w"})
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "last.pth"
    file.write_bytes(b"weights")
    return file


def test_an_export_is_named_by_the_size_that_the_configuration_has(
    aim: Target, programs: Programs, checkpoint: Path
) -> None:
    made = export.export(aim, checkpoint, None, 1)
    assert made.folder == exported.home() / "vitdet-tiny-shapes-64x96-b1"
    assert programs.started[0].arguments == ["--batch=1"]
    assert [path.name for path in exported.home().iterdir()] == [made.folder.name]


def test_the_same_checkpoint_is_exported_once_and_another_one_again(
    aim: Target, programs: Programs, checkpoint: Path
) -> None:
    first = export.export(aim, checkpoint, (32, 64), 1)
    assert programs.started[0].arguments == ["--size=32x64", "--batch=1"]
    assert export.export(aim, checkpoint, (32, 64), 1) == first
    assert len(programs.started) == 1
    checkpoint.write_bytes(b"other weights")
    second = export.export(aim, checkpoint, (32, 64), 1)
    assert (second.folder, second.meta["export_id"]) == (first.folder, "of 2")


def test_pictures_as_bytes_are_another_export_and_atc_gets_aipps_file(
    aim: Target, programs: Programs, checkpoint: Path
) -> None:
    export.export(aim, checkpoint, None, 1)
    one = export.export(aim, checkpoint, None, 1, aipp=True)
    assert programs.started[1].arguments == ["--batch=1", "--aipp"]
    host = {"aipp": {"x": {"config": "backbone.aipp.cfg"}}}
    convert.convert(aim, replace(one, meta=one.meta | {"host": host}), CHOICE, "origin")
    assert "--insert_op_conf=../backbone.aipp.cfg" in programs.started[2].arguments


def test_a_failed_export_leaves_its_log_and_no_folder(
    aim: Target, programs: Programs, checkpoint: Path
) -> None:
    programs.fails = True
    error = fails("run-failed", export.export, aim, checkpoint, None, 1)
    assert [path.name for path in exported.home().iterdir()] == ["vitdet-tiny-shapes-b1-failed.log"]
    assert "-failed.log" in error.hint


def test_what_a_kill_left_is_no_folder_of_oms(aim: Target, programs: Programs, checkpoint: Path) -> None:
    """A kill between the record and the last renaming leaves a whole folder under a temporary name."""
    one = export.export(aim, checkpoint, None, 1)
    folder = convert.convert(aim, one, CHOICE, "fp16")
    folder.rename(folder.with_name(f"{files.TEMP}{folder.name}-{2**22 + 1}"))
    assert one.om_folders() == []
    assert convert.convert(aim, one, CHOICE, "fp16") == folder
    assert sorted(path.name for path in one.folder.iterdir() if path.is_dir()) == [folder.name]


def test_oms_come_with_their_record_and_are_not_made_twice(
    aim: Target, programs: Programs, checkpoint: Path
) -> None:
    one = export.export(aim, checkpoint, None, 1)
    folder = convert.convert(aim, one, CHOICE, "fp16")
    assert folder == one.folder / "Ascend910B3-fp16"
    record = json.loads((folder / exported.RECORD).read_text())
    assert record["export_id"] == one.meta["export_id"]
    assert (record["soc"], record["soc_source"], record["simulated"]) == ("Ascend910B3", "npu-smi", False)
    assert record["stages"]["roi"]["sha256"] == files.digest(folder / "roi.om")
    assert "--keep_dtype=roi.keep_dtype.cfg" in record["stages"]["roi"]["command"]
    assert (folder / "roi.keep_dtype.cfg").read_text() == "/roi/RoiAlign\n"
    assert (folder / "backbone.fusion_result.json").read_text() == "backbone"
    assert convert.convert(aim, one, CHOICE, "fp16") == folder
    assert len(programs.started) == 3  # one export, two conversions
    convert.convert(aim, replace(one, meta=one.meta | {"export_id": "anew"}), CHOICE, "fp16")
    assert len(programs.started) == 5


def test_what_atc_refuses_has_its_code_and_leaves_its_log(
    aim: Target, programs: Programs, checkpoint: Path
) -> None:
    one = export.export(aim, checkpoint, None, 1)
    programs.fails = True
    error = fails("atc-failed", convert.convert, aim, one, CHOICE, "origin")
    assert str(error.found).startswith("E16005: more than one operator set")
    assert "backbone" in error.what
    assert one.om_folders() == []
    assert (one.folder / "Ascend910B3-origin-failed.log").is_file()
