"""Read pictures of any kind (also grey, CMYK, 16-bit, rotated by EXIF); a damaged one raises an error with its name."""

from __future__ import annotations

import io
import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ascendet_common.errors import RunError

Pixels = npt.NDArray[np.uint8]


class ImageError(RunError):
    """A file is not a complete picture; the message names the file and the reason."""

    default_name = "image-damaged"


def printable(name: str) -> str:
    r"""Return a file name as text that can be printed: bytes that are not UTF-8 become `\xNN`.

    >>> print(printable("\udcd6\udcd0.jpg"))
    \xd6\xd0.jpg
    """
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode(content: bytes, name: str, size: tuple[int, int] | None = None) -> Pixels:
    """Return a picture's pixels, shape (height, width, 3), BGR, turned as its EXIF orientation says.

    Parameters
    ----------
    content
        The file's bytes: JPEG, PNG, or another format that OpenCV reads; grey, CMYK and 16-bit ones become 8-bit BGR,
        an alpha channel is dropped.
    name
        The name that error messages use.
    size
        (height, width) according to the annotations. If the picture has this size only before it is turned, it is not
        turned: its annotations were drawn on the stored pixels.

    Raises
    ------
    ImageError
        The file is empty, truncated, not a picture, or of another size than annotated.
    """
    if not content:
        raise ImageError(f"{name}: the file is empty")
    if content.startswith(b"\xff\xd8"):
        _check_whole_jpeg(content, name)
    data = np.frombuffer(content, np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:  # more pixels than OpenCV accepts
        raise ImageError(f"{name}: {error.err}") from error
    if pixels is None:
        raise ImageError(f"{name}: it cannot be decoded; {_first_bytes(content)}")
    if size is None or pixels.shape[:2] == size:
        return np.asarray(pixels, np.uint8)
    stored = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if stored is None or stored.shape[:2] != size:
        raise ImageError(
            f"{name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, annotated as {size[1]} x {size[0]}"
        )
    return np.asarray(stored, np.uint8)


def read(path: str | Path, size: tuple[int, int] | None = None) -> Pixels:
    """Read a file and return its pixels as `decode` does; raise ImageError if the file cannot be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{printable(str(path))}: {error.strerror}") from error
    return decode(content, printable(str(path)), size)


def _check_whole_jpeg(content: bytes, name: str) -> None:
    """Raise ImageError if a JPEG is truncated: OpenCV would fill the missing part with grey and only warn."""
    if content.rstrip(b"\x00").endswith(b"\xff\xd9"):  # the end-of-image marker
        return
    try:  # other bytes may follow the marker; only a full decoding can tell
        Image.open(io.BytesIO(content)).load()
    except (OSError, SyntaxError) as error:
        raise ImageError(f"{name}: {error}") from error


def _first_bytes(content: bytes) -> str:
    return f"{len(content)} bytes that begin with {content[:8].hex(' ')}"
