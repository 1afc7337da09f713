"""Suites and their processes: every folder is in one, each result is counted, nothing outlives them."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ascendet import paths
from ascendet.dev import reports, suites
from ascendet.dev import test as stage
from ascendet.dev.jobs import Job, Outcome, Pool
from ascendet.dev.reports import Counts, Report
from ascendet.dev.suites import SUITES
from conftest import fails


def test_every_folder_of_tests_is_a_suite_or_known_to_be_none() -> None:
    assert suites.unnamed(suites.TESTS) == set()


def test_a_new_folder_is_not_run_by_accident(tmp_path: Path) -> None:
    for name in ("unit", "fixtures", "surprise", "__pycache__"):
        (tmp_path / name).mkdir()
    assert suites.unnamed(tmp_path) == {"surprise"}


def test_suites_are_folders() -> None:
    """tests/npu comes with the first test that no simulation can pass."""
    absent = {name for name in (*SUITES, *suites.NO_SUITES) if not (suites.TESTS / name).is_dir()}
    assert absent <= {"npu"}


def test_help_names_every_suite() -> None:
    makefile = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.search(r"^test-%: ## One suite: test-(.*?);", makefile, re.MULTILINE)
    assert named
    assert named[1].split(", -") == list(SUITES)


def test_a_test_that_hangs_ends_with_the_stacks_of_its_threads(tmp_path: Path) -> None:
    suite = suites.Suite(name="om", python="stack", patience=1)
    (tmp_path / "test_hang.py").write_text(
        "import threading\n\n\ndef test_that_waits_for_ever():\n    threading.Event().wait()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", *suite.options, "test_hang.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "Timeout (0:00:01)!" in done.stderr
    assert "in test_that_waits_for_ever" in done.stderr
    assert SUITES["om"].options
    assert SUITES["wheel"].options == [], "which compiles"


def test_tests_are_found_in_their_suite() -> None:
    text = """tests/sim/test_runs.py 'tests/unit/test_errors.py::test_of[two words]' tests/sim"""
    assert suites.parse_tests(text) == {
        "sim": ["tests/sim/test_runs.py", "tests/sim"],
        "unit": ["tests/unit/test_errors.py::test_of[two words]"],
    }
    assert suites.parse_tests("") == {}


@pytest.mark.parametrize(
    "text", ["tests/unit/test_absent.py", "scripts", "tests", "tests/bench", "../x", "/tmp"]
)
def test_what_is_in_no_suite_is_refused(text: str) -> None:
    assert fails("usage", suites.parse_tests, text).found == text


def test_a_long_suite_has_a_process_per_file() -> None:
    long, short = SUITES["sim"], SUITES["unit"]
    assert long.apart
    assert not short.apart
    whole = long.processes([])
    files = {words[0] for words in whole.values()}
    assert files == {f"tests/sim/{file.name}" for file in long.folder.glob("test_*.py")}
    assert [words[0] for words in whole.values()][: len(long.long)] == [
        f"tests/sim/{name}" for name in long.long
    ]
    assert whole["sim-test_runs"] == ["tests/sim/test_runs.py"]
    words = ["tests/sim/test_runs.py::test_a", "tests/sim/test_runs.py::test_b", "tests/sim/test_hccl.py"]
    assert long.processes(words) == {"sim-test_runs": words[:2], "sim-test_hccl": words[2:]}
    assert short.processes([]) == {"unit": ["tests/unit"]}
    assert short.processes(["tests/unit/test_cli.py"]) == {"unit": ["tests/unit/test_cli.py"]}


# -- reports --


def run_pytest(folder: Path, text: str, *options: str) -> Report:
    """Run pytest as a suite does, on one file; its report."""
    file = folder / "tests" / "unit" / "test_x.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    report = folder / "x.xml"
    usual = ["-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--rootdir={folder}"]
    command = [sys.executable, "-m", "pytest", "--quiet", *usual, *options, f"--junitxml={report}", str(file)]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return reports.read(report, done.stdout, exit_code=done.returncode, seconds=2.0, cpu_seconds=3.0)


def test_a_report_says_what_pytest_said(tmp_path: Path) -> None:
    found = run_pytest(
        tmp_path,
        """
