"""A family of models docks by its wheel alone: one that is made here trains, predicts and fails by name."""

from __future__ import annotations

import ast
import os
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import manifest
from ascendet.core.stack import Stack
from ascendet.errors import AscendetError
from ascendet.run import curves, diagnose, evaluate, family, folders, infer, program, target, train
from conftest import fails

WHEELS = paths.WHEELS  # before a test points it elsewhere

WHEEL = """
name = "tiny"
version = "1"
source = { path = "." }
[family]
package = "tiny"
configs = "models/{model}.json"
programs = ["train", "predict"]
"""
TRAIN = """
    import os, pathlib
    from ascendet_common import errors, progress
    work = pathlib.Path(os.environ["WORK_DIR"])
    with errors.reporting():
        for step in (1, 2):
            progress.write("train", step=step, of=2, loss=1 / step, losses={}, lr=0.1)
        print("chatter that nobody reads")
        if os.environ.get("FAIL"):
            raise errors.RunError("the loss is not finite", name="loss-not-finite", found="loss_mask is nan")
        (work / "model.bin").write_bytes(b"weights")
        (work / "last_checkpoint").write_text("model.bin")
"""


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A stack whose family is a package in a folder of its own, on a scripts/run.sh that needs no torch."""
    home = tmp_path / "wheels" / "tiny"
    (home / "tiny" / "models").mkdir(parents=True)
    (home / "wheel.toml").write_text(WHEEL)
    (home / "tiny" / "__init__.py").touch()
    (home / "tiny" / "models" / "one.json").write_text("{}")
    (home / "tiny" / "train.py").write_text(textwrap.dedent(TRAIN))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.sh").write_text(f'exec {sys.executable} -m "$FAMILY.$1"\n')
    monkeypatch.setattr(paths, "WHEELS", tmp_path / "wheels")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    return replace(Stack.load("vitdet"), name="tiny", wheels=("tiny",), models=("one",))


def start(stack: Stack, **environ: str) -> Path:
    kin = family.of(stack)
    aim = target.Target(stack=stack, family=kin, model="one", dataset="shapes", devices=(0,), npu="sim")
    run = folders.new_run(aim)
    given = {
        "FAMILY": kin.package,
        "WORK_DIR": str(run),
        "PYTHONPATH": f"{WHEELS / 'common'}:{kin.source.parent}",
    }
    with folders.keeping_state(run, {"key": "k"}):
        program.execute(
            program.Run(program="train", environ=os.environ | given | environ, log=run / folders.LOG)
        )
    return run


def test_a_new_family_trains(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    run = start(stack)
    assert (manifest.read(run) or {})["state"] == "finished"
    assert folders.last_checkpoint(run) == run / "model.bin"
    shown = capsys.readouterr().out
    assert "train 1/2  loss 1" in shown
    assert "train 2/2  loss 0.5" in shown
    assert "chatter" not in shown
    assert "chatter" in (run / folders.LOG).read_text()


def test_a_new_family_fails_by_name(stack: Stack) -> None:
    error = fails("loss-not-finite", start, stack, FAIL="1")
    assert (error.what, error.found) == ("the loss is not finite", "loss_mask is nan")
    with pytest.raises(AscendetError):  # and the next attempt does not tell the old one's error
        start(stack, FAIL="1", PYTHONPATH="")


def test_what_a_family_does_not_have_is_refused(stack: Stack) -> None:
    kin = family.of(stack)
    assert kin.config("one").name == "one.json"
    assert fails("config-missing", kin.config, "two").expected == "one"
    kin.check_program("predict")
    assert fails("program-missing", kin.check_program, "export").expected == "train, predict"


def test_a_stack_has_one_family(stack: Stack) -> None:
    fails("stack-invalid", family.of, replace(stack, wheels=()))
    toml = paths.WHEELS / "tiny" / "wheel.toml"
    toml.write_text(toml.read_text().replace("configs", "configurations"))
    fails("wheel-invalid", family.of, stack)


def code_of(file: Path) -> str:
    """A module without its comments and docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return ast.unparse(tree)


def test_the_tool_names_no_framework() -> None:
    """Adding a family changes no module of the tool: none of them names one, or its framework, in code."""
    named = re.compile(r"mmdet|mmengine|mmcv|vitdet|detectron2")
    found = {
        f"{Path(module.__file__).name}: {line.strip()}"
        for module in (curves, diagnose, evaluate, family, folders, infer, program, target, train)
        for line in code_of(Path(module.__file__)).splitlines()
        if named.search(line) and "STACK=vitdet" not in line and "default='vitdet'" not in line
    }
    assert not found, "\n".join(sorted(found))


def test_errors_of_programs_are_in_the_table() -> None:
    """What wheels say in error.json has a name and an exit code here."""
    from ascendet.errors import EXIT_CODES

    names = {
        name
        for file in WHEELS.glob("*/*/*.py")
        for name in re.findall(r'(?:default_name|name) ?= ?"([a-z]+(?:-[a-z]+)+)"', file.read_text())
        if "RunError" in file.read_text()
    }
    assert names, "the pattern still finds them"
    assert names <= EXIT_CODES.keys()
