"""Unpack zip archives without trusting them: in parallel, resumable, checking each member's CRC-32."""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ascendet import paths
from ascendet.errors import AscendetError

_CHUNK = 2**20
# Reading, inflating, checking and writing release Python's global lock, so threads help until the disk is the limit.
_THREADS = min(16, 2 * (os.cpu_count() or 1))

# A member's size in bytes and its CRC-32.
Content = tuple[int, int]


def unpack(path: Path, folder: Path, *, top: str, limit: int) -> dict[str, Content]:
    """Unpack the members below `top/` (all if that is empty) into `folder`; return their size and CRC-32 by name.

    `folder` may hold members from an earlier call, and complete ones are not written again. `limit` is the largest
    total size of the members, in bytes.

    Raises
    ------
    AscendetError
        `archive-invalid`: the file is no zip or is truncated, a CRC-32 is wrong, the members are larger than `limit`,
        or a member is not allowed (an absolute path, `..`, a link, outside `top`, encrypted, a name that occurs twice).
    """
    try:
        with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(_THREADS) as threads:
            members = check_members(archive.infolist(), path, top=top, limit=limit)
            for parent in {(folder / name).parent for name in members}:
                parent.mkdir(parents=True, exist_ok=True)
            jobs = [
                threads.submit(_extract, archive, member, folder / name) for name, member in members.items()
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise _invalid(path, str(error) or type(error).__name__) from error
    return {name: (member.file_size, member.CRC) for name, member in members.items()}


def check_members(
    infos: Iterable[zipfile.ZipInfo], path: Path, *, top: str, limit: int
) -> dict[str, zipfile.ZipInfo]:
    """Check all members of an archive, and return those that are files by their name below `top`."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in infos:
        name = PurePosixPath(info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name.is_absolute() or ".." in name.parts or _separates(info) or "\0" in info.orig_filename:
            raise _invalid(path, f"member {info.filename!r} points outside")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _invalid(path, f"member {info.filename!r} is neither a file nor a folder")
        if top and name.parts[:1] != (top,):
            raise _invalid(path, f"member {info.filename!r} is not below {top}/")
        if info.flag_bits & 1:
            raise _invalid(path, f"member {info.filename!r} is encrypted")
        if info.is_dir():
            continue
        below = str(name.relative_to(top)) if top else str(PurePosixPath(file_name(info)))
        if below in members or below == ".":
            raise _invalid(path, f"member {info.filename!r} occurs twice")
        total += info.file_size
        if total > limit:
            raise _invalid(path, f"unpacks to more than {limit} bytes")
        members[below] = info
    return members


def file_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name for the file system; bytes that are not UTF-8 are kept.

    Without the flag for UTF-8, zipfile decodes a name as code page 437, which is rarely right.
    """
    if info.flag_bits & 0x800:
        return info.filename
    return os.fsdecode(info.filename.encode("cp437"))


def _separates(info: zipfile.ZipInfo) -> bool:
    r"""Return whether a member's name contains a backslash, which some tools use to separate folders.

    In GBK, Big5 and Shift-JIS the same byte (0x5C) is also the second byte of many characters.
    """
    if info.flag_bits & 0x800:
        return "\\" in info.filename
    # In all three, a byte of 0x81 or more begins a character of two bytes, except 0xA1 to 0xDF in Shift-JIS.
    rest = re.sub(rb"[\x81-\xfe][\x40-\xfe]", b"", os.fsencode(file_name(info)))
    return b"\\" in rest


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    if target.is_file() and content(target) == (member.file_size, member.CRC):
        return
    temp = target.with_name(f".tmp-{target.name}")
    with (
        archive.open(member) as source,
        temp.open("wb") as file,
    ):  # zipfile checks size and CRC-32 while it reads
        shutil.copyfileobj(source, file, _CHUNK)
    if temp.stat().st_size != member.file_size:
        raise zipfile.BadZipFile(f"member {member.filename!r} is not {member.file_size} bytes long")
    temp.chmod(0o444)  # several runs share the file
    temp.rename(target)


def content(path: Path) -> Content:
    """Return a file's size and CRC-32."""
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return size, crc


def compare(folder: Path, expected: dict[str, Content]) -> list[str]:
    """Return a sentence for each file of `folder` that is missing or has another content than expected."""

    def look(item: tuple[str, Content]) -> str | None:
        name, wanted = item
        if not (folder / name).is_file():
            return f"{name} is missing"
        found = content(folder / name)
        return (
            None
            if found == wanted
            else f"{name}: {found[0]} bytes, CRC-32 {found[1]:08x}, not {wanted[1]:08x}"
        )

    with ThreadPoolExecutor(_THREADS) as threads:
        return [problem for problem in threads.map(look, expected.items()) if problem]


def _invalid(path: Path, why: str) -> AscendetError:
    return AscendetError(
        "archive-invalid",
        f"{paths.shorten(path)} cannot be unpacked",
        expected="a complete zip of regular files below one folder",
        found=why,
        hint=f"rm '{paths.shorten(path)}', then run the command again",
    )
