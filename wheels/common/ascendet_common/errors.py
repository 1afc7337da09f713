"""Errors that a user can act on, and how a program tells the tool that started it: `error.json` in the work folder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

FILE = "error.json"


class RunError(Exception):
    """A failure that the user can act on.

    It can be raised anywhere, also in a data loader's worker, whose exceptions reach the training as text only.

    Parameters
    ----------
    what
        One sentence: what went wrong.
    name
        Its name in Ascendet's table of errors. A subclass that stands for one error sets `default_name` instead.
    expected, found
        The two sides of the disagreement, where there is one.
    advice
        Variables that make should be given the next time, such as {"LR": "5e-05"}.
    """

    default_name = "run-failed"

    def __init__(
        self,
        what: str,
        *,
        name: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        advice: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.name = name or self.default_name
        self.what = what
        self.expected = expected
        self.found = found
        self.advice = dict(advice or {})

    def __str__(self) -> str:
        """Return the sentence, followed by what was expected and found."""
        sides = (("expected", self.expected), ("found", self.found))
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in sides if text)])

    def as_dict(self) -> dict[str, object]:
        """Return the content of `error.json`."""
        return {
            "name": self.name,
            "what": self.what,
            "expected": self.expected,
            "found": self.found,
            "advice": self.advice,
        }


def forget() -> None:
    """Remove the `error.json` of an earlier attempt. Only the first rank does this, before it begins."""
    folder = os.environ.get("WORK_DIR")
    if folder and os.environ.get("RANK", "0") == "0":
        Path(folder, FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Write `error.json` into WORK_DIR when the block raises a `RunError`, and raise it again.

    When several ranks or workers fail, the first error stays: the others are its consequences.
    """
    try:
        yield
    except RunError as error:
        report(error)
        raise


def report(error: RunError) -> None:
    """Write `error.json` into WORK_DIR, in one step, unless it exists; do nothing when WORK_DIR is not set."""
    folder = os.environ.get("WORK_DIR")
    if not folder:
        return
    final, temp = Path(folder, FILE), Path(folder, f".{FILE}.{os.getpid()}")
    temp.write_text(json.dumps(error.as_dict()), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(temp, final)
    temp.unlink()
