"""Read and write wheels: reading does not trust the file, writing gives the same bytes every time."""

from __future__ import annotations

import base64
import csv
import email.parser
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ascendet.errors import AscendetError

# The earliest date that a zip archive can hold. The manifest beside a wheel has the date of the build.
_DATE = (1980, 1, 1, 0, 0, 0)
_MAX_BYTES = 4 * 2**30
# PEP 427, with the local version's "+" and a build tag.
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(-\d[^-]*)?"
    r"-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A verified wheel: `files` has all members except RECORD, `tags` the (python, abi, platform) of its file name."""

    path: Path
    name: str
    version: str
    tags: tuple[str, str, str]
    dist_info: str
    files: Mapping[str, bytes]


def write(folder: Path, name: str, version: str, tag: str, files: Mapping[str, bytes]) -> Path:
    """Write a wheel with its RECORD into `folder`, with sorted members and a constant date, and return its path.

    `tag` is for example "cp311-cp311-linux_x86_64". `files` holds the members' contents by name, with the dist-info's
    METADATA and WHEEL, but without RECORD.
    """
    name = name.replace("-", "_")
    path = folder / f"{name}-{version}-{tag}.whl"
    record = f"{name}-{version}.dist-info/RECORD"
    rows = [
        f"{_quote(member)},sha256={_base64(content)},{len(content)}"
        for member, content in sorted(files.items())
    ]
    whole = {**dict(sorted(files.items())), record: "\n".join([*rows, f"{_quote(record)},,", ""]).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in whole.items():
            info = zipfile.ZipInfo(member, _DATE)
            info.create_system = 3  # Unix, on any system
            info.external_attr = (0o100755 if member.endswith(".so") else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content, compresslevel=9)
    return path


def read(path: Path) -> Wheel:
    """Read a wheel, verify it by its RECORD, and return it.

    Raises
    ------
    AscendetError
        `wheel-corrupt`: the file is truncated or its name is no wheel's; a CRC-32 or digest differs; RECORD lists a
        missing file, or does not list a member; a member's path is not allowed; or there is not exactly one dist-info
        folder.
    """
    named = _NAME.fullmatch(path.name)
    if named is None:
        raise _corrupt(path, f"{path.name} is not a wheel's name")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > _MAX_BYTES:
                raise _corrupt(path, f"unpacks to more than {_MAX_BYTES} bytes")
            names = [info.filename for info in infos if not info.is_dir()]
            files = {name: archive.read(name) for name in names}
    except FileNotFoundError:
        raise _corrupt(path, "the file does not exist") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise _corrupt(path, str(error)) from error
    if len(names) != len(files):
        raise _corrupt(path, "a member occurs twice")
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise _corrupt(path, f"member {name!r} points outside")
    folders = {name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info")}
    if len(folders) != 1:
        raise _corrupt(path, f"{len(folders)} dist-info folders, expected one")
    dist_info = folders.pop()
    for needed in ("METADATA", "WHEEL", "RECORD"):
        if f"{dist_info}/{needed}" not in files:
            raise _corrupt(path, f"{needed} is missing")
    _check_record(path, files, f"{dist_info}/RECORD")
    del files[f"{dist_info}/RECORD"]
    stated = email.parser.BytesHeaderParser().parsebytes(files[f"{dist_info}/METADATA"])
    if stated["Version"] != named["version"]:
        raise _corrupt(
            path, f"METADATA has version {stated['Version']}, the file name has {named['version']}"
        )
    return Wheel(
        path=path,
        name=str(stated["Name"]),
        version=str(stated["Version"]),
        tags=(named["python"], named["abi"], named["platform"]),
        dist_info=dist_info,
        files=files,
    )


def metadata(arguments: Mapping[str, object], version: str, *, requires: Iterable[str] = ()) -> bytes:
    """Return the text of METADATA for the arguments that a setup.py passes to `setup()`, and further requirements.

    >>> print(metadata({"name": "x", "install_requires": ["regex;sys_platform=='win32'"]}, "1").decode(), end="")
    Metadata-Version: 2.1
    Name: x
    Version: 1
    Requires-Dist: regex;sys_platform=='win32'
    """
    fields: list[tuple[str, object]] = [
        ("Metadata-Version", "2.1"),
        ("Name", arguments["name"]),
        ("Version", version),
        ("Summary", arguments.get("description")),
        ("Home-page", arguments.get("url")),
        ("Author", arguments.get("author")),
        ("Author-email", arguments.get("author_email")),
        ("License", arguments.get("license")),
        ("Keywords", arguments.get("keywords")),
        *(("Classifier", item) for item in _strings(arguments.get("classifiers"))),
        ("Requires-Python", arguments.get("python_requires")),
        *(("Requires-Dist", item) for item in [*_strings(arguments.get("install_requires")), *requires]),
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields if value).encode()


def wheel_metadata(tag: str, *, pure: bool) -> bytes:
    """Return the text of the dist-info's WHEEL."""
    lines = [
        "Wheel-Version: 1.0",
        "Generator: ascendet",
        f"Root-Is-Purelib: {str(pure).lower()}",
        f"Tag: {tag}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def with_version(wheel: Wheel, version: str) -> dict[str, bytes]:
    """Return the wheel's files with another version, in METADATA and in the dist-info's name."""
    renamed = f"{wheel.dist_info.partition('-')[0]}-{version}.dist-info"
    files = {}
    for member, content in wheel.files.items():
        if member == f"{wheel.dist_info}/METADATA":
            content = re.sub(rb"(?m)^Version: .*$", b"Version: " + version.encode(), content, count=1)
        if member.startswith(f"{wheel.dist_info}/"):
            member = renamed + member.removeprefix(wheel.dist_info)
        files[member] = content
    return files


def _check_record(path: Path, files: Mapping[str, bytes], record: str) -> None:
    rows = list(csv.reader(io.StringIO(files[record].decode("utf-8", errors="replace"))))
    stated = {row[0]: row[1] for row in rows if len(row) == 3}
    for member, content in files.items():
        if member == record or member.startswith(record + "."):  # signatures are not listed
            continue
        if member not in stated:
            raise _corrupt(path, f"RECORD does not list {member}")
        if stated[member] != f"sha256={_base64(content)}":
            raise _corrupt(path, f"{member} has another digest than in RECORD")
    missing = sorted(stated.keys() - files.keys())
    if missing:
        raise _corrupt(path, f"RECORD lists {missing[0]}, which is missing")


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _quote(member: str) -> str:
    return f'"{member}"' if "," in member else member


def _strings(value: object) -> Iterable[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _corrupt(path: Path, why: str) -> AscendetError:
    return AscendetError(
        "wheel-corrupt",
        f"{path.name} is damaged, or not a wheel",
        expected="a zip archive whose files are those of its RECORD",
        found=why,
        hint="download or build it again",
    )
