"""`make bundle`, `make unbundle`: pack and unpack everything that a site without a network needs, in one tar file.

The file begins with `bundle.json`, a list of the following files: path, size, SHA-256. Unpacking accepts only these. It
puts the files into the cache and the data folder, where every stage looks first. A clone of the repository must be
copied separately.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ascendet import __version__, paths
from ascendet.core import files, options
from ascendet.core.stack import Stack
from ascendet.data import datasets
from ascendet.envs import venv
from ascendet.errors import AscendetError
from ascendet.machine import engine
from ascendet.supply import assets, lockfiles

INDEX = "bundle.json"
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file of the bundle; `name` begins with cache/, store/ or image/, `bytes` is its size."""

    name: str
    bytes: int
    sha256: str


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument("--dataset", default="shapes", help="the data set to pack")
    parser.add_argument("--image", default="", help="a container image to pack")
    parser.add_argument("--unpack", metavar="FILE", help="unpack a bundle instead of making one")


def execute(args: argparse.Namespace) -> None:
    """Make or unpack a bundle, and print what it holds."""
    if args.unpack is not None:
        if not args.unpack:
            raise AscendetError(
                "usage",
                "FILE must be a bundle",
                expected="a file that make bundle wrote",
                found="FILE=",
                hint="make unbundle FILE=ascendet-….tar",
            )
        print(unpack(Path(args.unpack)))
        return
    final = make(Stack.load(args.stack), args.dataset, args.image)
    print(f"{paths.shorten(final)}: {final.stat().st_size / 1e9:.2f} GB")


# -- making --


def make(stack: Stack, dataset: str, image: str) -> Path:
    """Pack what the stack needs and return the bundle's path.

    Raises
    ------
    AscendetError
        `data-missing`: a file has not been fetched yet. `command-failed`: pip or docker failed. `disk-full`.
    """
    home = paths.BUILD / "bundle"
    with files.disk_errors(home), contextlib.ExitStack() as end:
        home.mkdir(parents=True, exist_ok=True)
        end.enter_context(files.holding_lock(home / ".lock", "bundle"))
        folder = Path(end.enter_context(tempfile.TemporaryDirectory(dir=home, prefix=".tmp-")))
        packed = dict(_sources()) | dict(_wheels(stack)) | dict(_data(stack, dataset))
        if image:
            saved = _save_image(image, folder)
            packed[f"image/{saved.name}"] = saved
        print(f"bundle: reading {len(packed)} files", flush=True)
        entries = [
            Entry(name=name, bytes=path.stat().st_size, sha256=files.digest(path))
            for name, path in sorted(packed.items())
        ]
        index = {
            "ascendet": __version__,
            "stack": stack.name,
            "machine": platform.machine(),
            "locks": _locks(stack),
            "files": [asdict(entry) for entry in entries],
        }
        text = json.dumps(index, indent=1).encode()
        temp = folder / "bundle.tar"
        with temp.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(_header(INDEX, len(text)), io.BytesIO(text))
            for entry in entries:
                with packed[entry.name].open("rb") as source:
                    tar.addfile(_header(entry.name, entry.bytes), source)
        files.fsync(temp)
        final = home / f"ascendet-{stack.name}-{hashlib.sha256(text).hexdigest()[:12]}.tar"
        temp.rename(final)
    return final


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Return the header of a file without facts about this machine: no owner, no date."""
    header = tarfile.TarInfo(name)
    header.size = size
    header.mode = 0o644
    return header


def _locks(stack: Stack) -> dict[str, str]:
    return {path.name: files.digest(path) for path in _lock_files(stack)}


def _lock_files(stack: Stack) -> list[Path]:
    return [
        paths.LOCK / "tools.txt",
        lockfiles.packages_lock(stack.packages),
        lockfiles.torch_lock(stack, platform.machine()),
    ]


def _sources() -> Iterator[tuple[str, Path]]:
    """Yield the cached source distributions, and the wheels that were built from them and from our sources."""
    yield from _tree(paths.CACHE / "sdist", "cache/sdist")
    for manifest_file in (paths.BUILD / "wheelhouse").glob("*/*/manifest.json"):
        below = manifest_file.parent.relative_to(paths.BUILD)
        yield from _tree(paths.CACHE / below, f"cache/{below.as_posix()}")


def _wheels(stack: Stack) -> Iterator[tuple[str, Path]]:
    """Yield the packages of the stack's locks, which pip downloads: a folder per lock, which env uses as an index."""
    for path in _lock_files(stack):
        folder = venv.local_wheels(path)
        if not venv.has_wheels(path):
            shutil.rmtree(folder, ignore_errors=True)
            temp = folder.with_name(f".tmp-{folder.name}")
            shutil.rmtree(temp, ignore_errors=True)
            temp.mkdir(parents=True)
            print(f"bundle: downloading the packages of {path.name}", flush=True)
            command = [
                *venv.tools_pip(),
                "download",
                "--quiet",
                "--no-deps",
                "--no-cache-dir",
                "--require-hashes",
            ]
            # pip asks a source distribution for its name, which runs its build: with packages of the lock only.
            command.append(f"--build-constraint={path}")
            _run([*command, "--requirement", str(path), "--dest", str(temp)])
            temp.rename(folder)
        yield from _tree(folder, f"cache/{folder.relative_to(paths.CACHE).as_posix()}")


