"""Pinned source distributions: fetched by hash, unpacked without trusting their paths.

What is not named in `requirements/lock/sources.toml` with a SHA-256 is not fetched at all. A file in the
cache is hashed again at every use: a damaged one is noticed, removed and fetched anew, never built from.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ascendet import files, paths
from ascendet.errors import AscendetError

# mmcv and mmdet unpack to 10 MB and 3,000 files; what is far beyond that is no source distribution.
_MAX_BYTES = 512 * 2**20
_MAX_MEMBERS = 50_000


def locked_hash(sdist: str) -> str:
    """The SHA-256 that the lock states for a source distribution.

    Raises
    ------
    AscendetError
        `sdist-unlocked`: no hash is an error, not a pass.
    """
    lock = paths.LOCK / "sources.toml"
    table = tomllib.loads(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    entry = table.get(sdist)
    if not isinstance(entry, dict) or "sha256" not in entry:
        raise AscendetError(
            "sdist-unlocked",
            f"there is no hash for {sdist}",
            expected=f'["{sdist}"] in {paths.shorten(lock)}',
            hint="make relock",
        )
    return str(entry["sha256"])


def cached(sdist: str) -> Path | None:
    """The source distribution in the cache, or None. One that is not what the lock says is removed."""
    expected = locked_hash(sdist)
    path = _cache_path(sdist, expected)
    if not path.is_file():
        return None
    found = files.digest(path)
    if found == expected:
        return path
    print(f"{path}: is sha256 {found[:16]}…, not {expected[:16]}… as locked; removed", flush=True)
    path.unlink()
    return None


def fetch(sdist: str, pip: Sequence[str]) -> Path:
    """The source distribution `sdist`, from the cache or else downloaded by pip.

    Parameters
    ----------
    sdist
        File name, for example "mmcv-2.1.0.tar.gz".
    pip
        Command of a pip whose interpreter can import what the distribution's setup.py imports (torch): pip
        insists on running it, which it does only after the hash was checked.

    Raises
    ------
    AscendetError
        `sdist-unlocked`, `sdist-download-failed`, `sdist-hash-mismatch`.
    """
    path = cached(sdist)
    if path is not None:
        return path
    expected = locked_hash(sdist)
    final = _cache_path(sdist, expected)
    with files.disk_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=".tmp-") as folder:
            downloaded = _download(sdist, expected, pip, Path(folder))
            _check_hash(downloaded, expected)
            files.publish(downloaded, final)
    return final


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution into the empty or missing `folder`; the one folder that it contains.

    Raises
    ------
    AscendetError
        `sdist-corrupt`: not a gzip-compressed tar, cut off, or with a member that has no business in a source
        distribution (absolute path, `..`, link, device, no common top folder, too large).
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(sdist) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            top = _extract(sdist, archive, folder)
            while stream.read(2**20):  # to its end, where the checksum is
                pass
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise _corrupt(sdist, str(error)) from error
    except OSError as error:
        if error.errno is not None:  # the disk's trouble, not the archive's
            raise
        raise _corrupt(sdist, str(error)) from error
    return folder / top


def _extract(sdist: Path, archive: tarfile.TarFile, folder: Path) -> str:
    tops: set[str] = set()
    size = count = 0
    for member in archive:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise _corrupt(sdist, f"member {member.name!r} points outside")
        if not (member.isfile() or member.isdir()):
            raise _corrupt(sdist, f"member {member.name!r} is neither a file nor a folder")
        count += 1
        size += member.size
        if size > _MAX_BYTES or count > _MAX_MEMBERS:
            raise _corrupt(sdist, f"more than {_MAX_BYTES} bytes or {_MAX_MEMBERS} members")
        tops.add(name.parts[0])
        target = folder.joinpath(*name.parts)
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None, "isfile() said so"
        with content, target.open("xb") as file:
            shutil.copyfileobj(content, file)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    if len(tops) != 1:
        raise _corrupt(sdist, f"expected one folder at the top, found {len(tops)}")
    return tops.pop()


def _cache_path(sdist: str, sha256: str) -> Path:
    return paths.CACHE / "sdist" / sha256 / sdist


def _download(sdist: str, sha256: str, pip: Sequence[str], folder: Path) -> Path:
    project, _, version = sdist.removesuffix(".tar.gz").rpartition("-")
    wish = folder / "requirements.txt"
    wish.write_text(f"{project}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [*pip, "download", "--no-deps", "--no-build-isolation", "--no-binary", project]
    command += ["--require-hashes", "--requirement", str(wish), "--dest", str(folder), "--quiet"]
    # setup.py is run for its metadata: torch must not load NPU libraries, which may not be there yet.
    environ = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    downloaded = folder / sdist
    if done.returncode or not downloaded.is_file():
        got = re.search(r"DO NOT MATCH THE HASHES.*?\bGot\s+([0-9a-f]{64})", done.stderr, re.DOTALL)
        if got:
            raise _mismatch(sdist, sha256, got[1])
        errors = [line[:200] for line in done.stderr.splitlines() if "error" in line.lower()]
        raise AscendetError(
            "sdist-download-failed",
            f"pip could not download {sdist}",
            found="\n".join(errors[-3:]) or f"exit code {done.returncode}",
            hint="check the network and pip's index (pip config list), then run the command again",
        )
    return downloaded


def _check_hash(path: Path, expected: str) -> None:
    found = files.digest(path)
    if found != expected:
        raise _mismatch(path.name, expected, found)


def _mismatch(sdist: str, expected: str, found: str) -> AscendetError:
    return AscendetError(
        "sdist-hash-mismatch",
        f"{sdist} is not the file that the lock names; nothing was kept",
        expected=f"sha256:{expected}",
        found=f"sha256:{found}",
        hint="check pip's index (a mirror?); if upstream republished the file, look at it, then: make relock",
    )


def _corrupt(sdist: Path, why: str) -> AscendetError:
    return AscendetError(
        "sdist-corrupt",
        f"{sdist.name} cannot be unpacked",
        expected="a gzip-compressed tar of files below one folder",
        found=why,
        hint=f"rm '{sdist}', then run the command again",
    )
