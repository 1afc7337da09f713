"""Stage folders: named by a hash of what went in, described by a manifest of what came out.

A folder with its final name is complete: it is built under a temporary name and renamed as the last step. So
an up-to-date stage is a look at one file, a stale stamp cannot exist, and a killed stage leaves only a
temporary folder, which the next run removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ascendet import __version__, paths
from ascendet.errors import AscendetError

MANIFEST = "manifest.json"
_TEMP = ".tmp-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_file(path: Path, names: Collection[str]) -> dict[str, str]:
    """Digests of a file's content by algorithm (sha256, md5), in hex, from one reading."""
    hashers = {name: hashlib.new(name, usedforsecurity=name != "md5") for name in names}
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(2**20):
            for hasher in hashers.values():
                hasher.update(chunk)
    return {name: hasher.hexdigest() for name, hasher in hashers.items()}


def digest_tree(path: Path, *, without: Collection[str] = ()) -> str:
    """SHA-256 over sorted relative names, the executable bit and contents, in hex.

    What git does not track either is left out: empty folders, modes other than the executable bit, and byte
    code; so are the relative names in `without`. A symbolic link counts as its target's text.
    """
    total = hashlib.sha256()
    for file in sorted(_files(path), key=lambda file: file.relative_to(path).as_posix()):
        if "__pycache__" in file.relative_to(path).parts or file.relative_to(path).as_posix() in without:
            continue
        if file.is_symlink():
            kind, content = "link", hashlib.sha256(bytes(file.readlink())).hexdigest()
        else:
            kind, content = "exec" if os.access(file, os.X_OK) else "file", digest_file(file)
        total.update(f"{kind} {content} {file.relative_to(path).as_posix()}\0".encode())
    return total.hexdigest()


def digest_inputs(inputs: Mapping[str, object]) -> str:
    """16 hex digits that name a stage's inputs; equal content gives an equal name, in any order of keys.

    >>> digest_inputs({"a": 1, "b": [2]}) == digest_inputs({"b": [2], "a": 1})
    True
    >>> len(digest_inputs({}))
    16
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(folder: Path) -> dict[str, object] | None:
    """The manifest of a finished folder, or None where there is none (or a torn one)."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def write(folder: Path, content: Mapping[str, object]) -> None:
    """Put `manifest.json` into `folder`, all of it or nothing."""
    temp = folder / f".{MANIFEST}.{os.getpid()}"
    with temp.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temp.rename(folder / MANIFEST)


def damaged(folder: Path, outputs: Mapping[str, object]) -> list[str]:
    """Return a sentence for each file of a manifest's `outputs` that is not as it says."""
    return [
        f"{name} is damaged or missing"
        for name, digest in outputs.items()
        if not (folder / name).is_file() or digest_file(folder / name) != digest
    ]


@dataclass(kw_only=True)
class Stage:
    """What a stage's body sees. `path` is the folder to fill; `fresh` says that it is filled already."""

    path: Path
    final: Path
    fresh: bool
    _facts: dict[str, object] = field(default_factory=dict)

    def record(self, **facts: object) -> None:
        """Add facts to the manifest; `simulated` and `versions` among them complete the standard fields."""
        self._facts.update(facts)


