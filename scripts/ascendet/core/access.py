"""Files of another user: what the operating system refuses becomes one named error, which says whose file it is."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import shutil
import stat
from pathlib import Path

from ascendet import paths
from ascendet.core import files
from ascendet.errors import AscendetError

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_YOURS = "<a folder that you may write to>"


def refusal(error: OSError) -> AscendetError | None:
    """Return `permission-denied` for what the operating system refused, or None for any other error."""
    if isinstance(error, shutil.Error):  # of many files at once: (from, to, why), without a number
        pairs = [row for row in error.args[0] if isinstance(row, tuple)] if error.args else []
        closed = (row[0] for row in pairs if not can(row[0], os.R_OK))
        return next((denied(Path(file)) for file in closed), None)
    if error.errno not in _REFUSED or not isinstance(error.filename, str | os.PathLike):
        return None
    return denied(Path(error.filename))


def require(*folders: Path) -> None:
    """Raise `permission-denied` if one of the folders, or where it is to be made, may not be read and written."""
    for folder in folders:
        if not may_use(folder):
            raise denied(folder)


def can(path: str | os.PathLike[str], mode: int) -> bool:
    """Return whether this process has a right to a file: os.R_OK, os.W_OK, os.X_OK."""
    return os.access(path, mode, effective_ids=True)


def may_use(folder: Path) -> bool:
    """Return whether this user may read and write a folder, or where it does not exist yet, make it."""
    return can(files.existing(folder), os.R_OK | os.W_OK | os.X_OK)


def denied(path: Path) -> AscendetError:
    """Return the error for a file or folder that this user may not use, with the command that uses another one."""
    path = path.absolute()
    at = blocking(path)
    entered = can(at, os.X_OK) or not at.is_dir()
    right = "read and write" if entered else "enter"
    done = "made" if entered and not os.path.lexists(path) else "changed" if can(path, os.R_OK) else "read"
    settings = [
        f"{name}={_YOURS}"
        for name, folder in (("ASCENDET_BUILD", paths.BUILD), ("ASCENDET_CACHE", paths.CACHE))
        if path.is_relative_to(folder) or folder.is_relative_to(path) or not may_use(folder)
    ]
    return AscendetError(
        "permission-denied",
        f"{paths.shorten(path)} cannot be {done} by {user()}",
        expected=f"the right to {right} {paths.shorten(at)}",
        found=describe(at),
        hint=" ".join(settings) or f"ls -ld {paths.shorten(at)}, and ask its owner",
    )


def blocking(path: Path) -> Path:
    """Return what keeps this user from a path: the first folder above it that may not be entered, else what exists.

    A link is followed: an environment's interpreter is one to the Python that made it.
    """
    path = Path(os.path.realpath(path))
    above = (folder for folder in reversed(path.parents) if folder.is_dir())
    closed = (folder for folder in above if not can(folder, os.X_OK))
    return next(closed, files.existing(path))


def describe(path: Path) -> str:
    """Return whose a file or folder is, as `ls -l` does: "drwx------ root root build/venv"."""
    try:
        known = path.stat()
    except OSError:
        return f"{paths.shorten(path)}, of which nothing may be read"
    owner, group = _name(known.st_uid), str(known.st_gid)
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(known.st_gid).gr_name
    return f"{stat.filemode(known.st_mode)} {owner} {group} {paths.shorten(path)}"


def owner(path: Path) -> str:
    """Return the name of a file's owner, "?" if even that may not be read."""
    try:
        return _name(path.stat().st_uid)
    except OSError:
        return "?"


def user() -> str:
    """Return the name of this process's user."""
    return _name(os.geteuid())


def _name(uid: int) -> str:
    """Return a user's name; a container's user often has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
