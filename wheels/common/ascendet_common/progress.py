"""Progress of a program: lines of JSON in `progress.jsonl` of the work folder, for the tool's terminal and for curves.

Every row has `phase` and `time` (seconds since 1970). The other fields depend on the phase:

train     step, of (optimizer or loop steps), epoch, eta (seconds), loss, losses (by name), lr, seconds (per step),
          memory (MiB on the device)
validate  step (of training), AP (by "bbox" and "segm", 0 to 1)
predict, infer, speed
          step, of, eta (seconds), text
note, warning
          text; fallback (operator, line) of an operator that was computed on the CPU
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "progress.jsonl"


def write(phase: str, **fields: Any) -> None:
    """Append a row to `progress.jsonl` in WORK_DIR; do nothing when WORK_DIR is not set.

    Each row is a single write to a file opened for appending, so the rows of several processes do not mix.
    """
    folder = os.environ.get("WORK_DIR")
    if not folder:
        return
    row = {"phase": phase, "time": round(time.time(), 3), **fields}
    line = json.dumps(row, separators=(",", ":")) + "\n"
    file = os.open(Path(folder, FILE), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a work folder; skip a line that a killed process left incomplete."""
    file = folder / FILE
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row
