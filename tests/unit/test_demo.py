"""`make demo`: the acts are make targets, each with its log and its line, and what goes wrong says how to continue.

The runner is tested with make targets that print what the real ones do; the real demo takes minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.core import manifest
from ascendet.core.stack import Stack
from ascendet.dev import demo, steps
from ascendet.dev.jobs import Pool
from ascendet.dev.steps import Runner, Step
from ascendet.errors import EXIT_CODES, AscendetError
from ascendet.om import compare
from ascendet.run import evaluate, program
from conftest import fails

BAND = "\n".join(
    evaluate.judge(
        "vitdet-tiny",
        "shapes",
        {"bbox": {"AP": 0.632}, "segm": {"AP": 0.5}},
        "eefc2594d48871291fa901187cf859001069a45b15f7c7b1fa8ff8d030c01ab7",
    )
)
COMPARED = "\n".join(
    compare.lines(
        {
            "compare_with_pytorch": {
                **{
                    name: {"raw_count": 9, "after_dedup": 9, "after_score_thr": 3}
                    for name in ("om", "pytorch", "delta")
                },
                "score_thr": 0.3,
            },
            "pairs": {
                "from_score_thr": {
                    "count": 3,
                    "only_om": 0,
                    "only_pytorch": 0,
                    "box": 0.1,
                    "score": 0.01,
                    "mask": 0.99,
                }
            },
            "AP": {"om": {"bbox": 0.6}, "pytorch": {"bbox": 0.6}, "difference": {"bbox": 0.0}},
        }
    )
)


@pytest.fixture
def root(tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Makefile in place of the repository's; `write` replaces recipes in it."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ASCENDET_DATA"):
        monkeypatch.delenv(name, raising=False)
    write(tmp_path)
    return tmp_path


def write(root: Path, **recipes: str) -> None:
    """Write the Makefile: every target prints that it ran and what it was told."""
    pictures = root / "build/runs/infer/pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "0000-000001.jpg").touch()
    (root / "band").write_text(BAND)
    (root / "compared").write_text(COMPARED)
    made = {
        **dict.fromkeys(("doctor", "env", "install", "data", "train", "export", "om"), "true"),
        "infer": "echo 'stored in build/runs/infer: 1 pictures, results.json (1 x simulated)'",
        "eval": "cat band",
        "om-compare": "cat compared",
        "report": "printf 'a warning\\nbuild/reports/a b/report.html\\nAccepted (4 of 4)\\n  ok box AP\\n'",
    } | recipes
    text = "".join(
        f".PHONY: {name}\n{name}:\n\t@echo ran $@ $(STACK) $(MODEL) $(DATASET) $(NPU_FALLBACK)\n\t@{recipe}\n"
        for name, recipe in made.items()
    )
    (root / "Makefile").write_text(text)


def run(stack: str = "") -> None:
    demo.execute(argparse.Namespace(stack=stack))


def run_steps(folder: Path, *given: Step) -> None:
    with Pool(1) as pool:
        runner = Runner(folder=folder, again="make demo", pool=pool)
        for one in given:
            runner.run(one)


def step(name: str = "train", text: str = "train it") -> Step:
    return Step(name=name, text=text, target=name, variables={"MODEL": "vitdet-tiny", "DATASET": "shapes"})


def error(**options: str) -> AscendetError:
    return AscendetError("data-missing", "no data", hint="make data", **options)


# -- the acts --


@pytest.mark.parametrize("stack", ["vitdet", "blendmask"])
def test_every_step_is_a_target_of_the_makefile(stack: str) -> None:
    makefile = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE)) | {"NPU_FALLBACK"}
    for act in demo.plan([Stack.load(stack)]):
        for one in act.steps:
            assert one.target in targets
            assert set(one.variables) <= variables


def test_all_acts_run_in_order_and_show_what_came_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    shown = capsys.readouterr().out
    acts = re.findall(r"^Act (\d) of 3: (.+)$", shown, re.MULTILINE)
    assert [title for _, title in acts][:2] == ["ViTDet on mmdetection", "BlendMask on detectron2"]
    assert shown.count("build/runs/infer/pictures/0000-000001.jpg") == 2
    assert shown.count("boxes: AP 0.632 is inside 0.565 to 0.661") == 2
    assert shown.count("masks: AP 0.500 is below 0.575 to 0.645") == 2
    assert shown.count("AP of boxes: OM 0.6000, PyTorch 0.6000, difference +0.0000") == 2
    assert (
        shown.count("      build/reports/a b/report.html\n      Accepted (4 of 4)\n        ok box AP\n") == 4
    )
    assert "a warning" not in shown
    assert "ran " not in shown, "what the targets print is in their logs"
    logs = root / "build/demo"
    assert (logs / "1-train.log").read_text().splitlines() == [
        "$ make train STACK=vitdet MODEL=vitdet-tiny DATASET=shapes NPU_FALLBACK=error",
        "ran train vitdet vitdet-tiny shapes error",
    ]
    assert (logs / "2-train.log").read_text().endswith("\nran train blendmask blendmask-tiny shapes error\n")
    assert (
        (logs / "3-om-blendmask.log").read_text().endswith("\nran om blendmask blendmask-tiny shapes error\n")
    )
    times = [
        logs.joinpath(f"1-{name}.log").stat().st_mtime_ns
        for name in ("env", "train", "infer", "eval", "report-vitdet")
    ]
    assert times == sorted(times)


def test_one_stack_is_trained_and_exported_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("blendmask")
    assert "ViTDet" not in capsys.readouterr().out
    assert (root / "build/demo/1-train.log").read_text().startswith("$ make train STACK=blendmask ")
    assert (root / "build/demo/2-export-blendmask.log").is_file()


@pytest.mark.parametrize(("words", "told"), [([], ""), (["STACK=vitdet"], " --stack 'vitdet'")])
def test_make_demo_is_all_acts_unless_a_stack_is_named(words: list[str], told: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "STACK"}
    command = ["make", "--dry-run", "demo", *words]
    done = subprocess.run(command, cwd=paths.ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith(f"-m ascendet demo{told}")


def test_a_stack_without_models_is_refused(root: Path) -> None:
    assert fails("usage", run, "blendmask-main").found == "STACK=blendmask-main"
    assert not (root / "build/demo").exists()


def test_variables_of_the_user_reach_every_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKEFLAGS", " -- DEVICES=3 MODEL=other")
    write(root, train="echo on $(DEVICES)")
    run("vitdet")
    assert (root / "build/demo/1-train.log").read_text().splitlines()[-1] == "on 3"
    assert "vitdet-tiny" in (root / "build/demo/1-train.log").read_text()


def test_a_path_reaches_make_as_it_is(root: Path) -> None:
    write(root, infer="printf '%s\\n' '$(IMAGES)'")
    told = Step(name="x", text="x", target="infer", variables={"IMAGES": "/a b/$HOME/00[1-4].*"})
    run_steps(root / "logs", told)
    assert (root / "logs/x.log").read_text().splitlines()[-1] == "/a b/$HOME/00[1-4].*"


# -- beside the training --


def test_pictures_are_drawn_half_way_while_the_training_goes_on(
    root: Path, build: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the first checkpoint after half of the steps; the training waits here until they are drawn."""
    run_folder = build / "runs/vitdet-tiny_shapes/first"
    run_folder.mkdir(parents=True)
    (run_folder / "last_checkpoint").write_text("/elsewhere/epoch_3.pth")
    rows = "".join(f"04:21:2{step} train {step}/4  loss 2.5\\n" for step in (1, 2))
    write(
        root,
        train=f"printf 'run folder: build/runs/vitdet-tiny_shapes/first\\n{rows}'; "
        "for i in $$(seq 300); do test -f drawn && exit 0; sleep 0.1; done; exit 1",
        infer="touch drawn; echo with$(CHECKPOINT); echo 'stored in build/runs/infer: 1 pictures, results.json'",
    )
    run("vitdet")
    assert f"with{run_folder}/epoch_3.pth\n" in (build / "demo/half-way.log").read_text()
    assert (build / "demo/1-infer.log").read_text().splitlines()[-2] == "with", (
        "the last checkpoint's afterwards"
    )
    shown = capsys.readouterr().out
    assert shown.index("half-way pictures") < shown.index("  train vitdet-tiny")
    assert shown.count("pictures/0000-000001.jpg") == 2


