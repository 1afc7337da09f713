"""Folders that all modules use. Read them as attributes (`paths.BUILD`), so that a test can replace them."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ASCENDET_BUILD") or ROOT / "build").absolute()
_XDG_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
# Shared by all clones and kept by `make clean`: pip's cache, built wheels, downloads.
CACHE = Path(os.environ.get("ASCENDET_CACHE") or _XDG_CACHE / "ascendet").absolute()
REQUIREMENTS = ROOT / "requirements"
LOCK = REQUIREMENTS / "lock"
WHEELS = ROOT / "wheels"


def shorten(path: Path) -> str:
    """Return a path as a user types it in the repository's root folder, as `printable` text."""
    return printable(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def printable(path: Path | str) -> str:
    r"""Return a file name as text that can be printed: bytes that are not UTF-8 become `\xNN`.

    Python represents such bytes as lone surrogates, which `print` refuses. JSON can hold them: do not use this function
    for a name in JSON, so that the name still opens the file.

    >>> print(printable(os.fsdecode("中".encode("gbk") + b".jpg")))
    \xd6\xd0.jpg
    """
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(path))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
