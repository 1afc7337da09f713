"""The 256-byte header of an OM file, as far as it is public: what a tool can say of a file without a CANN toolkit."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ascendet import paths
from ascendet.errors import AscendetError

SIZE = 256
# magic, header size, version, checksum, length, encrypted, checksummed, model type, generation mode, name, operators,
# user info, IR version, models, platform version, platform type, model length
_FORMAT = struct.Struct("<III64sIBBBB32sI32sII20sB3xQ")
_MAGIC = 0x444F4D49  # "IMOD"
_SIMULATED = "simulated by cann_sim"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header says: the model's name, ATC's version, who made the file, and the bytes that follow it."""

    name: str
    version: str
    user: str
    length: int

    @property
    def simulated(self) -> bool:
        """Whether cann_sim made the file."""
        return self.user == _SIMULATED


def read(file: Path) -> Header:
    """Return the header of an OM file.

    Raises
    ------
    AscendetError
        `om-missing`: there is no such file. `om-corrupt`: it is no OM, or its size is not the one in its header.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(SIZE)
        size = file.stat().st_size
    except FileNotFoundError:
        raise AscendetError("om-missing", f"there is no {paths.shorten(file)}", hint="make om") from None
    fields = _FORMAT.unpack_from(content) if len(content) == SIZE else (0,) * 17
    if fields[0] != _MAGIC or fields[1] != SIZE:
        raise AscendetError(
            "om-corrupt",
            f"{paths.shorten(file)} is no OM file",
            expected="a header of 256 bytes that begins with IMOD",
            found=f"{size} bytes that begin with {content[:4]!r}",
            hint="make om",
        )
    length = fields[16] or fields[4]
    if length != size - SIZE:
        raise AscendetError(
            "om-corrupt",
            f"{paths.shorten(file)} is truncated or altered",
            expected=f"{length + SIZE} bytes, as its header says",
            found=f"{size} bytes",
            hint="make om",
        )
    name, user, version = (_text(fields[at]) for at in (9, 11, 14))
    return Header(name=name, version=version, user=user, length=length)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "replace")
