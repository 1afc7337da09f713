"""Write and read OM files: the container of the real ATC around the programs of cann_sim.

The file begins with CANN's 256-byte header (magic `IMOD`, little-endian), so that tools recognise an OM. Then come a
partition table and two partitions whose types are ours: a real runtime finds no model definition and refuses the file.

    header | count, {type u32, offset u64, size u64} per partition | programs | padding | constants

Offsets count from the end of the header. Each constant begins at a multiple of 64 bytes of the file, so that
`src/executor` maps it and copies nothing. `src/executor/reader.cpp` reads the same format: change both.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cann_sim.atc.footprint import aligned
from cann_sim.atc.om_programs import FORMAT, decode, encode
from cann_sim.atc.program import Model

# magic, header size, version, checksum, length, encrypted, checksummed, model type, generation mode, name, operators,
# user info, IR version, models, platform version, platform type, model length, needs the host's OS and CPU, unknown
# shapes, and in the reserved rest the SoC
HEADER = struct.Struct("<III64sIBBBB32sI32sII20sB3xQBB32s30x")
PARTITION = struct.Struct("<IQQ")
MAGIC = 0x444F4D49
VERSION = 0x20000000
USER_INFO = b"simulated by cann_sim"
PLATFORM_VERSION = b"8.5.0"
CHECKSUM = slice(12, 76)
# CANN's own types end at 26.
PROGRAMS, CONSTANTS = 0x5343_0001, 0x5343_0002


class OmError(ValueError):
    """A file is no OM of cann_sim, or it is truncated or altered; the message says which."""


def write(model: Model, path: Path) -> None:
    """Write `model` to `path`; the file gets its name when it is complete.

    Raises
    ------
    ValueError
        A data type or an attribute that the format does not have, or an operation that uses a name nobody defines.
    OSError
        The file cannot be written.
    """
    _check_names(model)
    places: dict[str, int] = {}
    end = 0
    for name, constant in model.constants.items():
        places[name] = end
        end += aligned(constant.nbytes)
    programs = encode(model, places)
    table_size = 4 + 2 * PARTITION.size
    first = aligned(table_size + len(programs))
    table = struct.pack("<I", 2) + PARTITION.pack(PROGRAMS, table_size, len(programs))
    table += PARTITION.pack(CONSTANTS, first, end)
    length = first + end
    operations = max((len(program.operations) for program in model.programs.values()), default=0)

    def header(checksum: bytes) -> bytes:
        return HEADER.pack(
            MAGIC, HEADER.size, VERSION, checksum, length if length < 2**32 else 0, 0, 1, 0, 0,
            model.name.encode()[:31], operations, USER_INFO, 0, 1, PLATFORM_VERSION, 0, length, 0, 0,
            model.soc.encode()[:31],
        )  # fmt: skip

    parts = [table + programs + bytes(first - table_size - len(programs))]
    digest = zlib.crc32(parts[0], zlib.crc32(header(b"")))
    for part in _constant_bytes(model.constants.values()):
        digest = zlib.crc32(part, digest)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(header(f"crc32:{digest:08x}".encode()))
            file.write(parts[0])
            for part in _constant_bytes(model.constants.values()):
                file.write(part)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path) -> Model:
    """Return the model in `path`; its constants are read-only views of the mapped file.

    Raises
    ------
    OmError
        The file is no OM of cann_sim, is truncated, or was altered.
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < HEADER.size:
            raise OmError(f"{path} is no OM file: it is shorter than the header of {HEADER.size} bytes")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    fields = HEADER.unpack_from(data)
    if fields[0] != MAGIC or fields[1] != HEADER.size:
        raise OmError(f"{path} is no OM file: it does not begin with the header IMOD")
    if fields[11].rstrip(b"\0") != USER_INFO:
        raise OmError(f"{path} was made by another ATC than cann_sim's: it can run on a card only")
    length = fields[16]
    if length != len(data) - HEADER.size:
        raise OmError(
            f"{path} is truncated: its header says {length} bytes, and {len(data) - HEADER.size} follow"
        )
    cleared = bytearray(data[: HEADER.size])
    cleared[CHECKSUM] = bytes(64)
    digest = zlib.crc32(data[HEADER.size :], zlib.crc32(cleared))
    if fields[3].rstrip(b"\0") != f"crc32:{digest:08x}".encode():
        raise OmError(f"{path} was altered or damaged: its checksum is not the one in its header")
    body = data[HEADER.size :]
    try:
        partitions = _partitions(body)
        return decode(partitions[PROGRAMS], partitions[CONSTANTS])
    except (KeyError, IndexError, ValueError, TypeError, struct.error) as error:
        raise OmError(f"{path} holds no programs of format {FORMAT}: {error}") from error


def _partitions(body: memoryview) -> dict[int, memoryview]:
    """Return the content of each partition by its type."""
    partitions = {}
    for index in range(struct.unpack_from("<I", body)[0]):
        kind, offset, size = PARTITION.unpack_from(body, 4 + index * PARTITION.size)
        if offset + size > len(body):
            raise ValueError("a partition lies outside the file")
        partitions[kind] = body[offset : offset + size]
    return partitions


def _check_names(model: Model) -> None:
    """Refuse a program in which an operation uses a value before it exists."""
    for program in model.programs.values():
        known = {value.name for value in program.inputs} | set(model.constants) | {""}
        for operation in program.operations:
            missing = [name for name in operation.inputs if name not in known]
            if missing:
                raise ValueError(
                    f"operation {operation.name} uses {missing[0]}, which nothing computes before it"
                )
            known |= set(operation.outputs)
        for value in program.outputs:
            if value.name not in known:
                raise ValueError(f"nothing computes the output {value.name}")


def _constant_bytes(constants: Iterable[np.ndarray]) -> Iterable[memoryview | bytes]:
    """Yield the bytes of the constants in order, each padded to the alignment."""
    for constant in constants:
        yield np.ascontiguousarray(constant).reshape(-1).view(np.uint8).data
        yield bytes(aligned(constant.nbytes) - constant.nbytes)
