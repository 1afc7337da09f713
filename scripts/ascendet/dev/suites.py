"""The test suites: the folder of tests/, the environment and the condition of each."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ascendet import paths
from ascendet.errors import AscendetError

TESTS = paths.ROOT / "tests"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A folder of tests.

    Parameters
    ----------
    python
        The environment whose interpreter runs pytest: the tools environment, or the stack's with its CANN tree.
    installed
        Whether our wheels must be installed in the stack's environment.
    waits
        Whether it mostly waits (for servers, for the Docker engine), so that it may run beside suites that compute.
    apart
        Whether each file runs in its own process, so that several run at the same time: for suites that take minutes.
    long
        The files of such a suite that take longest. They start first, so that no file runs alone at the end.
    patience
        Seconds that one test may take, also on a machine with much else to do; 0: any. Then the process ends with the
        stacks of all threads: for suites whose tests could wait for each other's threads for ever.
    wheel
        The wheel that the tests are about: `make test` leaves the suite out for a stack without it.
    when
        The condition under which `make test` runs it. It always runs if it is named.
    """

    name: str
    python: Literal["tools", "stack"]
    installed: bool = True
    waits: bool = False
    apart: bool = False
    long: tuple[str, ...] = ()
    patience: int = 0
    wheel: str = ""
    when: Literal["always", "real NPUs", "named"] = "always"

    @property
    def options(self) -> list[str]:
        """Options of pytest that only this suite has."""
        if not self.patience:
            return []
        return ["-o", f"faulthandler_timeout={self.patience}", "-o", "faulthandler_exit_on_timeout=true"]

    @property
    def folder(self) -> Path:
        """The folder of the suite's files."""
        return TESTS / self.name

    def processes(self, tests: list[str]) -> dict[str, list[str]]:
        """Return pytest's arguments for each process by the process's name; `tests` limits the run, if given."""
        words = tests or [f"tests/{self.name}"]
        if not self.apart:
            return {self.name: words}
        found: dict[str, list[str]] = {}
        for word in words:
            path = paths.ROOT / word.partition("::")[0]
            files = sorted(path.rglob("test_*.py"), key=lambda file: (file.name not in self.long, file))
            for file in files if path.is_dir() else [path]:
                name = f"{self.name}-{file.stem}"
                found.setdefault(name, []).append(
                    str(file.relative_to(paths.ROOT)) if path.is_dir() else word
                )
        return found


# In the order in which `make test` starts them: the most useful results in the shortest time come first.
_ALL = (
    Suite(name="unit", python="tools", installed=False),
    Suite(name="fetch", python="tools", installed=False, waits=True),
    Suite(name="image", python="tools", waits=True),  # needs an engine, and starts one if none answers
    Suite(name="models", python="stack", wheel="vitdet"),  # does not import torch_npu
    Suite(
        name="sim",
        python="stack",
        apart=True,
        long=(
            "test_cluster.py",
            "test_custom_data.py",
            "test_detector.py",
            "test_empty_ranks.py",
            "test_opinfo.py",
            "test_runs.py",
            "test_training_faults.py",
        ),
    ),
    Suite(name="wheel", python="stack", wheel="mmcv"),
    Suite(name="release", python="tools", wheel="vitdet"),
    Suite(name="mmcv", python="stack", wheel="mmcv"),
    Suite(name="detectron2", python="stack", wheel="detectron2"),
    Suite(name="npu_ops", python="stack", wheel="npu_ops"),
    Suite(name="blendmask", python="stack", wheel="blendmask"),
    Suite(name="om", python="stack", wheel="staged_om", patience=600),
    Suite(name="npu", python="stack", when="real NPUs"),
    Suite(name="examples", python="stack", when="named"),  # installs packages that nothing else needs
)
SUITES = {suite.name: suite for suite in _ALL}
# The other folders of tests/: measurements (`make bench-<name>`), and data that several suites read.
NO_SUITES = ("bench", "fixtures")


def unnamed(folder: Path) -> set[str]:
    """Return the subfolders of `folder` that are neither a suite nor in NO_SUITES."""
    found = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    return found - set(SUITES) - set(NO_SUITES)


def parse_tests(text: str) -> dict[str, list[str]]:
    """Return the files, folders and test ids in TESTS by suite, in pytest's form.

    Words are separated as in a shell, for ids that contain blanks.

    Raises
    ------
    AscendetError
        `usage`: a file does not exist or is in no suite.
    """
    chosen: dict[str, list[str]] = {}
    for word in shlex.split(text):
        path = (paths.ROOT / word.partition("::")[0]).resolve()
        parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
        if not parts or parts[0] not in SUITES or not path.exists():
            raise AscendetError(
                "usage",
                "TESTS must be files, folders or test ids of the suites",
                expected=", ".join(f"tests/{name}" for name in SUITES),
                found=word,
                hint="make test-unit TESTS=tests/unit/test_errors.py",
            )
        chosen.setdefault(parts[0], []).append(word)
    return chosen
