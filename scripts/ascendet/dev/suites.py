"""The test suites: which folder of tests/ each is, the environment that it runs in, and when."""

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
        The environment whose interpreter runs pytest: the tool's own, or the stack's with its CANN tree.
    installed
        Whether the stack's environment must be complete, with our wheels in it.
    waits
        Whether it mostly waits (for servers, for the Docker engine), so that it may run beside what computes.
    apart
        Whether each file gets a process of its own, so that several run at once: for suites that take minutes.
    long
        Of such a suite, the files that take longest: they start first, so that none is left alone at the end.
    when
        What `make test` asks before it runs it; by its name it runs always.
    """

    name: str
    python: Literal["tools", "stack"]
    installed: bool = True
    waits: bool = False
    apart: bool = False
    long: tuple[str, ...] = ()
    when: Literal["always", "real NPUs", "named"] = "always"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return TESTS / self.name

    def processes(self, tests: list[str]) -> dict[str, list[str]]:
        """Return pytest's arguments for each process, by its name; `tests` chooses, if anything."""
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


# In the order in which `make test` starts them: what tells most in least time comes first, what fills gaps last.
_ALL = (
    Suite(name="unit", python="tools", installed=False),
    Suite(name="fetch", python="tools", installed=False, waits=True),
    Suite(name="image", python="tools", waits=True),  # asks for an engine; it starts one where none answers
    Suite(name="models", python="stack"),  # keeps torch_npu out of its process
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
    Suite(name="wheel", python="stack"),
    Suite(name="mmcv", python="stack"),
    Suite(name="npu", python="stack", when="real NPUs"),
    Suite(name="examples", python="stack", when="named"),  # installs packages that nothing else needs
)
SUITES = {suite.name: suite for suite in _ALL}
# The other folders of tests/: measurements (`make bench-<name>`), and data that several suites read.
NO_SUITES = ("bench", "fixtures")


def unnamed(folder: Path) -> set[str]:
    """Return the folders in `folder`, as in tests/, that are neither a suite nor known to be none."""
    found = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    return found - set(SUITES) - set(NO_SUITES)


def parse_tests(text: str) -> dict[str, list[str]]:
    """Return what TESTS chooses, by suite: files, folders and test ids, as pytest takes them.

    Words are separated as a shell does, for ids that hold blanks.

    Raises
    ------
    AscendetError
        `usage`, where a file does not exist or is in no suite.
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
