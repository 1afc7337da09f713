"""Read the files that stages leave, and remember which of them are broken, so that the report appears all the same."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ascendet import paths
from ascendet.core import access, files

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a file cannot be used, in no language yet: a key of [reason] in words.toml, and its placeholders' values.

    `file` is named where the sentence around it does not; `rights` is the command that gives the right to read it.
    """

    key: str
    values: Mapping[str, object] = field(default_factory=dict)
    file: str = ""
    rights: str | None = None


def reason(error: Exception, file: Path) -> Reason:
    """Return why a file cannot be used from what reading it, or taking its content apart, raised."""
    match error:
        case OSError() if refused := access.refusal(error):
            at = access.blocking(file)
            inside = at.is_relative_to(paths.BUILD) or at.is_relative_to(paths.ROOT)
            right = f"sudo chmod a+r{'X' if at.is_dir() else ''} {paths.shorten(at)}"
            return Reason(
                key="denied",
                values={
                    "user": access.user(),
                    "found": str(refused.found).removesuffix(f" {paths.shorten(file)}"),
                },
                rights=right if inside else f"ls -ld {paths.shorten(at)}",
            )
        case IsADirectoryError():
            return Reason(key="folder")
        case OSError():
            return Reason(key="unreadable", values={"error": errno.errorcode.get(error.errno or 0, "EIO")})
        case UnicodeDecodeError():
            return Reason(key="not-text")
        case json.JSONDecodeError() if not error.doc.strip():
            return Reason(key="empty")
        case json.JSONDecodeError():
            return Reason(key="not-json", values={"line": error.lineno, "column": error.colno})
        case KeyError():
            return Reason(key="lacks", values={"name": str(error)})
    return Reason(key="other-form")


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A file that cannot be used: the section of the report that misses it, why, and the command that makes it anew."""

    section: str
    file: str
    why: Reason
    command: str

    @property
    def remedy(self) -> str:
        """The command that gives the right to read it, or else the one that makes it anew."""
        return self.why.rights or self.command


def unread(broken: Iterable[Broken], section: str) -> Broken | None:
    """Return a file that a section misses, so that what it would show may have been measured; None if there is none."""
    return next((one for one in broken if one.section == section), None)


@dataclass(kw_only=True)
class Reader:
    """Reads files; `broken` holds those that could not be read."""

    broken: list[Broken] = field(default_factory=list)

    def note(self, section: str, file: Path, why: Reason | Exception, command: str) -> None:
        """Remember a broken file, once for each section."""
        why = reason(why, file) if isinstance(why, Exception) else why
        found = Broken(section=section, file=paths.shorten(file), why=why, command=command)
        if found not in self.broken:
            self.broken.append(found)

    @contextlib.contextmanager
    def using(self, section: str, file: Path, command: str) -> Iterator[None]:
        """Remember `file` as broken if the block meets content of another form than it expects."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            self.note(section, file, error, command)

    def table(self, section: str, file: Path, command: str) -> Json | None:
        """Return the content of a JSON file that holds an object, or None if the file is absent or broken."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            self.note(section, file, error, command)
        else:
            if isinstance(content, dict):
                return content
            self.note(section, file, Reason(key="no-object"), command)
        return None

    def files(self, section: str, home: Path, pattern: str, command: str) -> list[Path]:
        """Return the files of a name in folders: `home` / "folders*/name", in order of their names.

        A folder that may not be entered, which seems to lack the file, is remembered as broken.
        """
        folders, _, name = pattern.rpartition("/")
        if home.is_dir() and not access.can(home, os.R_OK | os.X_OK):
            self.note(section, home, PermissionError(errno.EACCES, "", str(home)), command)
            return []
        found = []
        for folder in sorted(home.glob(folders)):
            if folder.is_dir() and not access.can(folder, os.X_OK):
                self.note(section, folder, PermissionError(errno.EACCES, "", str(folder)), command)
            elif os.path.lexists(folder / name):
                found.append(folder / name)
        return found

    def unlike(self, section: str, file: Path, recorded: object, command: str) -> str | None:
        """Return a file's SHA-256 if that is not the one `recorded` when it was made, and remember it as broken then.

        None if it is that, if the file is not there, or if nothing was recorded.
        """
        if not isinstance(recorded, str) or not recorded:
            return None
        try:
            found = files.digest(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.note(section, file, error, command)
            return None
        if found == recorded:
            return None
        self.note(section, file, Reason(key="changed", values={"size": file.stat().st_size}), command)
        return found

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
            self.note(section, file, error, command)
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
            counted = {"bad": bad, "count": len(text.splitlines())}
            self.note(section, file, Reason(key="lines", values=counted), command)
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
