"""Folders that all modules use. Read them as attributes (`paths.BUILD`), so that a test can replace them."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("ASCENDET_BUILD") or ROOT / "build").absolute()


def home() -> Path | None:
    """Return the user's home folder; None for a user without one, as in a container that is given a bare uid."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _cache() -> Path:
    """Return the folder that all clones share and `make clean` keeps; without a home folder it is in the build's."""
    if named := os.environ.get("ASCENDET_CACHE"):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches).expanduser() / "ascendet"
    mine = home()
    return mine / ".cache" / "ascendet" if mine else BUILD / "cache"


# pip's cache, built wheels, downloads.
CACHE = _cache().absolute()
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