import pytest
@pytest.fixture
def broken(): raise OSError
def test_good(): pass
def test_bad(): assert 0
def test_skipped(): pytest.skip("no such thing")
def test_error(broken): pass
@pytest.mark.xfail(strict=True)
def test_known(): assert 0
""",
    )
    assert found.counts == Counts(passed=1, failed=2, skipped=2)
    assert found.failed == {"tests/unit/test_x.py"}
    assert "tests/unit/test_x.py::test_good" in [name for _, name in found.tests]
    assert (found + found).counts == Counts(passed=2, failed=4, skipped=4)
    assert (found + found).cpu_seconds == 6.0
    assert not found.broken_off


@pytest.mark.parametrize(
    "text", ["", "import no_such_module", "def test_crash():\n    import os\n    os.abort()"], ids=str.split
)
def test_no_test_no_import_and_a_crash_are_failures(tmp_path: Path, text: str) -> None:
    assert run_pytest(tmp_path, text).counts == Counts(failed=1)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("import os; os.abort()", []),
        ("import time; time.sleep(60)", ["faulthandler_timeout=1", "faulthandler_exit_on_timeout=true"]),
    ],
    ids=["a crash", "a test that never ends"],
)
def test_a_process_that_ends_in_a_test_says_in_which(tmp_path: Path, line: str, options: list[str]) -> None:
    text = f"def help(): {line}\ndef test_good(): pass\ndef test_bad():\n    help()\n"
    found = run_pytest(tmp_path, text, *(word for option in options for word in ("-o", option)))
    assert found.counts == Counts(failed=1)
    assert found.failed == {"tests/unit/test_x.py"}
    assert found.broken_off == ("tests/unit/test_x.py:4 in test_bad",)
    assert any("test_x.py:4 in test_bad" in said for said in reports.describe_times({"unit": found}))


def test_a_file_that_is_skipped_as_a_whole_is_no_failure(tmp_path: Path) -> None:
    text = "import pytest\npytest.importorskip('no_such_module', reason='the stack has none')\ndef test_x(): pass\n"
    assert run_pytest(tmp_path, text).counts == Counts(skipped=1)


def test_the_ten_slowest_tests_and_each_suites_time_are_told() -> None:
    tests = tuple((float(number), f"tests/unit/test_x.py::test_{number}") for number in range(12))
    other = Report(counts=Counts(failed=1), tests=((99.5, "tests/sim/test_y.py::test_y"),), seconds=99.9)
    told = list(
        reports.describe_times({"unit": Report(tests=tests, seconds=66, cpu_seconds=5), "sim": other})
    )
    assert told[0] == "== slowest tests"
    assert told[1].split() == ["99.5", "s", "tests/sim/test_y.py::test_y"]
    assert [line.split("test_")[-1] for line in told[2:11]] == [str(number) for number in range(11, 2, -1)]
    assert [line.split() for line in told[12:]] == [
        ["unit", "66", "s", "5", "s", *["0", "passed,", "0", "failed,", "0", "skipped"]],
        ["sim", "100", "s", "0", "s", *["0", "passed,", "1", "failed,", "0", "skipped"]],
    ]


# -- processes --


def python(code: str, folder: Path, name: str = "x", waits: bool = False) -> Job:
    command = [sys.executable, "-c", code]
    return Job(
        name=name, command=command, environ=os.environ, cwd=folder, log=folder / f"{name}.log", waits=waits
    )


def test_a_job_has_its_log_its_exit_code_and_its_childrens_cpu_time(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    code = f"import subprocess, sys; print('out', flush=True); sys.stderr.write('err'); \
subprocess.run([sys.executable, '-c', {spin!r}]); sys.exit(7)"
    outcomes: list[Outcome] = []
    with Pool(1) as pool:
        pool.submit(python(code, tmp_path), outcomes.append)
    (outcome,) = outcomes
    assert outcome.exit_code == 7
    assert outcome.cpu_seconds >= 0.3
    assert (tmp_path / "x.log").read_text() == "out\nerr"


def test_what_waits_runs_beside_what_computes(tmp_path: Path) -> None:
    """There is one place, and its first job ends only when the one that waits has run."""
    meet = "import pathlib, time\nwhile not pathlib.Path('waited').exists(): time.sleep(0.01)"
    order: list[str] = []
    with Pool(1) as pool:
        for name, code, waits in (
            ("first", meet, False),
            ("second", "pass", False),
            ("waiting", "open('waited', 'w')", True),
        ):
            pool.submit(python(code, tmp_path, name, waits), lambda _, name=name: order.append(name))
    assert sorted(order) == ["first", "second", "waiting"]
    assert order.index("first") < order.index("second")


def test_what_a_job_left_behind_ends_with_it(tmp_path: Path) -> None:
    """Even in a session of its own, and with its parent gone."""
    left = "import subprocess, sys; print(subprocess.Popen(['sleep', '300'], start_new_session=True).pid)"
    with Pool(1) as pool:
        pool.submit(python(left, tmp_path), lambda _: None)
    assert not alive(int((tmp_path / "x.log").read_text()))


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


RUNNER = """
import os, sys
from pathlib import Path
from ascendet.dev.jobs import Job, Pool
code = sys.argv[1]
folder = Path.cwd()
with Pool(1) as pool:
    job = Job(name="x", command=[sys.executable, "-c", code], environ=os.environ, cwd=folder, log=folder / "x.log")
    pool.submit(job, lambda _: print("told"))
