"""Run make targets one after the other: the whole output of each in a log, one line of each on the terminal."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.core import files, process
from ascendet.dev.jobs import Job, Outcome, Pool
from ascendet.errors import AscendetError

_EVERY = 1.0  # seconds between two looks at the log
_TAIL = 4096  # bytes of the log's end that tell the progress
# A row of progress as run.program.describe_row prints it: step, of, and the time left where the program knows it.
_ROW = re.compile(r"^\d\d:\d\d:\d\d \w+ (\d+)/(\d+)\b(?:.*  eta (\d+):(\d\d):(\d\d))?", re.MULTILINE)
# What make adds below the error of the program that it ran.
_MAKE_ADDS = re.compile(r"(\nmake(\[\d+\])?: .*)+\s*\Z")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A make target as a user types it.

    Parameters
    ----------
    name
        That of its log.
    text
        What it does, for the terminal.
    result
        Takes the log's text when the step is done, and returns the lines to show of it.
    beside
        Takes the log while the step runs, and returns a step to run beside it as soon as that is possible, else None.
    """

    name: str
    text: str
    target: str
    variables: Mapping[str, str]
    result: Callable[[str], Iterable[str]] = lambda log: ()
    beside: Callable[[Path], Step | None] = lambda log: None

    @property
    def command(self) -> list[str]:
        """The command; make takes a doubled dollar sign for one."""
        values = (f"{name}={value.replace('$', '$$')}" for name, value in self.variables.items())
        return ["make", self.target, *values]


@dataclass
class _Started:
    """A step that was started; `outcomes` has its outcome when it is done."""

    step: Step
    log: Path
    done: Future[None]
    outcomes: list[Outcome]


@dataclass(kw_only=True)
class Runner:
    """Runs steps; logs and the seconds that each took are kept in `folder`, the seconds for the next run's estimate.

    `again` is the command that runs all of them again.
    """

    folder: Path
    again: str
    pool: Pool
    _width: int = 0

    def run(self, step: Step) -> None:
        """Run a step and show its result, after that of the step beside it, if any.

        Raises
        ------
        AscendetError
            The error that the step ended with, by its own name; `command-failed` where it states none; `interrupted`.
        """
        begin, before = time.monotonic(), self._seconds().get(step.name)
        beside: _Started | None = None
        try:
            main = self._start(step)
            while running := [one.done for one in (main, beside) if one and not one.done.done()]:
                self._show(describe(step.text, time.monotonic() - begin, before, main.log))
                if beside is None and (found := step.beside(main.log)):
                    beside = self._start(found)
                concurrent.futures.wait(running, timeout=_EVERY)
        except KeyboardInterrupt:
            self._show("")
            print(f"  stopping: {step.text} …", flush=True)
            raise AscendetError(
                "interrupted",
                f"stopped in: {step.text}",
                hint=f"{self.again}, which continues there\nless {paths.shorten(main.log)}",
            ) from None
        if beside:
            self._finish(beside)
        if self._finish(main):
            raise self._failure(main)
        files.write_text(
            self._file, json.dumps(self._seconds() | {step.name: round(main.outcomes[0].seconds, 1)}) + "\n"
        )

    def prepare(self, step: Step) -> None:
        """Run a step in the background, when the processors have nothing better to do, without showing it."""
        self._start(step, ["nice", "-n", "19"])

    def align(self, steps: Iterable[Step]) -> None:
        """Let the times of these steps stand below each other."""
        self._width = max(len(step.text) for step in steps)

    def _start(self, step: Step, prefix: Sequence[str] = ()) -> _Started:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{step.name}.log"
        files.write_text(log, f"$ {shlex.join(step.command)}\n")
        job = Job(
            name=step.name,
            command=[*prefix, *step.command],
            environ=os.environ,
            cwd=paths.ROOT,
            log=log,
            waits=True,
            group=True,
        )
        outcomes: list[Outcome] = []
        return _Started(step, log, self.pool.submit(job, outcomes.append), outcomes)

    def _finish(self, started: _Started) -> int:
        """Show a step that is done, with its result if it succeeded, and return its exit code."""
        started.done.result()
        (outcome,) = started.outcomes
        self._show("")
        print(
            f"  {started.step.text:<{self._width}} {clock(outcome.seconds):>7}"
            f"{'  failed' if outcome.exit_code else ''}",
            flush=True,
        )
        if not outcome.exit_code:
            for line in started.step.result(started.log.read_text(encoding="utf-8", errors="replace")):
                print(f"      {line}", flush=True)
        return outcome.exit_code

    def _failure(self, started: _Started) -> AscendetError:
        """Print the log's last lines, and return the step's error."""
        text = _MAKE_ADDS.sub("", started.log.read_text(encoding="utf-8", errors="replace"))
        stated = AscendetError.read(text)
        print(f"\n{process.tail(text.rpartition('error[')[0] if stated else text)}\n", flush=True)
        hint = f"less {paths.shorten(started.log)}\n{self.again}, which continues with this step"
        if stated is None:
            return AscendetError("command-failed", f"{shlex.join(started.step.command)} failed", hint=hint)
        stated.hint = f"{stated.hint}\n{hint}"
        return stated

    @property
    def _file(self) -> Path:
        return self.folder / "seconds.json"

    def _seconds(self) -> dict[str, float]:
        """Return the seconds of each step's last run, by the step's name."""
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return dict(known)

    def _show(self, line: str) -> None:
        """Replace the line on the terminal; output that is no terminal shows a step when it is done."""
        if sys.stdout.isatty():
            columns = shutil.get_terminal_size().columns
            sys.stdout.write(f"\r\x1b[K{line[: columns - 1]}")
            sys.stdout.flush()


def describe(text: str, elapsed: float, before: float | None, log: Path) -> str:
    """Return the line of a running step: what it does, how far it is, the time that passed and that is left.

    What is left is what the program itself says in its log; else what the step took `before`, in seconds; where neither
    is known, or it takes longer than before, no number.
    """
    done, left = read_progress(log)
    if left is None and before is not None and before > elapsed:
        left = before - elapsed
    shown = [f"  {text}", *([done] if done else []), clock(elapsed)]
    return "  ".join([*shown, *([f"about {clock(left)} left"] if left is not None else [])])


def read_progress(log: Path) -> tuple[str, float | None]:
    """Return the last progress in a log: "step/of" or "", and the seconds left now if the program says them."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
        age = time.time() - log.stat().st_mtime
    except FileNotFoundError:  # the step is about to start
        return "", None
    rows = _ROW.findall(text)
    if not rows:
        return "", None
    step, of, *eta = rows[-1]
    if not eta[0]:
        return f"{step}/{of}", None
    hours, minutes, seconds = map(int, eta)
    return f"{step}/{of}", max(0.0, hours * 3600 + minutes * 60 + seconds - age)


def clock(seconds: float) -> str:
    """Return a duration as text.

    >>> clock(5.4), clock(725), clock(3600)
    ('0:05', '12:05', '60:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
