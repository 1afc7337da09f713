"""Where things are. Read these as attributes (`paths.BUILD`), so that a test can point them elsewhere."""

from __future__ import annotations

import os
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
    """The path as a user at the repository's root would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
