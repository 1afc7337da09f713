"""Zip archives, unpacked without trusting them: in parallel, every member's CRC-32 checked, resumable."""

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
# Reading, inflating, checking and writing all leave Python's lock alone; beyond that the disk decides.
_THREADS = min(16, 2 * (os.cpu_count() or 1))

# What a member must be: its size in bytes and its CRC-32.
Content = tuple[int, int]


def unpack(path: Path, folder: Path, *, top: str, limit: int) -> dict[str, Content]:
    """Unpack the members below `top/`, or all where that is empty, into `folder`; return what they are, by name.

    `folder` may hold what an earlier call left: members that are whole are not written again. `limit` is what all
    members together may take, in bytes.

    Raises
    ------
    AscendetError
        `archive-invalid`: not a zip, cut off, a wrong CRC-32, or a member that has no business there (an absolute
        path, `..`, a link, outside `top`, twice, encrypted, or more than `limit` in all).
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
    """The files among an archive's members by name below `top`, after a look at every one of them."""
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
            raise _invalid(path, f"member {info.filename!r} is there twice")
        total += info.file_size
        if total > limit:
            raise _invalid(path, f"unpacks to more than {limit} bytes")
        members[below] = info
    return members


def file_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name as the file system has it: bytes that are no UTF-8 stay as they are.

    Without the flag for UTF-8, zipfile takes a name for code page 437, which hardly anybody writes.
    """
    if info.flag_bits & 0x800:
        return info.filename
    return os.fsdecode(info.filename.encode("cp437"))


def _separates(info: zipfile.ZipInfo) -> bool:
    r"""Return whether a backslash stands in a member's name as a character of its own: some tools' path separator.

    In a name of GBK, Big5 or Shift-JIS the same byte (0x5C) is the second half of many characters.
    """
    if info.flag_bits & 0x800:
        return "\\" in info.filename
    # A byte from 0x81 on begins a character of two bytes in all three, except 0xA1 to 0xDF in Shift-JIS.
    rest = re.sub(rb"[\x81-\xfe][\x40-\xfe]", b"", os.fsencode(file_name(info)))
    return b"\\" in rest


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    if target.is_file() and content(target) == (member.file_size, member.CRC):
        return
    temp = target.with_name(f".tmp-{target.name}")
    with archive.open(member) as source, temp.open("wb") as file:  # it checks size and CRC-32 as it reads
        shutil.copyfileobj(source, file, _CHUNK)
    if temp.stat().st_size != member.file_size:
        raise zipfile.BadZipFile(f"member {member.filename!r} is not {member.file_size} bytes long")
    temp.chmod(0o444)  # several runs share it
    temp.rename(target)


def content(path: Path) -> Content:
    """A file's size and CRC-32."""
    crc = size = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return size, crc


def compare(folder: Path, expected: dict[str, Content]) -> list[str]:
    """What is wrong with the files of `folder`, a sentence each."""

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
        expected="a zip of regular files below one folder, whole",
        found=why,
        hint=f"rm '{paths.shorten(path)}', then run the command again",
    )