@contextlib.contextmanager
def stage(kind: str, inputs: Mapping[str, object], *, cached: bool = False) -> Iterator[Stage]:
    """Build the folder `BUILD/<kind>/<key>` once.

    Parameters
    ----------
    kind
        The stage's noun, for example "wheelhouse/mmcv".
    inputs
        JSON-able: everything that the result depends on (digests, not paths). It makes the key.
    cached
        Publish to, and take from, the user's cache, so that a second clone does not build again.

    Yields
    ------
    Stage
        With `fresh` set there is nothing to do. Otherwise fill `path`; leaving the block without an exception
        publishes it as `final`. An exception removes the temporary folder.

    Raises
    ------
    AscendetError
        `disk-full` where the disk fills up on the way.
    """
    key = digest_inputs(inputs)
    home = paths.BUILD / kind
    final = home / key
    if read(final) is not None:
        yield Stage(path=final, final=final, fresh=True)
        return
    with full_disk_named(home):
        home.mkdir(parents=True, exist_ok=True)
        with locked(home / f".{key}.lock", f"{kind}/{key}"):
            if read(final) is not None:  # built by the process that we waited for
                yield Stage(path=final, final=final, fresh=True)
                return
            _remove_leftovers(home, key)
            temp = home / f"{_TEMP}{key}-{os.getpid()}"
            cache = paths.CACHE / kind / key if cached else None
            try:
                if cache and _take(cache, temp):
                    _publish(temp, final)
                    yield Stage(path=final, final=final, fresh=True)
                    return
                temp.mkdir()
                started = datetime.now(UTC)
                clock = time.monotonic()
                current = Stage(path=temp, final=final, fresh=False)
                yield current
                write(
                    temp,
                    {
                        "stage": kind,
                        "key": key,
                        "inputs": inputs,
                        "outputs": _digests(temp),
                        "command": sys.argv,
                        "started": started.isoformat(timespec="seconds"),
                        "seconds": round(time.monotonic() - clock, 3),
                        "simulated": None,  # None: nothing ran on a device, real or simulated
                        **current._facts,
                        "versions": {
                            "ascendet": __version__,
                            "python": platform.python_version(),
                            "machine": platform.machine(),
                            **_as_dict(current._facts.get("versions")),
                        },
                    },
                )
                _publish(temp, final)
                if cache:
                    _give(final, cache)
            finally:
                shutil.rmtree(temp, ignore_errors=True)


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn "no space left on device" into `error[disk-full]` that says where."""
    try:
        yield
    except OSError as error:
        # shutil.Error gathers many files' errors as text and has no errno: look at the disk instead.
        if error.errno not in _FULL and not (isinstance(error, shutil.Error) and is_full(folder)):
            raise
        raise disk_full(Path(error.filename) if isinstance(error.filename, str) else folder) from error


def disk_full(folder: Path) -> AscendetError:
    """The error for a full disk below (or at) `folder`."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return AscendetError(
        "disk-full",
        f"the disk that holds {paths.shorten(folder)} is full",
        found=f"{free / 2**20:.0f} MiB free",
        hint="free some space, or set ASCENDET_BUILD and ASCENDET_CACHE to a larger disk; then run it again",
    )


def is_full(folder: Path, needed: int = 16 * 2**20) -> bool:
    """Whether fewer than `needed` bytes are left: for judging a failed child, whose errno we never see."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free < needed


def check_space(folder: Path, needed: int, move: str = "ASCENDET_BUILD and ASCENDET_CACHE") -> None:
    """Refuse to start what cannot end: `disk-full` where the disk of `folder` has fewer than `needed` bytes left.

    `move` names the settings that put the folder elsewhere.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AscendetError(
            "disk-full",
            f"too little space in {paths.shorten(folder)}",
            expected=f"{needed / 2**30:.1f} GiB free",
            found=f"{free / 2**30:.1f} GiB free",
            hint=f"free some space, or set {move} to a larger disk; then run it again",
        )


@contextlib.contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, saying so when that means to wait.

    The kernel drops the lock with the process: a killed builder blocks nobody.
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


def _remove_leftovers(home: Path, own_key: str) -> None:
    """Remove temporary folders of dead builders: those whose lock nobody holds (ours is held by us)."""
    for temp in home.glob(f"{_TEMP}*"):
        key = temp.name.removeprefix(_TEMP).rpartition("-")[0]
        if key == own_key:
            shutil.rmtree(temp, ignore_errors=True)
            continue
        with (home / f".{key}.lock").open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(temp, ignore_errors=True)


def _publish(temp: Path, final: Path) -> None:
    """Flush everything to the disk, then give the folder its final name."""
    for file in _files(temp):
        if not file.is_symlink():
            fsync(file)
    fsync(temp)
    if final.exists():  # without a manifest: not ours to trust
        shutil.rmtree(final)
    temp.rename(final)
    fsync(final.parent)


def _take(cache: Path, temp: Path) -> bool:
    """Copy a cached folder to `temp` if it is there and still what its manifest says."""
    content = read(cache)
    if content is None:
        return False
    shutil.copytree(cache, temp, symlinks=True)
    if _digests(temp) == content.get("outputs"):
        return True
    print(f"{cache}: does not match its manifest; removed", file=sys.stderr, flush=True)
    shutil.rmtree(temp)
    shutil.rmtree(cache, ignore_errors=True)
    return False


def _give(final: Path, cache: Path) -> None:
    """Copy a finished folder into the cache. A cache that cannot be written costs only time."""
    temp = cache.parent / f"{_TEMP}{cache.name}-{os.getpid()}"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(final, temp, symlinks=True)
        if not cache.exists():
            _publish(temp, cache)
    except OSError as error:
        print(f"{cache}: not cached ({error.strerror})", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a stage folder, without the manifest itself."""
    return {
        file.relative_to(folder).as_posix(): digest_file(file)
        for file in sorted(_files(folder))
        if file != folder / MANIFEST and not file.is_symlink()
    }


def _files(folder: Path) -> Iterator[Path]:
    for root, names, files in os.walk(folder):
        yield from (Path(root, name) for name in files)
        yield from (folder for folder in (Path(root, name) for name in names) if folder.is_symlink())


def fsync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_dict(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}
