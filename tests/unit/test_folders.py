"""Run folders: what is continued, which checkpoint is used, and the state that a manifest tells."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ascendet.core import files, manifest
from ascendet.errors import AscendetError
from ascendet.run import folders
from ascendet.run.target import Target
from conftest import fails, make_run

NO_PROCESS = 2**22 + 1  # above the largest pid


def test_what_a_killed_tool_left_is_removed_and_what_is_at_work_is_not(tmp_path: Path) -> None:
    final = tmp_path / "made"
    tool = subprocess.Popen([sys.executable, "-c", "input()", "ascendet"], stdin=subprocess.PIPE)
    killed = subprocess.Popen([sys.executable, "-c", "input()", "ascendet"], stdin=subprocess.PIPE)
    killed.kill()
    os.waitid(
        os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT
    )  # dead, and there until someone asks how it ended
    numbers = {
        "dead": NO_PROCESS,
        "old": f"{NO_PROCESS}-old",
        "alive": tool.pid,
        "zombie": killed.pid,
        "another": os.getpid(),
        "outlived": NO_PROCESS + 1,
        "until_now": NO_PROCESS + 2,
    }
    made = {name: tmp_path / f".tmp-made-{number}" for name, number in numbers.items()}
    other = tmp_path / f".tmp-made-fp16-{NO_PROCESS}"
    for folder in (*made.values(), other):
        folder.mkdir()
    with tool, killed, (made["outlived"] / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (made["until_now"] / ".lock").open("w") as also:
            fcntl.flock(also, fcntl.LOCK_EX)
            with folders.replacing(final, "x.log") as work:
                (work / "result").touch()
                also.close()
        tool.communicate(b"\n")
    alive, outlived = made["alive"], made["outlived"]
    assert sorted(tmp_path.iterdir()) == sorted([alive, outlived, other, final])


def test_of_two_tools_at_once_the_last_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final = tmp_path / "made"
    rename = Path.rename

    def between(self: Path, target: Path) -> Path:
        """Let another process finish between the removal of the old folder and the renaming."""
        if target == final and not final.exists():
            monkeypatch.setattr(Path, "rename", rename)
            final.mkdir()
            (final / "theirs").touch()
        return rename(self, target)

    final.mkdir()
    monkeypatch.setattr(Path, "rename", between)
    with folders.replacing(final, "x.log") as work:
        (work / "ours").touch()
    assert [file.name for file in final.iterdir()] == ["ours"]
    assert list(tmp_path.iterdir()) == [final]


def test_latest_moves_in_one_step(aim: Target) -> None:
    for name in ("a", "b"):
        folders.link_latest(make_run(aim, name, "finished"))
        assert (aim.home / "latest").resolve().name == name


def test_last_checkpoint_is_the_one_noted_and_there(aim: Target) -> None:
    run = make_run(aim, "a", "running")
    assert folders.last_checkpoint(run) == run / "epoch_3.pth"
    (run / "epoch_4.pth").write_text("torn: mmengine was killed before it noted the name")
    assert folders.last_checkpoint(run) == run / "epoch_3.pth"
    (run / "epoch_3.pth").unlink()
    assert folders.last_checkpoint(run) is None


def test_resume_takes_the_newest_unfinished_run_with_a_checkpoint(aim: Target) -> None:
    fails("resume-impossible", folders.find_resumable, aim, {})
    make_run(aim, "1", "interrupted")
    wanted = make_run(aim, "2", "running")  # a power cut leaves this state
    make_run(aim, "3", "failed", checkpoint=False)
    make_run(aim, "4", "finished")
    assert folders.find_resumable(aim, {}) == wanted


def test_resume_says_what_changed(aim: Target, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(aim, "1", "interrupted")
    folders.find_resumable(aim, {"ranks": 2})
    assert "these changed: ranks" in capsys.readouterr().err


def test_resume_keeps_mixed_precision_and_learning_rate(
    aim: Target, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(aim, "1", "interrupted")
    manifest.write(run, {"state": "interrupted", "inputs": {"ranks": 2, "amp": True, "lr": 0.5}})
    plain: dict[str, object] = {"ranks": 2, "amp": False, "lr": None}
    assert folders.resume_inputs(run, plain) == {"ranks": 2, "amp": True, "lr": 0.5}
    folders.find_resumable(aim, plain)
    assert capsys.readouterr().err == ""
    folders.find_resumable(aim, plain | {"lr": 0.25})
    assert "these changed: lr\n" in capsys.readouterr().err
    assert manifest.digest_inputs(plain) != manifest.digest_inputs(plain | {"amp": True})


def test_two_trainings_in_one_folder(aim: Target) -> None:
    run = make_run(aim, "1", "running")
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fails("run-busy", folders.find_resumable, aim, {})


def test_finished_with_the_same_inputs_is_found(aim: Target) -> None:
    inputs: dict[str, object] = {"model": "x"}
    key = manifest.digest_inputs(inputs)
    make_run(aim, "1", "interrupted", key)
    assert folders.find_finished(aim, inputs) is None
    finished = make_run(aim, "2", "finished", key)
    make_run(aim, "3", "finished", "another")
    assert folders.find_finished(aim, inputs) == finished
    assert folders.find_finished(aim, inputs, resume=True) == finished
    make_run(aim, "4", "interrupted", "of mixed precision")
    assert folders.find_finished(aim, inputs) == finished
    assert folders.find_finished(aim, inputs, resume=True) is None, "the newer one is meant"
    (finished / "epoch_3.pth").unlink()
    assert folders.find_finished(aim, inputs) is None


def test_state_is_kept_true(aim: Target) -> None:
    run = make_run(aim, "1", "new")
    with folders.keeping_state(run, {"key": "k"}):
        assert (manifest.read(run) or {})["state"] == "running"
    content = manifest.read(run) or {}
    assert content["state"] == "finished"
    assert content["outputs"] == {"epoch_3.pth": files.digest(run / "epoch_3.pth")}
    for name, state in (("interrupted", "interrupted"), ("run-failed", "failed")):
        with pytest.raises(AscendetError), folders.keeping_state(run, {"key": "k"}):
            raise AscendetError(name, "what", hint="next")
        assert (manifest.read(run) or {})["state"] == state


@pytest.mark.parametrize("name", ["config-invalid", "config-unsupported", "checkpoint-missing"])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_training_that_is_refused_leaves_no_run_and_hides_none(
    aim: Target, name: str, earlier: bool
) -> None:
    before = make_run(aim, "1", "finished") if earlier else None
    if before:
        folders.link_latest(before)
    run = folders.new_run(aim, "2")

    def refused() -> None:
        with folders.withdrawing(run), folders.keeping_state(run, {"key": "k"}):
            assert (aim.home / "latest").resolve() == run
            raise AscendetError(name, "what", hint="next")

    fails(name, refused)
    assert not run.exists()
    assert folders.all_runs(aim) == ([before] if before else [])
    assert (aim.home / "latest").is_symlink() == earlier
    if before:
        assert folders.find_checkpoint(aim, "") == before / "epoch_3.pth"


@pytest.mark.parametrize(("name", "checkpoint"), [("run-failed", False), ("config-invalid", True)])
def test_a_training_that_began_or_failed_is_kept(aim: Target, name: str, checkpoint: bool) -> None:
    run = make_run(aim, "2", "interrupted") if checkpoint else folders.new_run(aim, "2")

    def failed() -> None:
        with folders.withdrawing(run), folders.keeping_state(run, {"key": "k"}):
            raise AscendetError(name, "what", hint="next")

    fails(name, failed)
    assert folders.all_runs(aim) == [run]
    assert (aim.home / "latest").resolve() == run


def test_the_manifest_names_what_was_computed_on_the_cpu(aim: Target) -> None:
    run = make_run(aim, "1", "new")
    nms, pool = ({"operator": f"torchvision::{name}", "line": "model.py:7"} for name in ("nms", "roi_pool"))
    rows = [
        {"phase": "train"},
        *({"phase": "warning", "text": "slow", "fallback": one} for one in (nms, pool, nms)),
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with folders.keeping_state(run, {}):
        assert (manifest.read(run) or {})["cpu_fallbacks"] == []
        (run / folders.PROGRESS).write_text(text + '{"phase": "tr', encoding="utf-8")
    assert (manifest.read(run) or {})["cpu_fallbacks"] == [nms, pool]


def test_training_that_leaves_no_checkpoint_has_failed(aim: Target) -> None:
    run = make_run(aim, "1", "new", checkpoint=False)

    def body() -> None:
        with folders.keeping_state(run, {}):
            pass

    fails("run-failed", body)


def test_which_checkpoint_is_evaluated(aim: Target, tmp_path: Path) -> None:
    fails("checkpoint-missing", folders.find_checkpoint, aim, "")
    fails("checkpoint-missing", folders.find_checkpoint, aim, str(tmp_path / "none.pth"))
    run = make_run(aim, "1", "finished")
    folders.link_latest(run)
    found = folders.find_checkpoint(aim, "")
    assert found == run / "epoch_3.pth"
    assert folders.folder_beside(aim, found, "eval") == run / "eval"
    assert folders.folder_beside(aim, run / "epoch_2.pth", "eval") == run / "eval-epoch_2"
    other = tmp_path / "other.pth"
    other.touch()
    found = folders.find_checkpoint(aim, str(other))
    assert folders.folder_beside(aim, found, "infer") == aim.home / "infer-other"


def test_a_named_run_is_made_once_and_resumed_by_name(aim: Target) -> None:
    run = folders.new_run(aim, "mine")
    manifest.write(run, {"state": "interrupted", "inputs": {}})
    fails("name-in-use", folders.new_run, aim, "mine")
    (run / "last_checkpoint").write_text("interrupted.pth")
    (run / "interrupted.pth").touch()
    make_run(aim, "z-newer", "interrupted")
    assert folders.find_resumable(aim, {}, "mine") == run
    fails("resume-impossible", folders.find_resumable, aim, {}, "other")


def test_a_resumed_training_began_when_it_was_first_started(build: Path) -> None:
    run = build / "runs/m_d/first"
    run.mkdir(parents=True)
    (run / "a.pth").touch()
    (run / "last_checkpoint").write_text("a.pth")
    for started in ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"):
        with folders.keeping_state(run, {"started": started}):
            pass
        assert (manifest.read(run) or {})["started"] == "2026-01-01T00:00:00+00:00"


def test_what_cannot_be_resumed_is_started_under_another_name(
    aim: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(aim, "first", "interrupted", checkpoint=False)
    monkeypatch.setenv("MAKEFLAGS", "w -- RUN=first EPOCHS=4 RESUME=1")
    assert fails("resume-impossible", folders.find_resumable, aim, {}, "first").hint == "make train EPOCHS=4"
