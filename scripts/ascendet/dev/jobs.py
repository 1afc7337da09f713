"""Run programs beside each other: each with its own log and its CPU time, and nothing of them outlives us."""

from __future__ import annotations

import concurrent.futures
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

# In the environment of a job and so of all that it starts, whatever session or parent that has.
_MARK = "ASCENDET_JOB"
_KILLS = 250
_LOOK = 0.5  # seconds
_ASKED = (signal.SIGTERM, signal.SIGHUP)  # by another process, which the terminal's own job knows nothing of


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
        Where its output goes; None leaves it on the terminal.
    waits
        Whether it runs beside the others without taking one of their places.
    group
        Whether an interrupt goes to all processes of its group, as a terminal's does: make waits for its programs to
        end, and does not tell them to.
    """

    name: str
    command: list[str]
    environ: Mapping[str, str]
    cwd: Path
    log: Path | None
    waits: bool = False
    group: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; seconds by the clock, and of processors, its children's among them."""

    exit_code: int
    seconds: float
    cpu_seconds: float


@dataclass
class Pool:
    """Runs as many jobs at once as there are `slots`, and those that wait beside them.

    Use it in a `with` statement: whatever ends the block, the jobs end with it. They have `grace` seconds for that: by
    default what pytest may need for its fixtures, a Docker engine, network namespaces.
    """

    slots: int
    grace: float = 20.0
    _running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _futures: list[Future[None]] = field(default_factory=list)
    _stopped: bool = False

    def __enter__(self) -> Pool:
        """Start to take jobs; SIGTERM and SIGHUP are then what Ctrl-C is."""
        self._computing = ThreadPoolExecutor(self.slots)
        self._waiting = ThreadPoolExecutor()
        # SIGINT too: a shell starts what runs in the background without it, and jobs would inherit that.
        handlers = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(_ASKED, _interrupt)}
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait for the jobs, or, after an exception, end them."""
        try:
            if error is None:
                self.wait(*self._futures)
        except BaseException as later:
            error = later
            raise
        finally:
            if error is not None:
                self._stop(asked=bool(error.args))
            for executor in (self._computing, self._waiting):
                executor.shutdown(cancel_futures=error is not None)
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def submit(self, job: Job, then: Callable[[Outcome], None]) -> Future[None]:
        """Run a job when there is a place for it, and call `then`, one at a time."""
        executor = self._waiting if job.waits else self._computing
        self._futures.append(executor.submit(self._run, job, then))
        return self._futures[-1]

    def wait(self, *futures: Future[None]) -> None:
        """Wait for jobs; raise what `then` raised.

        Not without a limit: a signal that comes just before the thread sleeps would be seen when it wakes.
        """
        for future in futures:
            while not future.done():
                concurrent.futures.wait([future], timeout=_LOOK)
            future.result()

    def _run(self, job: Job, then: Callable[[Outcome], None]) -> None:
        mark = uuid.uuid4().hex
        begin = time.monotonic()
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(job.log.open("ab")) if job.log else None
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
                    start_new_session=log is not None,  # a debugger needs the terminal's
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
        """End all jobs as Ctrl-C does, and after a while, or at a second Ctrl-C, by force.

        `asked` is False where it was a Ctrl-C, which the terminal's own job has got, too.
        """
        with self._lock:
            self._stopped = True
            for job, process in self._running.values():
                if job.log or asked:
                    # Not send_signal(), which would take the exit code from wait4().
                    interrupt = os.killpg if job.group else os.kill
                    with contextlib.suppress(ProcessLookupError):
                        interrupt(process.pid, signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):
            deadline = time.monotonic() + self.grace
            while self._running and time.monotonic() < deadline:
                time.sleep(0.1)
        with self._lock:
            left = set(self._running)
        _kill_marked(left)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _kill_marked(marks: set[str]) -> None:
    """Kill every process with one of these marks; again, as one may have started another meanwhile."""
    for _ in range(_KILLS):
        pids = [pid for pid, mark in _marked() if mark in marks]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _marked() -> Iterator[tuple[int, str]]:
    """Yield the processes with a mark; one that has ended and is not yet waited for has no environment any more."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended while we looked, or is another user's
            for entry in file.read_bytes().split(b"\0"):
                if entry.startswith(_MARK.encode() + b"="):
                    yield int(file.parent.name), entry.partition(b"=")[2].decode()
