"""Read the files that stages leave, and remember which of them are broken, so that the report appears all the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascendet import paths

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A file that cannot be used: the section of the report that misses it, why, and the command that makes it anew."""

    section: str
    file: str
    why: str
    command: str


@dataclass(kw_only=True)
class Reader:
    """Reads files; `broken` holds those that could not be read."""

    broken: list[Broken] = field(default_factory=list)

    def note(self, section: str, file: Path, why: str, command: str) -> None:
        """Remember a broken file, once for each section."""
        found = Broken(section=section, file=paths.shorten(file), why=paths.printable(why), command=command)
        if found not in self.broken:
            self.broken.append(found)

    @contextlib.contextmanager
    def using(self, section: str, file: Path, command: str) -> Iterator[None]:
        """Remember `file` as broken if the block meets content of another form than it expects."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error) or repr(error)
            self.note(section, file, why, command)

    def table(self, section: str, file: Path, command: str) -> Json | None:
        """Return the content of a JSON file that holds an object, or None if the file is absent or broken."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.note(section, file, error.strerror or str(error), command)
        except (ValueError, RecursionError) as error:
            self.note(section, file, str(error) or repr(error), command)
        else:
            if isinstance(content, dict):
                return content
            self.note(section, file, f"{type(content).__name__}, not an object", command)
        return None

    def lines(self, section: str, file: Path, command: str, *, complete: bool) -> list[Json]:
        """Return the objects of a file with one JSON object per line; [] if it is absent.

        Unless the file is `complete`, a last line without a newline is one that a process has not written to its end,
        or was killed in, and is no defect.
        """
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.note(section, file, error.strerror or str(error), command)
            return []
        rows, bad = [], 0
        *whole, rest = text.split("\n")
        for line in [*whole, rest] if complete else whole:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                bad += bool(line.strip())
        if bad:
            self.note(section, file, f"{bad} of {len(text.splitlines())} lines are no JSON object", command)
        return rows


def dig(content: Any, *keys: str) -> Any:
    """Return a value in nested objects, or None where a key is missing: a manifest of an older version lacks some.

    >>> dig({"inputs": {"ranks": 2}}, "inputs", "ranks"), dig({}, "inputs", "ranks"), dig(None, "inputs")
    (2, None, None)
    """
    for key in keys:
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content


def mapping(value: Any) -> Json:
    """Return an object as it is, and an empty one for everything else.

    >>> mapping({"a": 1}), mapping(None), mapping([1])
    ({'a': 1}, {}, {})
    """
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    """Return a finite number as it is, and None for everything else.

    >>> number(3), number(True), number("3"), number(float("nan")), number(None)
    (3, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < float("inf") else None
