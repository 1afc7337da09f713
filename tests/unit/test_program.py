"""What a failure is called, what is shown of a program, and how an interrupt travels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.run import diagnose, program
from conftest import fails

LOGS = {
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
    # One rank's program fails, and the other one loses its peer.
    "run-failed": "[rank0]: ValueError: something else\n"
    "[rank1]: RuntimeError: OPS function error: HcclAllreduce, error code is 21\n",
}
STATED = {
    "interrupted": "saved interrupted.pth after iteration 7",
    "checkpoint-mismatch": "missing: a",
    "checkpoint-unreadable": "os.system",
    "data-invalid": "a.json names 1 of 2 images that are not in b: c.jpg",
    "image-damaged": "a.jpg: image file is truncated",
}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """scripts/run.sh, to be written by the test."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    return tmp_path / "scripts" / "run.sh"


def execute(folder: Path, name: str = "train") -> None:
    program.execute(program.Run(program=name, environ=os.environ, log=folder / "x.log"))


@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_next_command_of_an_interrupted_training_is_one_that_works(
    checkpoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w -- RUN=first EPOCHS=4 RESUME=1")
    if checkpoint:
        (tmp_path / "epoch_1.pth").touch()
        (tmp_path / "last_checkpoint").write_text("epoch_1.pth")
    hint = diagnose.interrupted("train", tmp_path / "train.log").hint
    # Without a checkpoint neither the name nor RESUME=1 can be used again.
    assert hint == ("make train RUN=first EPOCHS=4 RESUME=1" if checkpoint else "make train EPOCHS=4")


@pytest.mark.parametrize("name", LOGS)
def test_failures_are_named_after_the_log(name: str, script: Path, tmp_path: Path) -> None:
    script.write_text(f"cat <<'E'\n{LOGS[name]}E\nexit 1\n")
    fails(name, execute, tmp_path)
    assert (tmp_path / "x.log").read_text() == LOGS[name]


@pytest.mark.parametrize("name", STATED)
def test_failures_are_named_by_the_program(name: str, script: Path, tmp_path: Path) -> None:
    content = {"name": name, "what": "it says", "expected": None, "found": STATED[name]}
    # What follows, such as a lost peer, is a consequence.
    script.write_text(
        f"echo '{json.dumps(content)}' >{tmp_path}/error.json\necho {LOGS['npu-lost']!r}\nexit 1\n"
    )
    error = fails(name, execute, tmp_path)
    assert (error.what, error.found) == ("it says", STATED[name])


@pytest.mark.parametrize(("checkpoint", "command"), [(True, "RESUME=1 LR=0.0005"), (False, "LR=0.0005")])
def test_a_training_that_diverges_goes_on_at_half_the_rate(
    checkpoint: bool, command: str, script: Path, tmp_path: Path
) -> None:
    content = {"name": "loss-not-finite", "what": "it diverges", "advice": {"LR": "0.0005"}}
    script.write_text(f"echo '{json.dumps(content)}' >{tmp_path}/error.json\nexit 35\n")
    if checkpoint:
        (tmp_path / "e.pth").touch()
        (tmp_path / "last_checkpoint").write_text("e.pth")
    assert fails("loss-not-finite", execute, tmp_path).hint == f"make train {command}"


def test_an_operator_without_an_npu_kernel_may_be_let_pass(script: Path, tmp_path: Path) -> None:
    content = {
        "name": "npu-fallback",
        "what": "no kernel",
        "found": "model.py:7",
        "advice": {"NPU_FALLBACK": "warn"},
    }
    script.write_text(f"echo '{json.dumps(content)}' >{tmp_path}/error.json\nexit 1\n")
    error = fails("npu-fallback", execute, tmp_path)
    assert (error.exit_code, error.found, error.hint) == (37, "model.py:7", "make train NPU_FALLBACK=warn")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("config-unsupported", "edit it, then: make train"),
        ("config-invalid", "edit it, then: make train"),
        ("checkpoint-missing", "make weights, or CHECKPOINT=<file>"),
        (
            "image-damaged",
            "repair or remove it; then make data again: a data set that was taken in must first be removed",
        ),
    ],
)
def test_what_a_configuration_asks_in_vain_has_a_next_command(
    name: str, hint: str, script: Path, tmp_path: Path
) -> None:
    content = {"name": name, "what": "it says"}
    script.write_text(f"echo '{json.dumps(content)}' >{tmp_path}/error.json\nexit 1\n")
    assert fails(name, execute, tmp_path).hint == hint


