"""Measurements by the digest of what was measured, in a file: an interrupted search finds them again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Memory:
    """Measurements by the digest of what was measured, in a file: an interrupted search finds them again.

    Parameters
    ----------
    file
        Lines of JSON, one for each measurement. Each is one write, so that a killed process leaves at most one
        incomplete line, which is skipped.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, Any]] = {}
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.known[row["digest"]] = row

    def recall(self, what: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the measurement of `what`, JSON values, measured now unless it is known."""
        digest = digest_of(what)
        if digest not in self.known:
            clock = time.monotonic()
            values = measure()
            row = {"digest": digest, **what, **values, "seconds": round(time.monotonic() - clock, 2)}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
            self.known[digest] = row
        return self.known[digest]


def digest_of(what: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever the order of keys.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
