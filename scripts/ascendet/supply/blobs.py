"""Lists of git blob ids, which verify each file of a source, wherever it was found."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ascendet import paths
from ascendet.core import files
from ascendet.errors import AscendetError


def read(path: Path) -> dict[str, str]:
    """Return the git blob ids in a list by file name.

    Raises
    ------
    AscendetError
        `stack-invalid`: a line is not "<40 hex digits>  <relative path>", or the list is empty.
    """
    try:
        return _parse_blobs(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        shown = paths.shorten(path)
        raise AscendetError(
            "stack-invalid", f"{shown} cannot be read", found=str(error), hint=f"git diff {shown}"
        ) from error


def _parse_blobs(text: str) -> dict[str, str]:
    listed = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        found = re.fullmatch(r"([0-9a-f]{40})  (\S.*)", line)
        if found is None or PurePosixPath(found[2]).is_absolute() or ".." in found[2].split("/"):
            raise ValueError(f"not a line '<git blob id>  <path>': {line!r}")
        listed[found[2]] = found[1]
    if not listed:
        raise ValueError("the list is empty")
    return listed


def move_to_listed_names(tree: Path, listed: Mapping[str, str]) -> None:
    """Copy listed files that `tree` has under another name to their listed names, as a distribution may move files.

    detectron2's has configs/ below detectron2/model_zoo/.
    """
    missing = {name: blob for name, blob in listed.items() if not (tree / name).exists()}
    if not missing:
        return
    there = {blob_id(path.read_bytes()): path for path in files.walk(tree)}
    for name, blob in missing.items():
        if blob in there:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(there[blob], tree / name)


def compare(tree: Path, listed: Mapping[str, str]) -> list[str]:
    """Return a sentence for each listed file that is missing in `tree` or has another content."""
    problems = []
    for name, expected in sorted(listed.items()):
        path = tree / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := blob_id(path.read_bytes())) != expected:
            problems.append(f"{name} is blob {found[:12]}, not {expected[:12]}")
    return problems


def blob_id(content: bytes) -> str:
    """Return the id under which git stores a file's content.

    >>> blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()
