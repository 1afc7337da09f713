"""Run several programs at the same time, each with its log and its CPU time; all of them end when this process does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

# An environment variable that marks a job and all processes that it starts, whatever their session or parent is.
_MARK = "ASCENDET_JOB"
_KILLS = 250
_ASKED = (signal.SIGTERM, signal.SIGHUP)  # sent by another process only to us, not by the terminal to all
_GRACE = 20.0  # seconds in which pytest can end its fixtures: a Docker engine, network namespaces


def count_slots() -> int:
    """Return how many programs may run at the same time: `$MAX_JOBS`, else the number of CPUs of this process."""
    asked = os.environ.get("MAX_JOBS", "")
    return int(asked) if asked.isdecimal() and int(asked) else len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Job:
    """A program to run.

    Parameters
    ----------
    log
        The file for its output; None for the terminal.
    waits
        Whether it mostly waits, and may run beside the others without taking one of their slots.
    """

    name: str
    command: list[str]
    environ: Mapping[str, str]
    cwd: Path
    log: Path | None
    waits: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a job: exit code, seconds by the clock, and CPU seconds including its children's."""

    exit_code: int
    seconds: float
    cpu_seconds: float


@dataclass
class Pool:
    """Runs as many jobs at the same time as there are `slots`, and in addition those that mostly wait.

    Use it in a `with` statement: the jobs end when the block ends, for any reason.
    """

    slots: int
    _running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def __enter__(self) -> Pool:
        """Accept jobs from now on; treat SIGTERM and SIGHUP like Ctrl-C."""
        self._computing = ThreadPoolExecutor(self.slots)
        self._waiting = ThreadPoolExecutor()
        # SIGINT, too: a shell makes background processes ignore it, and jobs would inherit that.
        handlers = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_ASKED, _interrupt)}
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the jobs; after an exception, end them."""
        if error is not None:
            self._stop(asked=bool(error.args))
        for executor in (self._computing, self._waiting):
            executor.shutdown(cancel_futures=error is not None)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def submit(self, job: Job, then: Callable[[Outcome], None]) -> Future[None]:
        """Run a job when a slot is free, then call `then` with its outcome, never for two jobs at the same time."""
        executor = self._waiting if job.waits else self._computing
        return executor.submit(self._run, job, then)

    def _run(self, job: Job, then: Callable[[Outcome], None]) -> None:
        mark = uuid.uuid4().hex
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(job.log.open("wb")) if job.log else None
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    job.command,
                    cwd=job.cwd,
                    env={**job.environ, _MARK: mark},
                    stdin=subprocess.DEVNULL if log else None,
                    stdout=log,
                    stderr=subprocess.STDOUT if log else None,
                    start_new_session=log
                    is not None,  # without a log it stays in the terminal's, for a debugger
                )
                self._running[mark] = job, process
            _, status, usage = os.wait4(process.pid, 0)
        end = time.monotonic()
        with self._lock:
            del self._running[mark]
            process.returncode = os.waitstatus_to_exitcode(status)
            _kill_marked({mark})
            if not self._stopped:
                then(
                    Outcome(
                        exit_code=process.returncode,
                        seconds=end - begin,
                        cpu_seconds=usage.ru_utime + usage.ru_stime,
                    )
                )

    def _stop(self, *, asked: bool) -> None:
        """End all jobs as Ctrl-C does; kill them after a while, or at a second Ctrl-C.

        `asked` is False after a Ctrl-C, which the terminal has also sent to the job that runs in its session.
        """
        with self._lock:
            self._stopped = True
            for job, process in self._running.values():
                if job.log or asked:
                    process.send_signal(signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            deadline = time.monotonic() + _GRACE
            while self._running and time.monotonic() < deadline:
                time.sleep(0.1)
        _kill_marked(set(self._running))


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _kill_marked(marks: set[str]) -> None:
    """Kill all processes with one of these marks, repeatedly, because one may have started another meanwhile."""
    for _ in range(_KILLS):
        pids = [pid for pid, mark in _marked() if mark in marks]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _marked() -> Iterator[tuple[int, str]]:
    """Yield (process id, mark) of the processes with a mark; a process that has ended no longer has an environment."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # the process has just ended, or belongs to another user
            for entry in file.read_bytes().split(b"\0"):
                if entry.startswith(_MARK.encode() + b"="):
                    yield int(file.parent.name), entry.partition(b"=")[2].decode()
