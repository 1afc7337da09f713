"""What a comparison is made with: OMs in `origin` and in the mode asked for, pictures, the forecast before them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.om import compare, convert, exported, forecast, proof
from ascendet.om.exported import Exported, Keep
from ascendet.om.soc import Choice
from ascendet.run import folders, target
from ascendet.run.target import Target
from conftest import fails

STAGE = {"name": "roi", "file": "roi.onnx", "opset": 16, "sha256": "1", "inputs": [], "keep_fp32": []}


@pytest.fixture
def one(aim: Target, tmp_path: Path) -> proof.Proof:
    """A proof of an exported model of one stage, on 310P."""
    folder = exported.home() / "vitdet-tiny-shapes-64x64-b1"
    folder.mkdir(parents=True)
    meta = {"height": 64, "width": 64, "batch": 1, "export_id": "e", "stages": [STAGE]}
    (folder / exported.META).write_text(json.dumps(meta))
    return proof.Proof(
        aim=aim,
        one=exported.read(folder),
        choice=Choice(soc="Ascend310P3", source="npu-smi"),
        inputs=tmp_path,
        pictures=(),
        annotations=None,
        json=False,
    )


class Atc:
    """Stands for make om: refuses `refused`, and notes what it converts."""

    def __init__(self, refused: str, error: str = "atc-failed") -> None:
        self.refused, self.error = refused, error
        self.made: list[str] = []

    def __call__(self, aim: Target, one: Exported, choice: Choice, precision: str, keep: Keep = None) -> Path:
        if keep is None:
            keep = {}
        if precision == self.refused:
            raise AscendetError(self.error, "atc cannot convert", hint="less")
        self.made.append(precision)
        return one.om_folder(choice.soc, precision)


def options(precision: str) -> argparse.Namespace:
    return argparse.Namespace(precision=precision, keep_dtype="")


def test_a_soc_without_float32_convolutions_is_compared_without_origin(
    one: proof.Proof, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "convert", Atc("origin"))
    assert proof.oms(one, options("force_fp16")) == (None, one.one.folder / "Ascend310P3-force_fp16")
    assert "atc refuses for Ascend310P3" in capsys.readouterr().out
    fails("atc-failed", proof.oms, one, options("origin"))


@pytest.mark.parametrize(
    ("name", "shown"), [("om-differs", True), ("om-no-detections", True), ("run-busy", False)]
)
def test_a_result_is_shown_if_this_comparison_made_it(
    name: str,
    shown: bool,
    one: proof.Proof,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = one.one.folder / "compare-Ascend310P3-fp16"
    work.mkdir()
    (work / compare.COMPARISON).write_text('{"of": "an earlier one, or this one"}')

    def run(*_: object, **__: object) -> None:
        raise AscendetError(name, "it fails", hint="less")

    monkeypatch.setattr(convert, "convert", Atc(""))
    monkeypatch.setattr(proof, "prepare", lambda _: [replace(one, json=True)])
    monkeypatch.setattr(proof.Proof, "run", run)
    monkeypatch.setattr(compare, "lines", lambda _: [])
    monkeypatch.setattr(folders, "find_checkpoint", lambda *_: Path("e.pth"))
    asked = options("fp16")
    asked.score, asked.checkpoint = "0.3", ""
    fails(name, compare.execute, asked)
    assert ("an earlier one" in capsys.readouterr().out) == shown


def test_another_failure_of_origin_is_not_hidden(one: proof.Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "convert", Atc("origin", "disk-full"))
    fails("disk-full", proof.oms, one, options("fp16"))


def test_a_search_inside_a_stage_converts_no_other_mode(
    one: proof.Proof, monkeypatch: pytest.MonkeyPatch
) -> None:
    atc = Atc("")
    monkeypatch.setattr(convert, "convert", atc)
    proof.asked(one, options("fp16"))
    assert atc.made == ["fp16"]
    atc.made.clear()
    assert proof.oms(one, options("origin")) == (one.one.folder / "Ascend310P3-origin",) * 2
    assert atc.made == ["origin"]


def test_a_picture_that_changed_is_compared_anew(
    one: proof.Proof, aim: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "check", lambda *_: aim)
    monkeypatch.setattr(target, "prepare", lambda aim: aim)
    monkeypatch.setattr(proof.soc, "find", lambda *_, **__: one.choice)
    picture = tmp_path / "a.png"
    args = argparse.Namespace(
        precision="origin", sizes="", batch="", images=str(picture), soc="", force=False, json=False
    )
    folders = []
    for content in (b"1", b"2", b"1"):
        picture.write_bytes(content)
        (made,) = proof.prepare(args)
        folders.append(made.inputs)
    assert folders[0] == folders[2] != folders[1]


def forecasts(
    one: proof.Proof,
    program: str,
    environ: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(venv, "stack_python", lambda _: python)
    monkeypatch.setattr(activation, "stack_environ", lambda *_: dict(environ))
    return forecast.table(one.aim, one.one, "Ascend310P3", "origin", {})


def test_what_cannot_be_forecast_is_said_with_its_reason(
    one: proof.Proof, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import sys\nprint('no forecast: EZ3003: No kernel', file=sys.stderr)\nsys.exit(1)"
    shown = forecasts(one, program, {}, monkeypatch, tmp_path)
    assert shown.startswith("no forecast of roi: EZ3003: No kernel\n")


@pytest.mark.parametrize("simulated", [True, False])
def test_a_forecast_is_compared_with_what_canns_own_atc_fused(
    simulated: bool, one: proof.Proof, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    oms = one.one.om_folder("Ascend310P3", "origin")
    oms.mkdir()
    (oms / "om.json").write_text(json.dumps({"simulated": simulated}))
    (oms / "roi.fusion_result.json").write_text("{}")
    shown = forecasts(one, "import sys\nprint(sys.argv[1:])", {}, monkeypatch, tmp_path)
    assert (f"--compare={oms / 'roi.fusion_result.json'}" in shown) is not simulated


def test_a_forecast_says_how_to_know_what_overflows(
    one: proof.Proof, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w -- SIZES=64x64")
    known = "what overflows in fp16 is known after: make om-forecast SIZES=64x64 IMAGES=<pictures>"
    assert forecasts(one, "print('fine')", {}, monkeypatch, tmp_path).split("\n\n") == ["fine", known]
    (one.one.folder / forecast.ACTIVATIONS).write_text("{}")
    assert forecasts(one, "print('fine')", {}, monkeypatch, tmp_path) == "fine"