@pytest.mark.parametrize(
    ("log", "checkpoint"),
    [
        ("run folder: build/runs/vitdet-tiny_shapes/first\n04:21:21 train 1/4  loss 2.5\n", True),
        ("run folder: build/runs/vitdet-tiny_shapes/first\n04:21:21 train 3/4  loss 2.5\n", False),
        ("run folder: build/runs/vitdet-tiny_shapes/first\n", True),
        ("04:21:21 train 3/4  loss 2.5\n", True),
        (
            "run folder: build/runs/vitdet-tiny_shapes/first\n04:21:21 train 3/4  x\n04:21:22 validate 2/2\n",
            True,
        ),
    ],
    ids=["too early", "no checkpoint", "no progress", "no run", "at its end"],
)
def test_nothing_is_drawn_before_there_is_a_checkpoint_of_half_the_training(
    root: Path, build: Path, log: str, checkpoint: bool
) -> None:
    run_folder = build / "runs/vitdet-tiny_shapes/first"
    run_folder.mkdir(parents=True)
    if checkpoint:
        (run_folder / "last_checkpoint").write_text("epoch_1.pth")
    (root / "x.log").write_text(log)
    (train,) = (one for one in demo.plan([Stack.load("vitdet")])[0].steps if one.target == "train")
    assert train.beside(root / "x.log") is None


