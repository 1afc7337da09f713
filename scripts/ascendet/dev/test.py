"""`make test`: all suites, each in the environment that it needs, and one closing line with the counts.

tests/unit            the tools environment, no torch, no network
tests/fetch           the same, with servers on this machine
tests/image           the tools environment and a Docker engine, which is started for it where it can be
tests/<others>        the stack's environment, on the NPUs that NPU says (cann_sim where there are none)
tests/npu             the same, only with real NPUs
tests/examples        the same, only when named (`make test-examples`): it installs packages that nothing else needs
tests/bench           never: `make bench-<name>` prints measurements, it does not judge them
"""

from __future__ import annotations

import argparse
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core.stack import Stack
from ascendet.envs import env
from ascendet.errors import AscendetError
from ascendet.machine import host
from ascendet.wheels import install

TESTS = paths.ROOT / "tests"
# Not run with the stack's suites: those with a suite of their own, measurements, data for tests.
_APART = {"unit", "fetch", "image", "examples", "bench", "fixtures", "npu"}
# The wheel that a folder's tests are about; a stack without it does not run them.
_ABOUT = {
    "blendmask": "blendmask",
    "detectron2": "detectron2",
    "mmcv": "mmcv",
    "models": "vitdet",
    "npu_ops": "npu_ops",
    "wheel": "mmcv",
}


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many tests ended how; a linter counts as one test."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(
            passed=self.passed + other.passed,
            failed=self.failed + other.failed,
            skipped=self.skipped + other.skipped,
        )

    def __str__(self) -> str:
        """The closing line that continuous integration reads."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    parser.add_argument("--stack", default="vitdet", help="a stack of requirements/stacks.toml")
    parser.add_argument(
        "suites", nargs="*", choices=[*NAMED, []], help="all but examples where none is named"
    )


def execute(args: argparse.Namespace) -> None:
    """Run the suites, all of them even if one fails, then print the closing line."""
    stack = Stack.load(args.stack)
    total, failed = Counts(), []
    for name in args.suites or SUITES:
        print(f"== {name}", flush=True)
        counts = NAMED[name](stack)
        # What nothing passed of is not tested, except where a package index may be out of reach.
        if counts.failed or not (counts.passed or (name not in SUITES and counts.skipped)):
            failed.append(name)
        total += counts
    print(total, flush=True)
    if failed:
        raise AscendetError(
            "tests-failed",
            f"failed or empty: {', '.join(failed)}",
            found=str(total),
            hint="; ".join(f"make {'lint' if name == 'lint' else f'test-{name}'}" for name in failed),
        )


# -- suites --


def lint(stack: Stack) -> Counts:
    """Style, types, shell scripts, C++, and the files that are made from others."""
    python = str(env.ensure_tools())
    bin_folder = Path(python).parent
    shell = [str(file) for file in _tracked("*.sh", ".ci/run")]
    commands = [
        [str(bin_folder / "ruff"), "check", "--quiet", "."],
        [str(bin_folder / "ruff"), "format", "--check", "--quiet", "."],
        [str(bin_folder / "mypy")],
        [str(bin_folder / "shellcheck"), "--external-sources", *shell],
        [str(bin_folder / "clang-format"), "--dry-run", "-Werror", *map(str, _tracked("*.cpp", "*.h"))],
        [python, "-m", "ascendet", "lock", "--check"],
        [python, "-m", "ascendet", "patches", "--check"],
    ]
    total = Counts()
    for command in commands:
        failed = (
            subprocess.run(command, cwd=paths.ROOT, env=_environ(os.environ), check=False).returncode != 0
        )
        name = " ".join(Path(part).name if part.startswith("/") else part for part in command[:4])
        print(f"{'FAILED' if failed else 'ok':<7} {name}", flush=True)
        total += Counts(failed=1) if failed else Counts(passed=1)
    return total


def unit(stack: Stack) -> Counts:
    """The tests of the tool itself."""
    return _pytest(env.ensure_tools(), "unit", [TESTS / "unit"], _environ(os.environ))


def fetch(stack: Stack) -> Counts:
    """The tests of fetching, with hostile servers."""
    return _pytest(env.ensure_tools(), "fetch", [TESTS / "fetch"], _environ(os.environ))


def image(stack: Stack) -> Counts:
    """The tests of the container image."""
    install.ensure(stack)
    return _pytest(env.ensure_tools(), "image", [TESTS / "image"], _environ(os.environ))


def sim(stack: Stack) -> Counts:
    """The tests that need torch, our wheels and a device."""
    python = install.ensure(stack)
    folders = sorted(folder for folder in TESTS.iterdir() if folder.name not in _APART and _has_tests(folder))
    if host.npu_kind() == "real":
        folders += [folder for folder in [TESTS / "npu"] if _has_tests(folder)]
    left_out = [
        folder for folder in folders if folder.name in _ABOUT and _ABOUT[folder.name] not in stack.wheels
    ]
    for folder in left_out:
        print(
            f"tests/{folder.name}: left out, the {stack.name} stack has no {_ABOUT[folder.name]}", flush=True
        )
    folders = [folder for folder in folders if folder not in left_out]
    environ = _environ(env.stack_environ(stack))
    # A process per folder: some keep torch_npu out of theirs, others need it.
    return sum((_pytest(python, folder.name, [folder], environ) for folder in folders), Counts())


def examples(stack: Stack) -> Counts:
    """Training scripts of other projects; their packages come from the package index."""
    return _pytest(
        install.ensure(stack), "examples", [TESTS / "examples"], _environ(env.stack_environ(stack))
    )


SUITES: dict[str, Callable[[Stack], Counts]] = {
    "lint": lint,
    "unit": unit,
    "fetch": fetch,
    "image": image,
    "sim": sim,
}
NAMED = SUITES | {"examples": examples}


def _pytest(python: Path, name: str, folders: list[Path], environ: Mapping[str, str]) -> Counts:
    """Run pytest over `folders`; the counts are from its report, so that a crash cannot pass for success."""
    if not folders:
        return Counts()
    report = paths.BUILD / "report" / f"{name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", f"--junitxml={report}", *map(str, folders)]
    done = subprocess.run(command, cwd=paths.ROOT, env=dict(environ), check=False)
    if not report.exists():
        return Counts(failed=1)
    counts = read_report(report)
    # Anything but "all passed" and "some failed" (say, a broken plug-in) must not look like success.
    return counts if done.returncode == 0 or counts.failed else counts + Counts(failed=1)


def read_report(report: Path) -> Counts:
    """The counts of a JUnit XML file."""
    total = Counts()
    for suite in ElementTree.parse(report).iter("testsuite"):  # noqa: S314  # written by our own pytest
        number = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
        failed = number["failures"] + number["errors"]
        total += Counts(
            passed=number["tests"] - failed - number["skipped"], failed=failed, skipped=number["skipped"]
        )
    return total


def _environ(base: Mapping[str, str]) -> dict[str, str]:
    # Whatever a program of ours asks of an NPU in a test, the NPU has to have a kernel for it.
    return {"NPU_FALLBACK": "error", **base, "PYTHONPATH": str(paths.ROOT / "scripts")}


def _has_tests(folder: Path) -> bool:
    return any(folder.rglob("test_*.py"))


def _tracked(*patterns: str) -> Iterator[Path]:
    """Files that git knows, or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    yield from (paths.ROOT / name for name in listed.splitlines())
