"""Results of a program as JSON files, each written in one step: a name stands for a whole file, after a kill, too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step: after an error or a kill, `file` is what it was before."""
    temp = file.with_name(f".tmp-{file.name}")
    try:
        with temp.open("w", encoding="utf-8") as out:
            out.write(json.dumps(content, indent=1) + "\n")
            out.flush()
            os.fsync(out.fileno())
        temp.rename(file)
    finally:
        temp.unlink(missing_ok=True)
