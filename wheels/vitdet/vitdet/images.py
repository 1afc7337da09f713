"""Reading images as they come: what is damaged is named, what is merely odd (grey, CMYK, rotated by EXIF) is read."""

from __future__ import annotations

import io
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


class ImageError(ValueError):
    """A file that is no whole image; the message names it and says why."""


def printable(name: str) -> str:
    r"""Return a file name as text that can be printed: bytes that are not UTF-8 become `\xNN`.

    >>> print(printable("\udcd6\udcd0.jpg"))
    \xd6\xd0.jpg
    """
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode(content: bytes, name: str, size: tuple[int, int] | None = None) -> Pixels:
    """An image's pixels, shape (height, width, 3), BGR, turned as its EXIF orientation says.

    Parameters
    ----------
    content
        The file's bytes: JPEG, PNG, or another format that OpenCV reads; grey, CMYK and 16-bit ones become 8-bit BGR,
        an alpha channel is dropped.
    name
        What errors call it.
    size
        (height, width) of the annotations. An image that has it only as it is stored is not turned: its annotations
        were drawn before turning.

    Raises
    ------
    ImageError
        Empty, truncated, not an image, or of another size than annotated.
    """
    if not content:
        raise ImageError(f"{name}: the file is empty")
    if content.startswith(b"\xff\xd8"):
        _check_whole_jpeg(content, name)
    data = np.frombuffer(content, np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # more pixels than OpenCV takes for honest
        raise ImageError(f"{name}: {error.err}") from error
    if pixels is None:
        raise ImageError(f"{name}: it cannot be decoded; {_first_bytes(content)}")
    if size is None or pixels.shape[:2] == size:
        return pixels.astype(np.uint8, copy=False)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is None or stored.shape[:2] != size:
        raise ImageError(
            f"{name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, annotated as {size[1]} x {size[0]}"
        )
    return stored.astype(np.uint8, copy=False)


def read(path: str | Path, size: tuple[int, int] | None = None) -> Pixels:
    """`decode` a file, which errors name `printable`; also ImageError where it cannot be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{printable(str(path))}: {error.strerror}") from error
    return decode(content, printable(str(path)), size)


def _check_whole_jpeg(content: bytes, name: str) -> None:
    """OpenCV fills what is missing of a JPEG with grey and only warns. Most files end in the end-of-image marker."""
    if content.rstrip(b"\x00").endswith(b"\xff\xd9"):
        return
    try:  # with something behind the marker, only a full decoding can tell
        Image.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{name}: {error}") from error


def _first_bytes(content: bytes) -> str:
    return f"{len(content)} bytes that begin with {content[:8].hex(' ')}"
