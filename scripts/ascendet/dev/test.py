"""`make test`: all suites (`suites.py`), each in the environment that it needs, and one closing line with the counts.

As many processes run at once as there are processors, and beside them those that mostly wait. What each prints is in
build/report and is shown in one piece when it ends; where there is only one, it prints to the terminal.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import options, process
from ascendet.core.stack import Stack
from ascendet.dev import reports, suites
from ascendet.dev.jobs import Job, Outcome, Pool, count_slots
from ascendet.dev.reports import Counts, Report
from ascendet.dev.suites import SUITES, Suite
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.machine import host

LINT = "lint"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument("--tests", default="", help="only these files, folders or test ids")
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="suite",
        help=f"{', '.join([LINT, *SUITES])}; all of make test if none is named",
    )


def execute(args: argparse.Namespace) -> None:
    """Run the suites, all of them even if one fails, then say what was slow and print the closing line."""
    for name in args.suites:
        if name not in (LINT, *SUITES):
            raise AscendetError(
                "usage",
                f"there is no suite {name}",
                expected=", ".join([LINT, *SUITES]),
                found=f"make test-{name}",
                hint="make test-unit",
            )
    stack = Stack.load(args.stack)
    tests = suites.parse_tests(args.tests)
    names = args.suites or list(tests) or _default(stack)
    if tests and set(tests) != set(names):
        raise AscendetError(
            "usage",
            "TESTS must be in the suite that runs",
            expected=", ".join(f"tests/{name}" for name in names),
            found=args.tests,
            hint="; ".join(f"make test-{name} TESTS='{' '.join(tests[name])}'" for name in tests),
        )
    found = _run(stack, names, tests)
    print("\n".join(reports.describe_times(found)))
    total = reports.total(found.values())
    print(total, flush=True)
    failed = {name: report for name, report in found.items() if not _succeeded(name, report.counts)}
    if failed:
        raise AscendetError(
            "tests-failed",
            f"failed or empty: {', '.join(failed)}",
            found=str(total),
            hint="\n".join(_again(name, report) for name, report in failed.items()),
        )


def _default(stack: Stack) -> list[str]:
    """Return what `make test` runs on this machine for the stack, and print what it leaves out."""
    real = host.npu_kind() == "real"
    wanted = [
        suite for suite in SUITES.values() if suite.when == "always" or (suite.when == "real NPUs" and real)
    ]
    for suite in wanted:
        if suite.wheel and suite.wheel not in stack.wheels:
            print(
                f"tests/{suite.name}: left out, the {stack.name} stack has no wheel {suite.wheel}", flush=True
            )
    fitting = [suite for suite in wanted if not suite.wheel or suite.wheel in stack.wheels]
    return [LINT, *(suite.name for suite in fitting if suite.folder.is_dir())]


def _succeeded(name: str, counts: Counts) -> bool:
    """Tell whether a suite did: what nothing passed of is not tested, but where its packages may be out of reach."""
    optional = name != LINT and SUITES[name].when == "named"
    return not counts.failed and bool(counts.passed or (optional and counts.skipped))


def _again(name: str, report: Report) -> str:
    """Return the command that runs what failed again."""
    if name == LINT:
        return "make lint"
    return f"make test-{name}" + (f" TESTS='{' '.join(sorted(report.failed))}'" if report.failed else "")


# -- running --


@dataclass(frozen=True, kw_only=True)
class Part:
    """A process of a suite, and how to read from its end and its output what it said."""

    suite: str
    job: Job
    read: Callable[[Outcome, str], Report]


def _run(stack: Stack, names: Sequence[str], tests: Mapping[str, list[str]]) -> dict[str, Report]:
    """Run the suites and return the reports by suite; print the output of each process when it ends."""
    found = dict.fromkeys(names, Report())
    folder = paths.BUILD / "report"
    folder.mkdir(parents=True, exist_ok=True)

    def show(part: Part, outcome: Outcome) -> None:
        text = part.job.log.read_text(encoding="utf-8", errors="replace") if part.job.log else ""
        report = part.read(outcome, text)
        found[part.suite] += report
        print(f"== {part.job.name}: {report.counts}, {outcome.seconds:.0f} s\n{text}", end="", flush=True)

    with Pool(count_slots()) as pool:
        installed = False
        for name in names:
            for old in [*folder.glob(f"{name}.*"), *folder.glob(f"{name}-*")]:
                old.unlink()
            if name != LINT and SUITES[name].installed and not installed:
                _install(stack, pool)  # what needs none of it runs meanwhile
                installed = True
            parts = list(
                _lint(folder) if name == LINT else _pytest(SUITES[name], stack, tests.get(name, []), folder)
            )
            for part in parts:
                alone = len(names) == len(parts) == 1
                job = dataclasses.replace(part.job, log=None) if alone else part.job
                shown = dataclasses.replace(part, job=job)
                pool.submit(job, functools.partial(show, shown))
    return found


def _install(stack: Stack, pool: Pool) -> None:
    """Create the stack's environment with our wheels in it, which takes minutes if nothing is cached."""
    job = Job(
        name="install",
        command=[sys.executable, "-m", "ascendet", "install", "--stack", stack.name],
        environ={**os.environ, "PYTHONPATH": str(paths.ROOT / "scripts")},
        cwd=paths.ROOT,
        log=None,
        waits=True,
    )
    outcomes: list[Outcome] = []
    pool.wait(pool.submit(job, outcomes.append))
    if any(outcome.exit_code for outcome in outcomes):
        raise AscendetError(
            "tests-failed",
            f"the environment of {stack.name} cannot be made",
            found="its message is above",
            hint="make install",
        )


