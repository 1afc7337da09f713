"""Unpack source archives without trusting them."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from ascendet.errors import AscendetError

# mmcv and mmdet unpack to 10 MB and 3,000 files; an archive that is far larger is no source distribution.
_MAX_BYTES = 512 * 2**20


_MAX_MEMBERS = 50_000


# -- archives --


def unpack(sdist: Path, folder: Path, *, links: bool = False) -> Path:
    """Unpack an archive into the empty or missing `folder`, and return the one folder that it contains.

    With `links`, symbolic links are left out and their number is printed (git repositories have some, between
    documents); otherwise they are an error.

    Raises
    ------
    AscendetError
        `sdist-corrupt`: the archive is no gzip-compressed tar, is truncated or too large, has no common top folder, or
        has a member that is not allowed (absolute path, `..`, link, device).
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with gzip.open(sdist) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            top = _extract(sdist, archive, folder, links=links)
            while stream.read(2**20):  # to its end, where gzip has its CRC-32
                pass
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise _corrupt(sdist, str(error)) from error
    except OSError as error:
        if error.errno is not None:  # an error of the disk, not of the archive
            raise
        raise _corrupt(sdist, str(error)) from error
    return folder / top


def _extract(sdist: Path, archive: tarfile.TarFile, folder: Path, *, links: bool) -> str:
    tops: set[str] = set()
    left_out = []
    size = count = 0
    for member in archive:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise _corrupt(sdist, f"member {member.name!r} points outside")
        if links and member.issym():
            left_out.append(member.name)
            continue
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
    if left_out:
        print(f"{sdist.name}: {len(left_out)} symbolic links are left out, such as {left_out[0]}", flush=True)
    if len(tops) != 1:
        raise _corrupt(sdist, f"expected one folder at the top, found {len(tops)}")
    return tops.pop()


def _corrupt(sdist: Path, why: str) -> AscendetError:
    return AscendetError(
        "sdist-corrupt",
        f"{sdist.name} cannot be unpacked",
        expected="a gzip-compressed tar of files below one folder",
        found=why,
        hint=f"rm '{sdist}', then run the command again",
    )