def test_pictures_that_cannot_be_drawn_half_way_stop_no_training(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = replace(step(), beside=lambda log: replace(step("env", "draw"), result=lambda log: ["a picture"]))
    write(root, env="exit 1", train="sleep 0.5; touch trained")
    run_steps(root / "logs", given)
    assert (root / "trained").exists()
    shown = capsys.readouterr().out
    assert re.search(r"^  draw +0:00  failed$", shown, re.MULTILINE)
    assert "a picture" not in shown


def test_the_next_acts_environment_is_made_while_the_first_model_trains(root: Path) -> None:
    write(
        root,
        env="touch env-$(STACK)",
        train="for i in $$(seq 300); do test -f env-blendmask && exit 0; sleep 0.1; done; exit 1",
    )
    run()
    assert "make env STACK=blendmask" in (root / "build/demo/ahead-blendmask.log").read_text()


# -- stopped and continued --


def test_a_failure_has_the_steps_own_name_hint_and_log(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "message").write_text("the reason\n" + error(found="nothing\nat all").render())
    write(root, data="cat message; exit 60", train="touch trained")
    failed = fails("data-missing", run, "vitdet")
    assert failed.exit_code == EXIT_CODES["data-missing"]
    assert (failed.what, failed.found) == ("no data", "nothing\nat all")
    assert failed.hint.splitlines() == [
        "make data",
        "less build/demo/1-data.log",
        "make demo STACK=vitdet, which continues with this step",
    ]
    shown = capsys.readouterr().out
    assert "the reason" in shown
    assert "error[" not in shown, "the error is shown once, where all errors are"
    assert not (root / "trained").exists()


def test_a_program_that_states_no_error_fails_with_its_last_lines(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "message").write_text(f"{error().render()}went on\nTraceback\nKeyError: 3\n")
    write(root, env="cat message; exit 1")
    failed = fails("command-failed", run)
    assert failed.what.startswith("make env STACK=vitdet ")
    assert failed.hint.startswith("less build/demo/1-env.log\nmake demo, which")
    assert "KeyError: 3\n" in capsys.readouterr().out


def test_what_an_error_says_is_read_back_as_it_was() -> None:
    for one in (error(), error(expected="a\nb", found="c"), error(found="  d: e")):
        read = AscendetError.read(f"before\n{one.render()}\n")
        assert read is not None
        assert vars(read) == vars(one)
    assert AscendetError.read("error[unheard-of]: x\n  next:     y") is None
    assert AscendetError.read("") is None


def stopped(build: Path, state: str, checkpoint: bool = True) -> tuple[Step, Path]:
    """A training's step and its last log, of a run in this state."""
    home = build / "runs/vitdet-tiny_shapes/20260101-000000"
    home.mkdir(parents=True)
    manifest.write(home, {"state": state})
    if checkpoint:
        (home / "last_checkpoint").write_text("epoch_3.pth")
    log = build / "1-train.log"
    log.write_text(f"a line\nrun folder: {paths.shorten(home)}\n")
    return step(), log


@pytest.mark.parametrize("state", ["interrupted", "failed", "running"])
def test_a_training_that_stopped_half_way_is_resumed(root: Path, build: Path, state: str) -> None:
    told = demo.resumed(*stopped(build, state))
    assert told.command[-2:] == ["RESUME=1", "RUN=20260101-000000"]
    assert "continuing 20260101-000000" in told.text


def test_a_resumed_training_that_did_not_start_is_resumed_again(root: Path, build: Path) -> None:
    """Its log has the command and no run folder: an environment that could not be repaired, say."""
    told = demo.resumed(*stopped(build, "failed"))
    write(root, train="exit 1")
    fails("command-failed", run_steps, build, replace(told, name="1-train"))
    assert demo.resumed(step(), build / "1-train.log") == told


def test_a_training_without_a_checkpoint_starts_again(root: Path, build: Path) -> None:
    assert demo.resumed(*stopped(build, "interrupted", checkpoint=False)) == step()


def test_a_finished_training_is_not_resumed(root: Path, build: Path) -> None:
    assert demo.resumed(*stopped(build, "finished")) == step()


def test_a_first_training_and_a_log_of_a_removed_run_are_no_reason_to_resume(tmp_path: Path) -> None:
    assert demo.resumed(step(), tmp_path / "absent.log") == step()
    (tmp_path / "x.log").write_text("run folder: build/runs/gone\n")
    assert demo.resumed(step(), tmp_path / "x.log") == step()


def test_ctrl_c_ends_all_processes_and_says_how_to_continue(root: Path) -> None:
    write(root, train="sh -c 'echo $$$$ > pid; sleep 100 & wait'")
    code = (
        "import argparse, sys; from pathlib import Path; from ascendet import paths; from ascendet.dev import demo;"
        f"from ascendet.errors import AscendetError; paths.ROOT = Path({str(root)!r})\n"
        "try: demo.execute(argparse.Namespace(stack='vitdet'))\n"
        "except AscendetError as error: sys.stdout.write(error.render()); sys.exit(error.exit_code)"
    )
    environ = os.environ | {
        "ASCENDET_BUILD": str(root / "build"),
        "PYTHONPATH": str(Path(demo.__file__).parents[2]),
    }
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 30
        while not ((root / "pid").is_file() and (root / "pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int((root / "pid").read_text())
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODES["interrupted"]
    assert "stopped in: train vitdet-tiny" in shown
    assert "make demo STACK=vitdet, which continues there" in shown
    assert not Path(f"/proc/{child}").exists()


# -- the line --


class Terminal(io.StringIO):
    """A standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_shows_how_far_the_step_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '{"phase":"train","time":1763698881,"step":75,"of":900,"loss":2.5512,"eta":1648.2,"seconds":1.9}'
    (root / "row").write_text(f"{program.describe_row(row)}\n")
    write(root, train="cat row; sleep 0.5")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(steps, "_EVERY", 0.1)
    run_steps(root / "logs", step())
    shown = str(sys.stdout.getvalue())  # type: ignore[attr-defined]
    assert shown.count("\n") == 1, "only the finished step has a line of its own"
    assert re.search(r"\r\x1b\[K  train it  75/900  0:00  about 27:2\d left", shown)
    assert shown.endswith("0:00\n")


def test_without_a_terminal_a_step_is_one_plain_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_steps(root / "logs", step())
    assert re.fullmatch(r"  train it +0:0\d\n", capsys.readouterr().out)


def test_time_left_is_the_programs_own_or_the_last_runs_or_not_said(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert steps.describe("x", 5, None, log) == "  x  0:05"
    log.write_text("compiling\n")
    assert steps.describe("x", 5, None, log) == "  x  0:05"
    assert steps.describe("x", 5, 65.0, log) == "  x  0:05  about 1:00 left"
    assert steps.describe("x", 70, 65.0, log) == "  x  1:10", "longer than the last time: nobody knows"
    log.write_text("04:21:21 validate 3/15\n")
    assert steps.describe("x", 5, None, log) == "  x  3/15  0:05"
    log.write_text("04:21:21 train 75/900  loss 2.551  eta 0:27:28  1.900 s/step\n")
    os.utime(log, (time.time() - 60, time.time() - 60))
    assert re.fullmatch(r"  x  75/900  0:05  about 26:2[78] left", steps.describe("x", 5, 9.0, log))


def test_the_last_runs_seconds_are_kept_and_a_broken_file_of_them_is_no_error(root: Path) -> None:
    file = root / "logs/seconds.json"
    run_steps(root / "logs", step("env"), step("train"))
    assert set(json.loads(file.read_text())) == {"env", "train"}
    file.write_text("{")
    run_steps(root / "logs", step("train"))
    assert set(json.loads(file.read_text())) == {"train"}
