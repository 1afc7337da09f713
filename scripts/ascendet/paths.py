"""Where things are. Read these as attributes (`paths.BUILD`), so that a test can point them elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ASCENDET_BUILD") or ROOT / "build").absolute()
_XDG_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
# Survives `make clean` and serves every clone: pip's cache, built wheels, downloads.
CACHE = Path(os.environ.get("ASCENDET_CACHE") or _XDG_CACHE / "ascendet").absolute()
REQUIREMENTS = ROOT / "requirements"
LOCK = REQUIREMENTS / "lock"
WHEELS = ROOT / "wheels"


def shorten(path: Path) -> str:
    """The path as a user at the repository's root would type it, `printable`."""
    return printable(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def printable(path: Path | str) -> str:
    r"""Return a file name as text that every terminal and UTF-8 file takes: bytes that are not UTF-8 become `\xNN`.

    Python holds such bytes as lone surrogates, which `print` refuses. JSON escapes and keeps them: there, leave the name
    as it is, so that it still opens the file.

    >>> print(printable(os.fsdecode("中".encode("gbk") + b".jpg")))
    \xd6\xd0.jpg
    """
    text = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(path))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