"""


@pytest.mark.parametrize(
    ("number", "stubborn"),
    [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGINT, True)],
)
def test_an_interrupt_ends_all_children(tmp_path: Path, number: signal.Signals, stubborn: bool) -> None:
    """A test's own process cleans up; a stubborn one is killed, by a second Ctrl-C at once."""
    code = """
import signal, subprocess, sys, time
from pathlib import Path
try:
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    Path("child").write_text(str(child.pid) + "\\n")
    time.sleep(300)
finally:
    Path("cleaned").touch()
"""
    if stubborn:
        code = code.replace("try:", "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntry:")
    background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as a shell starts what is followed by &
    runner = subprocess.Popen(
        [*background, sys.executable, "-c", RUNNER, code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text().endswith("\n")):
        assert runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(number)
    if stubborn:
        time.sleep(1)
        assert runner.poll() is None, "it waits for its job to clean up"
        runner.send_signal(number)
    shown, errors = runner.communicate(timeout=60)
    assert "told" not in shown
    assert "KeyboardInterrupt" in errors
    assert not alive(int((tmp_path / "child").read_text()))
    assert (tmp_path / "cleaned").exists() != stubborn


# -- the stage --


def execute(monkeypatch: pytest.MonkeyPatch, found: dict[str, Report], *words: str) -> None:
    """Run the stage where the suites' processes said `found`."""

    def run(*_: object) -> dict[str, Report]:
        return found

    monkeypatch.setattr(stage, "_run", run)
    parser = argparse.ArgumentParser()
    stage.configure_parser(parser)
    stage.execute(parser.parse_args(words))


def test_a_failed_suite_is_named_with_its_next_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Report(counts=Counts(passed=2))
    found = {
        "lint": Report(counts=Counts(passed=6, failed=1)),
        "unit": good,
        "fetch": Report(counts=Counts(skipped=3)),
        "sim": Report(counts=Counts(passed=1, failed=1), failed=frozenset({"tests/sim/test_runs.py"})),
    }
    error = fails("tests-failed", execute, monkeypatch, found, *found)
    assert error.what == "failed or empty: lint, fetch, sim"
    assert error.hint.splitlines() == [
        "make lint",
        "make test-fetch",
        "make test-sim TESTS='tests/sim/test_runs.py'",
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "9 passed, 2 failed, 3 skipped"
    execute(monkeypatch, {"unit": good}, "unit")
    execute(monkeypatch, {"examples": Report(counts=Counts(skipped=1))}, "examples")


def test_tests_of_another_suite_are_refused_with_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    error = fails("usage", execute, monkeypatch, {}, "unit", "--tests=tests/fetch/test_resume.py")
    assert error.hint == "make test-fetch TESTS='tests/fetch/test_resume.py'"