def _data(stack: Stack, dataset: str) -> Iterator[tuple[str, Path]]:
    one, known = datasets.find(dataset), assets.load()
    whole = datasets.load().get(one.part_of, one)
    archives = [whole.archives[part] for part in _parts(one) if part in whole.archives]
    for name in () if one.generator else (*archives, *stack.weights):
        if not assets.find(known[name]):
            fetching = f"make weights STACK={stack.name}"
            if name in archives:
                fetching = f"make data DATASET={dataset} KEEP=1"
            raise AscendetError(
                "data-missing",
                f"{name} has not been fetched",
                expected=str(known[name].path),
                hint=f"{fetching} && make bundle DATASET={dataset}",
            )
        yield f"store/{known[name].folder}/{name}", known[name].path
    if not one.generator and one.home == one.name and not one.archives:  # pictures that are in no archive
        yield from _tree(datasets.require(dataset), f"store/{dataset}")


def _parts(one: datasets.Dataset) -> list[str]:
    """Return the archives that a data set needs: not those of pictures that it has in its own folder."""
    return [datasets.ANNOTATIONS, *(() if one.pictures else one.splits)]


def _tree(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        temporary = any(
            part.startswith((".tmp-", ".lock")) or part.endswith((".lock", ".part")) for part in below.parts
        )
        if path.is_file() and not temporary:
            yield f"{name}/{below.as_posix()}", path


def _save_image(image: str, folder: Path) -> Path:
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', image)}.tar"
    print(f"bundle: saving the image {image}", flush=True)
    _run([engine.command_name(), "save", "--output", str(path), image])
    return path


def _run(command: list[str]) -> None:
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        code = 127
    if code:
        raise AscendetError(
            "command-failed",
            f"{' '.join(command[:5])} … failed",
            found=f"exit code {code} (its message is above)"
            if code != 127
            else f"{command[0]} is not installed",
            hint="read its message, then: make bundle",
        )


# -- unpacking --


def unpack(path: Path) -> str:
    """Put a bundle's files where the stages look for them, and return a sentence about them.

    A file that already exists is not written again, so an interrupted call can be repeated.

    Raises
    ------
    AscendetError
        `bundle-invalid`: the file is no bundle, is truncated or changed, or was made for another architecture or other
        locks. `disk-full`.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            index, entries = _read_index(path, tar)
            with files.disk_errors(paths.CACHE):
                images = [
                    target
                    for entry, target in _unpack_files(path, tar, entries)
                    if entry.name.startswith("image/")
                ]
    except (OSError, tarfile.TarError, EOFError) as error:
        if isinstance(error, OSError) and error.filename not in (None, str(path), path):
            raise
        raise _invalid(path, str(error)) from error
    for image in images:
        _run([engine.command_name(), "load", "--input", str(image)])
        image.unlink()
    return f"{path.name}: {len(entries)} files for the {index['stack']} stack; every stage now works without a network"


def _read_index(path: Path, tar: tarfile.TarFile) -> tuple[dict[str, object], list[Entry]]:
    first = tar.next()
    content = tar.extractfile(first) if first and first.name == INDEX and first.isfile() else None
    if content is None:
        raise _invalid(path, f"it does not begin with {INDEX}")
    try:
        index = json.loads(content.read())
        entries = [Entry(**entry) for entry in index["files"]]
        stack = Stack.load(index["stack"])
        machine, locks = index["machine"], index["locks"]
    except (ValueError, TypeError, KeyError) as error:
        raise _invalid(path, f"{INDEX} cannot be read: {error}") from error
    if (machine, locks) != (platform.machine(), _locks(stack)):
        raise AscendetError(
            "bundle-invalid",
            f"{path.name} was made for another architecture, or by a clone with other locks",
            expected=f"{platform.machine()}, {_short(_locks(stack))}",
            found=f"{machine}, {_short(locks)}",
            hint="git checkout the commit that made the bundle, or make bundle again there",
        )
    needed = sum(entry.bytes for entry in entries if not _target(path, entry).exists())
    folder = paths.CACHE
    folder.mkdir(parents=True, exist_ok=True)
    files.check_space(folder, needed, "ASCENDET_CACHE")
    return index, entries


def _short(locks: dict[str, str]) -> str:
    return ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(locks.items()))


def _unpack_files(path: Path, tar: tarfile.TarFile, entries: list[Entry]) -> Iterator[tuple[Entry, Path]]:
    for entry in entries:
        member = tar.next()
        if member is None or (member.name, member.size) != (entry.name, entry.bytes) or not member.isfile():
            found = "its end" if member is None else f"{member.name}, {member.size} bytes"
            raise _invalid(path, f"{found} instead of {entry.name}, {entry.bytes} bytes")
        target = _target(path, entry)
        if not (target.is_file() and files.digest(target) == entry.sha256):
            content = tar.extractfile(member)
            assert content is not None, "isfile() said so"
            _write(path, content, entry, target)
        yield entry, target


def _target(path: Path, entry: Entry) -> Path:
    """Return the path to unpack an entry to; raise `bundle-invalid` if it is in none of the three folders."""
    name = PurePosixPath(entry.name)
    bases = {"cache": paths.CACHE, "store": assets.store(), "image": paths.BUILD / "bundle"}
    if name.is_absolute() or ".." in name.parts or len(name.parts) < 2 or name.parts[0] not in bases:
        raise _invalid(path, f"{entry.name!r} is not below cache/, store/ or image/")
    return bases[name.parts[0]].joinpath(*name.parts[1:])


def _write(path: Path, content: IO[bytes], entry: Entry, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temp = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    hasher = hashlib.sha256()
    try:
        with temp.open("wb") as file:
            while chunk := content.read(_CHUNK):
                hasher.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if hasher.hexdigest() != entry.sha256:
            raise _invalid(path, f"{entry.name} is sha256:{hasher.hexdigest()}, not {entry.sha256}")
        temp.rename(target)
    finally:
        temp.unlink(missing_ok=True)


def _invalid(path: Path, why: str) -> AscendetError:
    return AscendetError(
        "bundle-invalid",
        f"{path.name} cannot be unpacked",
        expected=f"a complete file of make bundle, as its list {INDEX} describes it",
        found=why,
        hint="copy it again and compare sha256sum on both sides, then: make unbundle FILE=…",
    )
