"""Run a family's program on devices: write its output to a log, and show its progress on the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ascendet import paths
from ascendet.containers import container
from ascendet.core import files
from ascendet.machine import engine
from ascendet.run import diagnose, folders
from ascendet.run.target import Target

_SAME_REQUEST = 2.0  # seconds
_POLL = 0.2  # seconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a program.

    Attributes
    ----------
    program
        One of the family's programs: `train`, `predict`, `infer` or `speed`.
    environ
        Environment variables; see `target.environ`.
    log
        The log file, in the work folder, which is the only folder that the program writes to.
    target
        The target; None runs scripts/run.sh without a container.
    inputs
        Files and folders that a container may read besides the work folder.
    arguments
        The program's arguments.
    """

    program: str
    environ: Mapping[str, str]
    log: Path
    target: Target | None = None
    inputs: Sequence[Path] = ()
    arguments: Sequence[str] = ()

    @property
    def container(self) -> container.Container | None:
        """The container that the program runs in, or None."""
        return self.target.container if self.target else None


def execute(run: Run) -> None:
    """Run a program to its end.

    An interrupt (Ctrl-C, SIGTERM) is passed on to it, so that its ranks end before this process.

    Raises
    ------
    AscendetError
        The error that `diagnose` finds.
    """
    with files.disk_errors(run.log.parent):  # the log, too, fills a disk
        _execute(run)


def _execute(run: Run) -> None:
    work = run.log.parent
    (work / diagnose.ERROR).unlink(missing_ok=True)
    command, environ, name = ["bash", str(paths.ROOT / "scripts" / "run.sh")], run.environ, None
    command += [run.program, *run.arguments]
    if run.container:
        name, command = container_command(run)
        environ = os.environ
    children: list[subprocess.Popen[str]] = []
    # In a new session: otherwise a terminal interrupts ranks and torchrun at the same time, but torchrun must end last.
    with (
        run.log.open("a", encoding="utf-8") as file,
        _passing_interrupts(children, name) as interrupted,
        _showing_progress(work / folders.PROGRESS),  # before the program can write a row
        subprocess.Popen(
            command,
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as child,
    ):
        children.append(child)
        if interrupted:  # while the program was being started
            child.terminate()
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            file.flush()
            if line.startswith("runtime: "):  # a line of run.sh itself
                print(line, end="", flush=True)
        code = child.wait()
    if interrupted:
        raise diagnose.interrupted(run.program, run.log)
    if code:
        raise diagnose.failure(run.program, code, run.log)


def container_command(run: Run) -> tuple[str, list[str]]:
    """Return the name of the container for a program, and the docker command that runs it."""
    assert run.target is not None
    assert run.container is not None
    run.log.touch()
    run.container.prepare(run.log.parent)
    # Of the work folder, with the one above it: compare-Ascend910B3-fp16 alone is there for every exported model.
    place = "-".join(run.log.parts[-3:-1])
    name = re.sub(r"[^\w]+", "-", f"ascendet-{run.program}-{place}")
    command = run.container.command(
        run.target.devices,
        [f"{container.SCRIPTS}/run.sh", run.program, *run.arguments],
        name=name,
        work_dir=run.log.parent,
        inputs=list(dict.fromkeys(run.inputs)),
        environ=run.environ,
    )
    return name, [engine.client(), *command]


# -- progress --


@contextlib.contextmanager
def _showing_progress(file: Path) -> Iterator[None]:
    """Print the rows that are added to a progress file while the block runs, including its last rows."""
    start = file.stat().st_size if file.is_file() else 0
    over = threading.Event()

    def follow() -> None:
        seen, rest, ended = start, "", False
        while not ended:
            ended = over.wait(_POLL)
            if file.is_file():
                with file.open("rb") as rows:
                    rows.seek(seen)
                    added = rows.read()
                seen += len(added)
                *lines, rest = (rest + added.decode(errors="replace")).split("\n")
                for line in lines:
                    if shown := describe_row(line):
                        print(shown, flush=True)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def describe_row(line: str) -> str:
    """Return a row of progress as text: the time of day, the phase and step, and the values.

    >>> os.environ["TZ"] = "UTC"; time.tzset()
    >>> describe_row('{"phase":"train","time":1763698881,"step":75,"of":900,"loss":2.5512,"eta":1648.2,"seconds":1.9,'
    ...              '"memory":210,"lr":1e-3}')
    '04:21:21 train 75/900  loss 2.551  eta 0:27:28  1.900 s/step  210 MiB'
    >>> describe_row('{"phase":"validate","time":1763698881,"step":900,"AP":{"bbox":0.6531,"segm":0.63}}')
    '04:21:21 validate 900  box AP 0.653  mask AP 0.630'
    >>> describe_row('{"phase":"note","time":1763698881,"text":"recipe: 4 images per step"}')
    '04:21:21 recipe: 4 images per step'
    """
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:  # a killed process left it incomplete
        return ""
    clock = time.strftime("%H:%M:%S", time.localtime(row["time"]))
    if row["phase"] in ("note", "warning"):
        return f"{clock} {'' if row['phase'] == 'note' else 'warning: '}{row['text']}"
    parts = [f"{clock} {row['phase']} {row['step']}" + (f"/{row['of']}" if row.get("of") else "")]
    if "text" in row:
        parts.append(row["text"])
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4g}")
    for kind, value in (row.get("AP") or {}).items():
        shown = "-" if value < 0 else f"{value:.3f}"  # -1: the split has no object to measure it on
        parts.append(f"{'box' if kind == 'bbox' else 'mask'} AP {shown}")
    if row.get("eta") is not None:
        minutes, seconds = divmod(int(row["eta"]), 60)
        parts.append(f"eta {minutes // 60}:{minutes % 60:02}:{seconds:02}")
    if row.get("seconds") is not None:
        parts.append(f"{row['seconds']:.3f} s/step")
    if row.get("memory"):
        parts.append(f"{row['memory']} MiB")
    return "  ".join(parts)


# -- interrupts --


@contextlib.contextmanager
def _passing_interrupts(children: list[subprocess.Popen[str]], name: str | None) -> Iterator[list[float]]:
    """Pass SIGINT and SIGTERM on to the child process; a second request kills it with all its descendants.

    Yields a list of the times of the signals (seconds, monotonic). Signals within `_SAME_REQUEST` are one request,
    because make and timeout pass on each signal that they receive. `name` is the container to kill, if any; docker's
    client passes signals on itself.
    """
    arrived: list[float] = []

    def forward(number: int, _: FrameType | None) -> None:
        arrived.append(time.monotonic())
        if len(arrived) == 1:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()  # torchrun ends its ranks itself
            print("\nstopping …", file=sys.stderr, flush=True)
        elif arrived[-1] - arrived[0] > _SAME_REQUEST:  # a second Ctrl-C
            if name:
                subprocess.run([engine.client(), "kill", name], capture_output=True, check=False)
            for child in children:
                _kill_tree(child.pid)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_tree(root: int) -> None:
    """Kill a process and all its descendants; killing the session is not enough, torchrun's ranks have their own."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            # pid (comm) state ppid …; comm may contain any character, also a closing parenthesis
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    tree = [root]
    for pid in tree:  # the list grows during the loop
        tree += children.get(pid, [])
    for pid in tree:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