def _pytest(suite: Suite, stack: Stack, tests: list[str], folder: Path) -> Iterator[Part]:
    """Yield the parts of a suite: one, or one for each file."""
    python, environ = (
        (venv.ensure_tools(), dict(os.environ))
        if suite.python == "tools"
        else (venv.stack_python(stack), activation.stack_environ(stack))
    )
    # Errors repeat the variables that a user gave to make, which these are not; and a test's make is nobody's sub-make.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL"):
        environ.pop(name, None)
    # Processes that run at once have a processor each. Our programs' operators must have kernels on the NPU.
    environ |= {
        "NPU_FALLBACK": environ.get("NPU_FALLBACK", "error"),
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT / "scripts"), environ.get("PYTHONPATH", "")]).rstrip(
            ":"
        ),
        "STACK": stack.name,  # whose image tests/image builds
        "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1"),
    }
    for name, words in suite.processes(tests).items():
        report = folder / f"{name}.xml"
        command = [str(python), "-m", "pytest", "--quiet", "--no-header", "-o", "junit_family=xunit1"]
        job = Job(
            name=name,
            command=[*command, *suite.options, f"--junitxml={report}", *words],
            environ=environ,
            cwd=paths.ROOT,
            log=report.with_suffix(".log"),
            waits=suite.waits,
        )
        yield Part(suite=suite.name, job=job, read=functools.partial(_read_pytest, report))


def _read_pytest(file: Path, outcome: Outcome, text: str) -> Report:
    return reports.read(
        file, text, exit_code=outcome.exit_code, seconds=outcome.seconds, cpu_seconds=outcome.cpu_seconds
    )


def _lint(folder: Path) -> Iterator[Part]:
    """Yield the linters: style, types, shell scripts, C++, and the files that are made from others."""
    python = venv.ensure_tools()
    bin_folder = python.parent
    commands: dict[str, list[str | Path]] = {
        "mypy": [bin_folder / "mypy"],
        "clang-format": [bin_folder / "clang-format", "--dry-run", "-Werror", *_tracked("*.cpp", "*.h")],
        "shellcheck": [bin_folder / "shellcheck", "--external-sources", *_tracked("*.sh", ".ci/run")],
        "ruff check": [bin_folder / "ruff", "check", "--quiet", "."],
        "ruff format": [bin_folder / "ruff", "format", "--check", "--quiet", "."],
        "check-lock": [python, "-m", "ascendet", "lock", "--check"],
        "patches": [python, "-m", "ascendet", "patches", "--check"],
        "docs": [python, "-m", "ascendet", "docs", "--check"],
    }
    for name, command in commands.items():
        job = Job(
            name=f"lint: {name}",
            command=[str(word) for word in command],
            environ={**os.environ, "PYTHONPATH": str(paths.ROOT / "scripts")},
            cwd=paths.ROOT,
            log=folder / f"lint-{name.replace(' ', '-')}.log",
        )
        yield Part(suite=LINT, job=job, read=_read_lint)


def _read_lint(outcome: Outcome, _: str) -> Report:
    counts = Counts(failed=1) if outcome.exit_code else Counts(passed=1)
    return Report(counts=counts, seconds=outcome.seconds, cpu_seconds=outcome.cpu_seconds)


def _tracked(*patterns: str) -> list[Path]:
    """Return the files that git knows, or would add."""
    command = process.git("ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns)
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [paths.ROOT / name for name in listed.splitlines()]