DEVICE = {"SOC": "Ascend910B3", "FORCE": "1"}


@pytest.mark.parametrize(
    ("started", "given", "name", "advice", "hint"),
    [
        ("infer", "IMAGES=a BAD=refuse", "image-damaged", {}, "make infer IMAGES=a BAD=skip leaves it out"),
        ("staged_om.infer", "BAD=refuse", "image-damaged", {}, "make infer-om BAD=skip leaves it out"),
        ("staged_om.infer", "IMAGES=a", "image-damaged", {}, "then: make infer-om IMAGES=a"),
        ("staged_om.compare", "IMAGES=a", "image-damaged", {}, "then: make om-compare IMAGES=a"),
        ("staged_om.infer", "SOC=A FORCE=1", "om-other-soc", DEVICE, "infer-om SOC=Ascend910B3 FORCE=1"),
        ("staged_om.infer", "IMAGES=a SCORE=0.1 BATCH=4", "om-mixed-builds", {}, "make om BATCH=4"),
        ("staged_om.infer", "IMAGES=a", "om-corrupt", {}, "make om"),
        ("staged_om.compare", "IMAGES=a BATCH=4", "om-differs", {"IMAGES": "a/worst.jpg"},
         "make om-bisect IMAGES=a/worst.jpg BATCH=4"),
        ("export", "SIZES=100x90", "config-invalid", {"SIZES": "112x96"}, "make export SIZES=112x96"),
        ("export", "BATCH=4 AIPP=1", "config-invalid", {"AIPP": ""}, "make export BATCH=4"),
        ("export", "BATCH=4", "checkpoint-mismatch", {}, "make export BATCH=4 CHECKPOINT=<file>"),
        ("export", "CHECKPOINT=x.pth", "checkpoint-unreadable", {}, "make export CHECKPOINT=<file>"),
    ],
)  # fmt: skip
def test_a_failure_of_an_om_ends_in_a_command_that_leads_on(
    started: str,
    given: str,
    name: str,
    advice: dict[str, str],
    hint: str,
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAKEFLAGS", f"w -- {given}")
    content = {"name": name, "what": "it says", "advice": advice}
    script.write_text(f"echo '{json.dumps(content)}' >{tmp_path}/error.json\nexit 1\n")
    assert fails(name, execute, tmp_path, started).hint.endswith(hint)


def test_an_error_of_an_earlier_attempt_is_not_told_again(script: Path, tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text('{"name": "data-invalid", "what": "before"}')
    script.write_text("echo '[rank0]: ValueError: now'\nexit 1\n")
    assert "ValueError: now" in str(fails("run-failed", execute, tmp_path).found)


@pytest.mark.parametrize(
    ("program_name", "checkpoint", "command"),
    [
        ("train", False, "make train"),
        ("train", True, "make train RESUME=1"),
        ("predict", True, "make eval"),
        ("infer", True, "make infer"),
    ],
)
def test_the_next_command_is_that_of_the_program(
    program_name: str,
    checkpoint: bool,
    command: str,
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "w -- RUN=mine DEVICES=6,7")
    script.write_text(f"echo '{LOGS['npu-out-of-memory'].strip()}'\nexit 1\n")
    if checkpoint:
        (tmp_path / "e.pth").touch()
        (tmp_path / "last_checkpoint").write_text("e.pth")
    verb, _, rest = command.partition(" RESUME")
    name = (
        "" if (program_name, checkpoint) == ("train", False) else " RUN=mine"
    )  # taken, and not to be resumed
    expected = f"{verb}{name} DEVICES=6,7" + (f" RESUME{rest}" if rest else "")
    assert fails("npu-out-of-memory", execute, tmp_path, program_name).hint.endswith(f"then: {expected}")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train", "wait for it or stop it; without RESUME=1 a training gets a new folder"),
        ("staged_om.compare", "wait for it, then: make om-compare IMAGES=9"),
    ],
)
def test_a_busy_folder_is_named_with_who_is_at_work_in_it(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of the real runtime.sh, as run.sh takes it."""
    work = tmp_path / "work"
    lock = f"source {paths.ROOT}/scripts/runtime.sh; lock_work_dir {work} $0"
    monkeypatch.setenv("MAKEFLAGS", "w -- IMAGES=9" if name != "train" else "w")
    first = subprocess.Popen(
        ["bash", "-c", f"{lock}; echo held; read", "staged_om.bisect"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        monkeypatch.setattr(paths, "ROOT", tmp_path)
        (tmp_path / "scripts").mkdir()
        (tmp_path / "scripts/run.sh").write_text(lock)
        error = fails("run-busy", execute, work, name)
        first.communicate("\n")
    assert f".lock is held by staged_om.bisect (process {first.pid} on " in str(error.found)
    assert error.hint == hint
    execute(work, name)  # the lock of a process that ended holds nobody up


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("echo; echo loading; echo; kill -9 $$", "killed by SIGKILL; loading"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("exit 3", "exit code 3"),
    ],
)
def test_a_program_that_says_nothing_of_its_end(text: str, found: str, script: Path, tmp_path: Path) -> None:
    script.write_text(f"{text}\n")
    assert fails("run-failed", execute, tmp_path).found == found


def test_a_container_of_that_name_is_at_work_in_the_folder(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "docker: Error response from daemon: Conflict. The container name /a is already in use by container b."
    script.write_text(f"echo '{text}'\nexit 125\n")
    (tmp_path / ".lock").write_text("staged_om.compare (process 7 on b)\n")
    error = fails("run-busy", execute, tmp_path, "staged_om.compare")
    assert "staged_om.compare (process 7 on b)" in str(error.found)
    assert error.hint == "wait for it, then: make om-compare"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_fills_up_under_the_log_is_named(script: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=False).returncode:
        pytest.skip("this container may not mount a tmpfs")
    try:
        script.write_text("yes x | head -c 4000000\n")
        error = fails("disk-full", execute, small)
        assert error.found == "0 of 1 MiB free now"
    finally:
        subprocess.run(["umount", small], check=True)


def test_progress_is_shown_and_the_rest_is_in_the_log(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"phase": "note", "time": 0, "text": "recipe: 4 images per step"},
        {"phase": "train", "time": 0, "step": 25, "of": 150, "loss": 2.5},
        {"phase": "warning", "time": 0, "text": "careful"},
    ]
    lines = [*(json.dumps(row) for row in rows[:2]), '{"phase": "tra', *map(json.dumps, rows[2:])]
    (tmp_path / "progress.jsonl").write_text(json.dumps(rows[0]) + "\n")  # of an earlier attempt
    script.write_text(
        f"echo 'runtime: A=1'\necho chatter\ncat >>{tmp_path}/progress.jsonl <<'E'\n"
        + "\n".join(lines)
        + "\nE\n"
    )
    execute(tmp_path)
    shown = [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "A=1"
    assert shown[1:] == ["recipe: 4 images per step", "train 25/150  loss 2.5", "warning: careful"]
    assert (tmp_path / "x.log").read_text().splitlines() == ["runtime: A=1", "chatter"]


def start_script(folder: Path, script: str) -> subprocess.Popen[bytes]:
    """Run `script` through program.execute in a process of its own; returns when the script says that it started."""
    (folder / "scripts").mkdir()
    (folder / "scripts/run.sh").write_text(script)
    code = f"""
        import os, pathlib, sys
        sys.path.insert(0, {str(paths.ROOT / "scripts")!r})
        from ascendet import cli, paths
        from ascendet.run import program
        from ascendet.errors import AscendetError
        paths.ROOT = pathlib.Path({str(folder)!r})
        program._SAME_REQUEST = 0.5
        try:
            program.execute(program.Run(program="train", environ=os.environ, log=pathlib.Path("x.log")))
        except AscendetError as error:
            sys.exit(error.exit_code)
        """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=folder)
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
