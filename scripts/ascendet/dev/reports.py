"""Read the results of tests from pytest's JUnit XML: counts, files with failures, slow tests."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SLOWEST = 10
_NO_TESTS = 5  # pytest's exit code where no test ran
_SLOW = 1.0  # seconds; faster tests are not listed
# A frame of a test in what faulthandler writes when a process crashes, or when a test took longer than it may.
_FRAME = re.compile(
    r'^  File "(?:.*/)?(?P<file>tests/\w+/test_\w+\.py)", line (?P<line>\d+) in (?P<test>test_\w+)$', re.M
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of tests by result; a linter counts as one test."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the sum of both counts."""
        return Counts(
            passed=self.passed + other.passed,
            failed=self.failed + other.failed,
            skipped=self.skipped + other.skipped,
        )

    def __str__(self) -> str:
        """Return the closing line that continuous integration reads."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of one process, or of all processes of a suite together.

    Parameters
    ----------
    failed
        The files of the tests that failed.
    broken_off
        Lines of the tests in which processes ended: `file:line in test`.
    tests
        Each test's seconds, including its fixtures, and its id.
    seconds, cpu_seconds
        Time by the clock and CPU time, summed over processes.
    """

    counts: Counts = field(default_factory=Counts)
    failed: frozenset[str] = frozenset()
    broken_off: tuple[str, ...] = ()
    tests: tuple[tuple[float, str], ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Report) -> Report:
        """Return the sum of both reports."""
        return Report(
            counts=self.counts + other.counts,
            failed=self.failed | other.failed,
            broken_off=self.broken_off + other.broken_off,
            tests=self.tests + other.tests,
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
        )


def read(file: Path, text: str, *, exit_code: int, seconds: float, cpu_seconds: float) -> Report:
    """Return the report in pytest's JUnit XML (family xunit1); a crash or a run without tests counts as a failure.

    A file that is skipped as a whole is no failure. Where there is no XML, because the process ended in a test, the
    output `text` tells in which.
    """
    counts, failed, tests = Counts(), set(), []
    broken_off: tuple[str, ...] = ()
    if file.exists():
        for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314  # written by our own pytest
            name = f"{case.get('file')}::{case.get('name')}" if case.get("file") else str(case.get("name"))
            tests.append((float(case.get("time", "0")), name))
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                counts += Counts(failed=1)
                failed.add(str(case.get("file") or case.get("name")))
            else:
                counts += Counts(skipped=1) if "skipped" in kinds else Counts(passed=1)
    elif frames := list(_FRAME.finditer(text)):
        broken_off = (f"{frames[-1]['file']}:{frames[-1]['line']} in {frames[-1]['test']}",)
        failed.add(frames[-1]["file"])
    skipped = exit_code == _NO_TESTS and counts.skipped
    if exit_code and not counts.failed and not skipped:  # a crash, a broken plug-in, no test at all
        counts += Counts(failed=1)
    return Report(
        counts=counts,
        failed=frozenset(failed),
        broken_off=broken_off,
        tests=tuple(tests),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


def describe_times(reports: Mapping[str, Report]) -> Iterator[str]:
    """Yield lines of text: where processes broke off, the slowest tests of all suites, each suite's time."""
    broken_off = [line for report in reports.values() for line in report.broken_off]
    if broken_off:
        yield "== processes ended in a test, which crashed or took too long (its stacks are above)"
        yield from (f"  {line}" for line in broken_off)
    tests = sorted((test for report in reports.values() for test in report.tests), reverse=True)
    slow = [test for test in tests[:SLOWEST] if test[0] >= _SLOW]
    if slow:
        yield "== slowest tests"
        yield from (f"{seconds:8.1f} s  {name}" for seconds, name in slow)
    yield "== suites: seconds of their processes, seconds of CPU"
    width = max(map(len, reports))
    for name, report in reports.items():
        yield f"{name:<{width}}  {report.seconds:7.0f} s  {report.cpu_seconds:7.0f} s  {report.counts}"


def total(reports: Iterable[Report]) -> Counts:
    """Return the sum of the counts of all reports."""
    return sum((report.counts for report in reports), Counts())
