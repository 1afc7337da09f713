"""Files that a program leaves, each written in one step: a name stands for a whole file, after a kill, too."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def replacing(final: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file beside `final` that takes its name when all of it is on the disk; remove it if the block fails.

    After an error or a kill, `final` is what it was before. `mode` and `options` are those of `open`.
    """
    temp = final.with_name(f".tmp-{final.name}-{os.getpid()}")
    try:
        with temp.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temp.rename(final)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step."""
    with replacing(file) as out:
        out.write((json.dumps(content, indent=1) + "\n").encode())
