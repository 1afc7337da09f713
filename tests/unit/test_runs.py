"""Run folders: what may start, what is continued, what a failure is called, and how an interrupt travels."""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import pytest
from ascendet import env, evaluate, infer, manifest, paths, runs, train
from ascendet.errors import AscendetError
from ascendet.stack import Stack

STACK = Stack.load("vitdet")


@pytest.fixture
def target(build: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Target:
    monkeypatch.setenv("NPU", "sim")
    monkeypatch.delenv("CANN_SIM_DEVICES", raising=False)
    monkeypatch.delenv("ASCENDET_DATA", raising=False)
    return check("vitdet-tiny", "shapes", "6,7")


def check(model: str, dataset: str, devices: str, stack: str = "vitdet") -> runs.Target:
    parser = argparse.ArgumentParser()
    runs.add_target_options(parser)
    options = [f"--stack={stack}", f"--model={model}", f"--dataset={dataset}", f"--devices={devices}"]
    return runs.check_target(parser.parse_args(options))


def test_place_is_checked(target: runs.Target) -> None:
    parser = argparse.ArgumentParser()
    runs.add_target_options(parser)
    words = ["--model=vitdet-tiny", "--dataset=shapes", "--devices=0", "--run-in=dokcer"]
    assert fails("usage", runs.check_target, parser.parse_args(words)).hint == "RUN_IN=docker"


def fails(name: str, call: object, *arguments: object) -> AscendetError:
    with pytest.raises(AscendetError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.name == name
    return caught.value


def make_run(target: runs.Target, name: str, state: str, key: str = "k", checkpoint: bool = True) -> Path:
    run = target.home / name
    run.mkdir(parents=True)
    manifest.write(run, {"key": key, "state": state, "inputs": {}})
    if checkpoint:
        (run / "epoch_3.pth").write_text("weights")
        (run / "last_checkpoint").write_text("/elsewhere/before/it/moved/epoch_3.pth")
    return run


def test_names_are_checked_before_anything_is_built(target: runs.Target, build: Path) -> None:
    error = fails("model-unknown", check, "nope", "shapes", "0")
    assert error.expected == "vitdet-tiny, vitdet-b, vitdet-b-overfit"
    fails("dataset-unknown", check, "vitdet-b", "imagenet", "0")
    fails("devices-invalid", check, "vitdet-b", "coco", "9")
    fails("model-unknown", check, "blendmask", "coco", "0", "blendmask")
    for dataset in ("shapes", "coco"):
        error = fails("data-missing", runs.check_data, dataset)
        assert f"make data DATASET={dataset}" in error.hint
    assert not build.exists()


def test_missing_configuration_lists_those_there_are(target: runs.Target) -> None:
    configs = env.stack_home(STACK) / "lib/python3.11/site-packages/vitdet/configs"
    configs.mkdir(parents=True)
    (configs / "vitdet-b_coco.py").touch()
    error = fails("config-missing", runs.check_config, target)
    assert error.expected == "vitdet-b_coco"
    assert error.hint == "MODEL=vitdet-b DATASET=coco"


def test_latest_moves_in_one_step(target: runs.Target) -> None:
    for name in ("a", "b"):
        runs.link_latest(make_run(target, name, "finished"))
        assert (target.home / "latest").resolve().name == name


def test_last_checkpoint_is_the_one_noted_and_there(target: runs.Target) -> None:
    run = make_run(target, "a", "running")
    assert runs.last_checkpoint(run) == run / "epoch_3.pth"
    (run / "epoch_4.pth").write_text("torn: mmengine was killed before it noted the name")
    assert runs.last_checkpoint(run) == run / "epoch_3.pth"
    (run / "epoch_3.pth").unlink()
    assert runs.last_checkpoint(run) is None


def test_resume_takes_the_newest_unfinished_run_with_a_checkpoint(target: runs.Target) -> None:
    fails("resume-impossible", train._resumable, target, {})
    make_run(target, "1", "interrupted")
    wanted = make_run(target, "2", "running")  # a power cut leaves this state
    make_run(target, "3", "failed", checkpoint=False)
    make_run(target, "4", "finished")
    assert train._resumable(target, {}) == wanted


def test_resume_says_what_changed(target: runs.Target, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(target, "1", "interrupted")
    train._resumable(target, {"ranks": 2})
    assert "these changed: ranks" in capsys.readouterr().err


def test_two_trainings_in_one_folder(target: runs.Target) -> None:
    run = make_run(target, "1", "running")
    with (run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fails("run-busy", train._resumable, target, {})


def test_finished_with_the_same_inputs_is_found(target: runs.Target) -> None:
    inputs: dict[str, object] = {"model": "x"}
    key = manifest.digest_inputs(inputs)
    make_run(target, "1", "interrupted", key)
    assert train._find(target, inputs) is None
    finished = make_run(target, "2", "finished", key)
    make_run(target, "3", "finished", "another")
    assert train._find(target, inputs) == finished
    (finished / "epoch_3.pth").unlink()
    assert train._find(target, inputs) is None


def test_state_is_kept_true(target: runs.Target) -> None:
    run = make_run(target, "1", "new")
    with train._state(run, {"key": "k"}):
        assert (manifest.read(run) or {})["state"] == "running"
    content = manifest.read(run) or {}
    assert content["state"] == "finished"
    assert content["outputs"] == {"epoch_3.pth": manifest.digest_file(run / "epoch_3.pth")}
    for name, state in (("interrupted", "interrupted"), ("run-failed", "failed")):
        with pytest.raises(AscendetError), train._state(run, {"key": "k"}):
            raise AscendetError(name, "what", hint="next")
        assert (manifest.read(run) or {})["state"] == state


def test_training_that_leaves_no_checkpoint_has_failed(target: runs.Target) -> None:
    run = make_run(target, "1", "new", checkpoint=False)

    def body() -> None:
        with train._state(run, {}):
            pass

    fails("run-failed", body)


def test_which_checkpoint_is_evaluated(target: runs.Target, tmp_path: Path) -> None:
    fails("checkpoint-missing", runs.find_checkpoint, target, "")
    fails("checkpoint-missing", runs.find_checkpoint, target, str(tmp_path / "none.pth"))
    run = make_run(target, "1", "finished")
    runs.link_latest(run)
    found = runs.find_checkpoint(target, "")
    assert found == run / "epoch_3.pth"
    assert runs.folder_beside(target, found, "eval") == run / "eval"
    other = tmp_path / "other.pth"
    other.touch()
    found = runs.find_checkpoint(target, str(other))
    assert runs.folder_beside(target, found, "infer") == target.home / "infer-other"


LOGS = {
    "interrupted": "x - mmengine - INFO - error[interrupted]: saved interrupted.pth after iteration 7\n",
    "checkpoint-mismatch": "vitdet.checkpoint.CheckpointError: the checkpoint is not one of this model\nmissing: a\n",
    "checkpoint-unreadable": "CheckpointError: x.pth is refused, because reading it could run code: os.system\n",
    "disk-full": "OSError: [Errno 28] No space left on device\n",
    "npu-out-of-memory": "RuntimeError: NPU out of memory. Tried to allocate 64.00 MiB (NPU 0; 64.00 GiB total)\n",
    "npu-lost": "RuntimeError: NPU function error: c10_npu::acl::AclrtX(s), error code is 507010\n",
    "npu-timeout": "RuntimeError: NPU function error: c10_npu::acl::AclrtX(s), error code is 507046\n"
    "[rank1]: RuntimeError: OPS function error: HcclAllreduce, error code is 21\n",
    "hccl-timeout": "[rank1]: RuntimeError: OPS function error: HcclBroadcast, error code is 9\n",
    "hccl-link-down": "[rank1]: RuntimeError: OPS function error: HcclAllreduce, error code is 21\n",
    "port-in-use": "RuntimeError: HCCL function error: HcclGetRootInfo(&hcclID), error code is 7\n"
    "[rank0]: EI0019: [PID: 9] Failed to enable listening for the host network adapter socket. "
    "Reason: The IP address 10.0.0.1 and port 60000 have already been bound.\n",
    "data-invalid": "[rank0]: vitdet.dataset.DataError: a.json names 1 of 2 images that are not in b: c.jpg\n",
    "image-damaged": "[rank0]: vitdet.dataset.DataError: damaged image a.jpg: image file is truncated\n",
    "run-failed": "[rank0]: ValueError: something else\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_failures_are_named_after_the_log(
    name: str, target: runs.Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/x.sh").write_text(f"cat <<'E'\n{LOGS[name]}E\nexit 1\n")
    log = tmp_path / "x.log"
    fails(name, runs.execute, "x.sh", os.environ, log)
    assert log.read_text() == LOGS[name]


def test_busy_exit_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/x.sh").write_text("exit 75\n")
    fails("run-busy", runs.execute, "x.sh", os.environ, tmp_path / "x.log")


def test_progress_is_shown_and_the_rest_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    lines = [
        "11/21 03:00:00 - mmengine - INFO - Config:",
        "2026/11/21 03:00:01 - mmengine - INFO - Epoch(train)  [1][ 25/150]  lr: 1.0e-03  loss: 2.5",
        "2026/11/21 03:00:02 - mmengine - WARNING - careful",
    ]
    (tmp_path / "scripts/x.sh").write_text("cat <<'E'\n" + "\n".join(lines) + "\nE\n")
    runs.execute("x.sh", os.environ, tmp_path / "x.log")
    assert capsys.readouterr().out == ("03:00:01 Epoch(train)  [1][ 25/150]  loss: 2.5\n03:00:02 careful\n")
    assert (tmp_path / "x.log").read_text().splitlines() == lines


def start_script(folder: Path, script: str) -> subprocess.Popen[bytes]:
    """Run `script` through runs.execute in a process of its own; returns when the script says that it started."""
    (folder / "scripts").mkdir()
    (folder / "scripts/x.sh").write_text(script)
    program = f"""
        import os, pathlib, sys
        sys.path.insert(0, {str(paths.ROOT / "scripts")!r})
        from ascendet import cli, paths, runs
        from ascendet.errors import AscendetError
        paths.ROOT = pathlib.Path({str(folder)!r})
        runs._SAME_REQUEST = 0.5
        try:
            runs.execute("x.sh", os.environ, pathlib.Path("x.log"))
        except AscendetError as error:
            sys.exit(error.exit_code)
        """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=folder)
    deadline = time.monotonic() + 30
    while not (folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_child_first(number: signal.Signals, tmp_path: Path) -> None:
    script = "trap 'sleep 0.2; echo ranks ended; exit 1' TERM\ntouch started\nwhile :; do sleep 0.05; done\n"
    child = start_script(tmp_path, script)
    child.send_signal(number)
    child.send_signal(number)  # make and timeout pass it on once more
    assert child.wait(timeout=30) == 25
    assert "ranks ended" in (tmp_path / "x.log").read_text()


def test_a_second_interrupt_kills_ranks_in_sessions_of_their_own(tmp_path: Path) -> None:
    script = (
        "trap '' TERM\nsetsid --wait bash -c 'trap \"\" TERM; echo $$ >rank; touch started; "
        "while :; do sleep 0.05; done'\n"
    )
    child = start_script(tmp_path, script)
    rank = Path("/proc", (tmp_path / "rank").read_text().strip())
    assert rank.exists()
    child.send_signal(signal.SIGINT)
    time.sleep(0.7)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == 25
    deadline = time.monotonic() + 10
    while rank.exists():
        assert time.monotonic() < deadline, "the rank lives on"
        time.sleep(0.02)


def test_soc_name_is_read_from_npu_smi(tmp_path: Path) -> None:
    smi = tmp_path / "npu-smi"
    smi.write_text(
        "#!/bin/sh\necho '| NPU   Name | Health |'\necho '| 0     910B3               | OK      | 90.0 |'\n"
    )
    smi.chmod(0o755)
    assert runs.soc_name({"PATH": f"{tmp_path}:{os.environ['PATH']}"}) == "Ascend910B3"


def test_arguments_are_those_that_make_passes() -> None:
    for module in (train, evaluate, infer):
        parser = argparse.ArgumentParser()
        module.configure_parser(parser)
        options = ["--stack", "vitdet", "--model", "m", "--dataset", "d", "--devices", "", "--images", ""]
        assert parser.parse_args(options[: None if module is not train else -2]).devices == ""


def test_pictures_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.PNG", "c d.jpeg", "notes.txt", "deep/e.webp", "odd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(text: str) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in infer.find_images(text)]

    assert names(f"{tmp_path}") == ["a.jpg", "b.PNG", "c d.jpeg"]
    assert names(f"'{tmp_path}/c d.jpeg' {tmp_path}/*.jpg {tmp_path}/a.jpg") == ["c d.jpeg", "a.jpg"]
    assert names(f"{tmp_path}/**/*") == ["a.jpg", "b.PNG", "c d.jpeg", "deep/e.webp"]
    assert names(f"{tmp_path}/odd") == ["odd"], "what is named outright is tried"
    fails("usage", infer.find_images, " ")
    assert "IMAGES=nowhere/*.jpg" in fails("data-missing", infer.find_images, "nowhere/*.jpg").what


@pytest.mark.parametrize(("score", "bad"), [("2", "skip"), ("much", "skip"), ("0.3", "ignore")])
def test_inference_refuses_options_that_mean_nothing(score: str, bad: str) -> None:
    fails("usage", infer._check_options, argparse.Namespace(score=score, bad=bad))


@pytest.mark.parametrize(("text", "count"), [("", 0), ("200", 200)])
def test_a_part_of_the_images_is_evaluated(text: str, count: int) -> None:
    assert evaluate.check_count(text) == count
    for wrong in ("0", "-1", "a.jpg"):
        fails("usage", evaluate.check_count, wrong)


def test_acceptance_says_where_the_numbers_are(tmp_path: Path) -> None:
    (tmp_path / "m_d.toml").write_text('source = "here"\n[AP]\nbbox = [0.5, 0.6]\nsegm = [0.4, 0.5]\n')

    def judge(box: float, mask: float) -> list[str]:
        numbers = {"bbox": {"AP": box}, "segm": {"AP": mask}}
        return [verdict.split()[4] for verdict in evaluate.judge("m", "d", numbers, tmp_path)]

    assert judge(0.5, 0.5) == ["inside", "inside"]
    assert judge(0.499, 0.501) == ["below", "above"]
    assert evaluate.judge("m", "other", {}, tmp_path) == []


@pytest.mark.parametrize("file", sorted(evaluate.REFERENCE.glob("*.toml")), ids=lambda file: file.stem)
def test_bands_are_complete_and_of_models_that_there_are(file: Path) -> None:
    band = tomllib.loads(file.read_text())
    assert file.stem == f"{band['model']}_{band['dataset']}"
    assert band["model"] in STACK.models
    assert band["dataset"] in STACK.datasets
    assert band["device"] in ("any", "simulated")
    assert len(band["source"]) > 20
    assert all(0 < low < high < 1 for low, high in band["AP"].values())
    assert band["AP"].keys() == {"bbox", "segm"}


def test_settings_of_the_run_time_have_the_same_names_everywhere() -> None:
    text = (paths.ROOT / "scripts/runtime.sh").read_text()
    names = re.findall(r"^ +default (\w+)", text, re.MULTILINE)
    assert set(runs.RUNTIME) | {"PYTHONUNBUFFERED"} == set(names)


@pytest.mark.parametrize(
    ("environ", "run", "machine"),
    [
        ({}, "", 0),
        ({"NNODES": "1"}, "", 0),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}, "first", 1),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}, "", None),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "first", None),
        ({"NNODES": "2", "NODE_RANK": "0"}, "first", None),
    ],
)
def test_which_machine_this_is(
    target: runs.Target,
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    run: str,
    machine: int | None,
) -> None:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if machine is None:
        fails("usage", train._machine, target, run)
    else:
        assert train._machine(target, run) == machine


@pytest.mark.parametrize("name", ["../mine", "latest", "..", ".", "/mine"])
@pytest.mark.parametrize("machine", ["0", "1"])
def test_a_run_has_a_folder_of_its_own(
    target: runs.Target, monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    """On each of several machines."""
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NODE_RANK", machine)
    monkeypatch.setenv("MASTER_ADDR", "a")
    parser = argparse.ArgumentParser()
    train.configure_parser(parser)
    words = ["--model=vitdet-tiny", "--dataset=shapes", "--devices=6,7", f"--run={name}"]
    assert fails("usage", train.execute, parser.parse_args(words)).found == f"RUN={name}"


def test_a_named_run_is_made_once_and_resumed_by_name(target: runs.Target) -> None:
    run = train._new_run(target, "mine")
    manifest.write(run, {"state": "interrupted", "inputs": {}})
    fails("name-in-use", train._new_run, target, "mine")
    (run / "last_checkpoint").write_text("interrupted.pth")
    (run / "interrupted.pth").touch()
    make_run(target, "z-newer", "interrupted")
    assert train._resumable(target, {}, "mine") == run
    fails("resume-impossible", train._resumable, target, {}, "other")
