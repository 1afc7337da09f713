"""Run programs; a failure becomes a named error with the last lines of the program's output."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ascendet import paths
from ascendet.core import access, files
from ascendet.errors import AscendetError

Command = Sequence[str | Path]
_LINES = 8  # of a failed program's output, to show in the error


def run(
    command: Command,
    *,
    what: str,
    hint: str,
    error: str = "command-failed",
    capture: bool = True,
    disks: Sequence[Path] = (),
    room: int = 16 * 2**20,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
    umask: int = -1,
) -> str:
    """Run a program to its end and return its standard output.

    Parameters
    ----------
    command, cwd, env, umask
        As for `subprocess.run`.
    what, hint, error
        The sentence, the next command and the name of the error that is raised if the program fails.
    capture
        If False, the program prints to the terminal, and "" is returned.
    disks, room
        Folders that the program writes to. If it fails and one of their disks has fewer than `room` bytes free, the
        error is `disk-full`; if one of them may not be written to, `permission-denied`.
    text
        The program's standard input.

    Raises
    ------
    AscendetError
        `error`, with the last lines of the program's output; `disk-full`; `permission-denied`.
    """
    pipe = subprocess.PIPE if capture else None
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            input=text,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            umask=umask,
            check=False,
        )
    except FileNotFoundError as missing:
        if cwd and str(missing.filename) == str(cwd):
            raise
        raise AscendetError(error, what, found=f"{command[0]} is not installed", hint=hint) from missing
    if done.returncode == 0:
        return done.stdout or ""
    for folder in disks:
        if files.is_full(folder, room):
            raise files.disk_full(folder)
    access.require(*disks)
    printed = tail(f"{done.stdout}\n{done.stderr}") if capture else ""
    ended = describe_exit(done.returncode)
    raise AscendetError(
        error, what, found=printed or (ended if capture else f"{ended} (its message is above)"), hint=hint
    )


def ask(command: Command, *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str | None:
    """Return a program's standard output, or None if the program is missing or fails."""
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def git(*arguments: str) -> list[str]:
    """Return the command that asks git about this repository, whoever owns its folder.

    git refuses a folder of another user since its configuration can name programs to run. Who runs our make there does
    that anyway.
    """
    return ["git", "-c", f"safe.directory={paths.ROOT}", "-C", str(paths.ROOT), *arguments]


def require(name: str, package: str) -> str:
    """Return the path of a program that must be installed.

    Raises
    ------
    AscendetError
        `command-failed`, with the Debian package that contains it.
    """
    found = shutil.which(name)
    if found is None:
        raise AscendetError(
            "command-failed",
            f"{name} is missing",
            expected=f"{name} on the PATH",
            hint=f"install {package} (Debian, Ubuntu), then run the command again",
        )
    return found


def tail(text: str, lines: int = _LINES) -> str:
    r"""Return the last lines of a program's output.

    >>> tail("a\nb\nc\n\n", 2)
    'b\nc'
    """
    return "\n".join(text.strip().splitlines()[-lines:])


def describe_exit(code: int) -> str:
    """Return a text that says how a program ended, from its `returncode`.

    >>> describe_exit(2), describe_exit(-9)
    ('exit code 2', 'ended by SIGKILL')
    """
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


def show(command: Sequence[str]) -> str:
    r"""Return a command as text for a terminal, with one option per line.

    >>> print(show(["docker", "run", "--rm", "--env=A=b c", "image", "bash"]))
    docker run \
      --rm \
      --env='A=b c' \
      image bash
    """
    lines, rest = [shlex.join(command[:2])], list(command[2:])
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        lines.append(f"  {option}{equals}{shlex.quote(value) if equals else ''}")
    return " \\\n".join([*lines, f"  {shlex.join(rest)}"])
