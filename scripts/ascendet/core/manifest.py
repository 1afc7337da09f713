"""Stage folders: a hash of the inputs names the folder, and a manifest describes the outputs.

A folder with its final name is complete, because it is built under a temporary name and renamed as the last step.
Therefore reading one file is enough to know that a stage is up to date, a stale stamp cannot exist, and a killed stage
leaves only a temporary folder, which the next run removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ascendet import __version__, paths
from ascendet.core import files

MANIFEST = "manifest.json"


def digest_inputs(inputs: Mapping[str, object]) -> str:
    """Return 16 hex digits that name a stage's inputs; the order of the keys does not matter.

    >>> digest_inputs({"a": 1, "b": [2]}) == digest_inputs({"b": [2], "a": 1})
    True
    >>> len(digest_inputs({}))
    16
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(folder: Path) -> dict[str, object] | None:
    """Return the manifest of a finished folder, or None if there is none or it is incomplete."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def write(folder: Path, content: Mapping[str, object]) -> None:
    """Write `manifest.json` into `folder`, in one step."""
    files.write_text(folder / MANIFEST, json.dumps(content, indent=2, sort_keys=True) + "\n")


def damaged(folder: Path, outputs: Mapping[str, object]) -> list[str]:
    """Return a sentence for each file in a manifest's `outputs` that is missing or has another digest."""
    return [
        f"{name} is damaged or missing"
        for name, digest in outputs.items()
        if not (folder / name).is_file() or files.digest(folder / name) != digest
    ]


@dataclass(kw_only=True)
class Stage:
    """A stage folder while it is built: `path` is the folder to fill, and `fresh` says that it is complete already."""

    path: Path
    final: Path
    fresh: bool
    _facts: dict[str, object] = field(default_factory=dict)

    def record(self, **facts: object) -> None:
        """Add facts to the manifest; `simulated` replaces the standard field, `versions` is added to it."""
        self._facts.update(facts)


@contextlib.contextmanager
def stage(kind: str, inputs: Mapping[str, object], *, cached: bool = False) -> Iterator[Stage]:
    """Build the folder `BUILD/<kind>/<key>`, unless it exists already.

    Parameters
    ----------
    kind
        The stage's noun, for example "wheelhouse/<name>".
    inputs
        Everything that the result depends on, as JSON values (digests, not paths). The key is its hash.
    cached
        Whether to look in the user's cache first and to store the result there, so that a second clone does not build
        it again.

    Yields
    ------
    Stage
        If `fresh` is set, there is nothing to do. Otherwise fill `path`: at the end of the block it is renamed to
        `final`. After an exception it is removed.

    Raises
    ------
    AscendetError
        `disk-full`: the disk became full during the build.
    """
    key = digest_inputs(inputs)
    home = paths.BUILD / kind
    final = home / key
    if read(final) is not None:
        yield Stage(path=final, final=final, fresh=True)
        return
    with files.disk_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        with files.holding_lock(home / f".{key}.lock", f"{kind}/{key}"):
            if read(final) is not None:  # built by the process that we waited for
                yield Stage(path=final, final=final, fresh=True)
                return
            _remove_leftovers(home, key)
            temp = home / f"{files.TEMP}{key}-{os.getpid()}"
            cache = paths.CACHE / kind / key if cached else None
            try:
                if cache and _take(cache, temp):
                    files.publish(temp, final)
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
                        "simulated": None,  # nothing ran on a device, neither real nor simulated
                        **current._facts,
                        "versions": {
                            "ascendet": __version__,
                            "python": platform.python_version(),
                            "machine": platform.machine(),
                            **_as_dict(current._facts.get("versions")),
                        },
                    },
                )
                files.publish(temp, final)
                if cache:
                    _give(final, cache)
            finally:
                shutil.rmtree(temp, ignore_errors=True)


def _remove_leftovers(home: Path, own_key: str) -> None:
    """Remove temporary folders of ended processes: those whose lock nobody holds, and those of our own key."""
    for temp in home.glob(f"{files.TEMP}*"):
        key = temp.name.removeprefix(files.TEMP).removesuffix(files.OLD).rpartition("-")[0]
        if key == own_key:
            shutil.rmtree(temp, ignore_errors=True)
            continue
        with (home / f".{key}.lock").open("a") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(temp, ignore_errors=True)


def _take(cache: Path, temp: Path) -> bool:
    """Copy a cached folder to `temp` and return True, if it exists and matches its manifest."""
    content = read(cache)
    if content is None:
        return False
    shutil.copytree(cache, temp, symlinks=True)
    if _digests(temp) == content.get("outputs"):
        return True
    print(f"{cache}: does not match its manifest; removed", file=sys.stderr, flush=True)
    files.remove_tree(temp)
    shutil.rmtree(cache, ignore_errors=True)
    return False


def _give(final: Path, cache: Path) -> None:
    """Copy a finished folder into the cache; if that fails, print the reason and continue without it."""
    temp = cache.parent / f"{files.TEMP}{cache.name}-{os.getpid()}"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(final, temp, symlinks=True)
        if not cache.exists():
            files.publish(temp, cache)
    except OSError as error:
        print(f"{cache}: not cached ({error.strerror})", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a stage folder except the manifest, by relative name."""
    return {
        file.relative_to(folder).as_posix(): files.digest(file)
        for file in sorted(files.walk(folder))
        if file != folder / MANIFEST and not file.is_symlink()
    }


def _as_dict(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}
