"""Results of a program as files, each written in one step: a name stands for a whole file, after a kill, too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[TextIO]:
    """Yield a text file that becomes `file` at the end; after an error or a kill, `file` is what it was before."""
    temp = file.with_name(f".tmp-{file.name}")
    try:
        with temp.open("w", newline="", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temp.rename(file)
    finally:
        temp.unlink(missing_ok=True)


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    with replacing(file) as out:
        out.write(json.dumps(content, indent=1) + "\n")
