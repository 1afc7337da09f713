"""Write, hash and lock files, and report full disks.

A file or folder with its final name is complete: it is written under a temporary name beside it, flushed to the disk
and then renamed. Only `replacing` and `publish` do that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.errors import AscendetError

TEMP = ".tmp-"  # prefix of the names of unfinished files and folders
OLD = "-old"  # suffix, behind that of the new one, of a folder that is being replaced
_FULL = (errno.ENOSPC, errno.EDQUOT)


# -- replacing --


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path`, which replaces `path` at the end of the block.

    After an exception `path` is unchanged, and the temporary file is removed.
    """
    temp = path.with_name(f"{TEMP}{path.name}-{os.getpid()}")
    try:
        yield temp
        publish(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: after an error `path` is unchanged."""
    with replacing(path) as temp:
        temp.write_text(text, encoding="utf-8")


def publish(temp: Path, final: Path) -> None:
    """Flush a finished file or folder to the disk, then rename it to `final`, replacing an older one.

    Of two processes that publish a folder of one name at once, the last one's stays.
    """
    folder = temp.is_dir()
    if folder:
        for file in walk(temp):
            if not file.is_symlink():
                fsync(file)
    fsync(temp)
    if folder:
        _replace_folder(temp, final)
    else:
        temp.replace(final)
    fsync(final.parent)


def _replace_folder(temp: Path, final: Path) -> None:
    """Rename a folder to `final`, in the place of what is there, which another process may change meanwhile."""
    old = temp.with_name(f"{temp.name}{OLD}")
    while True:
        with contextlib.suppress(FileNotFoundError):
            final.rename(old)
        try:
            temp.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        finally:
            shutil.rmtree(old, ignore_errors=True)


def point(link: Path, target: str | Path) -> None:
    """Make the symbolic link `link` point to `target`, in one step, replacing an older link."""
    temp = link.with_name(f"{TEMP}{link.name}-{os.getpid()}")
    temp.unlink(missing_ok=True)
    temp.symlink_to(target)
    temp.replace(link)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it; an error names its file by the whole path, unlike `shutil.rmtree`."""

    def fail(function: object, path: str, raised: Any) -> None:
        if isinstance(raised[1], OSError):
            raised[1].filename = path
        raise raised[1]

    shutil.rmtree(folder, onerror=fail)


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def walk(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, and every symbolic link."""
    for root, names, found in os.walk(folder):
        yield from (Path(root, name) for name in found)
        yield from (path for path in (Path(root, name) for name in names) if path.is_symlink())


# -- hashing --


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(path: Path, names: Collection[str]) -> dict[str, str]:
    """Return digests of a file's content by algorithm (sha256, md5), in hex; the file is read once."""
    hashers = {name: hashlib.new(name, usedforsecurity=name != "md5") for name in names}
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(2**20):
            for hasher in hashers.values():
                hasher.update(chunk)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def digest_tree(path: Path, *, without: Collection[str] = ()) -> str:
    """Return the SHA-256 of a folder's files in hex: of their sorted relative names, executable bits and contents.

    Like git, it ignores empty folders, other mode bits and byte code; it also ignores the relative names in `without`.
    For a symbolic link it hashes the target's path.
    """
    total = hashlib.sha256()
    for file in sorted(walk(path), key=lambda file: file.relative_to(path).as_posix()):
        if "__pycache__" in file.relative_to(path).parts or file.relative_to(path).as_posix() in without:
            continue
        if file.is_symlink():
            kind, content = "link", hashlib.sha256(bytes(file.readlink())).hexdigest()
        else:
            kind, content = "exec" if os.access(file, os.X_OK) else "file", digest(file)
        total.update(f"{kind} {content} {file.relative_to(path).as_posix()}\0".encode())
    return total.hexdigest()


# -- locking --


@contextlib.contextmanager
def holding_lock(path: Path, name: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; print a line if another process holds it and we must wait.

    The kernel releases the lock when the process ends, so a killed process blocks nobody.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            print(
                f"{name}: waiting for process {file.read().strip() or '?'}, which builds it",
                file=sys.stderr,
                flush=True,
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


# -- disks --


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's "no space left on device" into `disk-full`, which names the folder."""
    try:
        yield
    except OSError as error:
        # shutil.Error holds the errors of many files as text and has no errno, so look at the disk instead.
        if error.errno not in _FULL and not (isinstance(error, shutil.Error) and is_full(folder)):
            raise
        raise disk_full(Path(error.filename) if isinstance(error.filename, str) else folder) from error


def disk_full(folder: Path) -> AscendetError:
    """Return the error for a full disk; `folder`, which need not exist or stay, is on that disk."""
    lasting = next(one for one in (folder, *folder.parents) if TEMP not in str(one))
    usage = shutil.disk_usage(existing(lasting))
    return AscendetError(
        "disk-full",
        f"the disk that holds {paths.shorten(existing(lasting))} is full",
        # What failed may have removed what it had written.
        found=f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free now",
        hint="free some space, or set ASCENDET_BUILD and ASCENDET_CACHE to folders on a larger disk; "
        "then run the command again",
    )


def is_full(folder: Path, needed: int = 16 * 2**20) -> bool:
    """Return whether fewer than `needed` bytes are free. It explains a failed child process, whose errno is unknown."""
    return _free(folder) < needed


def check_space(folder: Path, needed: int, move: str = "ASCENDET_BUILD and ASCENDET_CACHE") -> None:
    """Raise `disk-full` if the disk of `folder` has fewer than `needed` bytes free.

    `move` names the settings that choose another place for the folder.
    """
    free = _free(folder)
    if free < needed:
        raise AscendetError(
            "disk-full",
            f"too little space in {paths.shorten(folder)}",
            expected=f"{needed / 2**30:.1f} GiB free",
            found=f"{free / 2**30:.1f} GiB free",
            hint=f"free some space, or set {move} to a folder on a larger disk; then run the command again",
        )


def existing(folder: Path) -> Path:
    """Return the folder if it exists, else the nearest folder above it that does."""
    # Unlike Path.exists, os.path.exists raises nothing where a folder may not be entered.
    return next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))  # noqa: PTH110


def _free(folder: Path) -> int:
    return shutil.disk_usage(existing(folder)).free
