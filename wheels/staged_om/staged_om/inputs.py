"""The pictures of a comparison, stored once as pixels, so that every rung and every later search sees the same ones.

The tool writes LIST (file names, and ids in an annotation file where there is one); the first program that needs them
reads the pictures and writes PACKAGE beside it. A file that changes afterwards changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ascendet_common import images

from staged_om.ap import Truth

LIST = "inputs.json"
PACKAGE = "inputs.npz"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Pictures as OpenCV reads them (uint8 [height, width, 3], BGR), their names, and what AP is measured against.

    `digest` is that of the list and of the pixels.
    """

    names: tuple[str, ...]
    pictures: tuple[np.ndarray, ...]
    truth: Truth | None
    digest: str

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """Yield the pictures in batches; the last one may be smaller."""
        for start in range(0, len(self.pictures), size):
            yield list(self.pictures[start : start + size])


def open_inputs(folder: Path) -> Inputs:
    """Return the pictures of a folder with LIST; store them first if there is no PACKAGE.

    Raises
    ------
    ascendet_common.images.ImageError
        A picture is damaged.
    """
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    package = folder / PACKAGE
    if not package.is_file():
        pixels: dict[str, Any] = {
            f"{number:06d}": images.read(file) for number, file in enumerate(listed["files"])
        }
        temp = folder / f".tmp-{os.getpid()}-{PACKAGE}"
        try:
            np.savez(temp, **pixels)
            temp.rename(package)
        finally:
            temp.unlink(missing_ok=True)
    with np.load(package, allow_pickle=False) as stored:
        pictures = tuple(stored[key] for key in sorted(stored.files))
    truth = None
    if listed["annotations"]:
        content = json.loads(Path(listed["annotations"]).read_text(encoding="utf-8"))
        truth = Truth(annotations=content, image_ids=listed["image_ids"])
    digest = hashlib.sha256((folder / LIST).read_bytes())
    for picture in pictures:
        digest.update(picture)
    return Inputs(names=tuple(listed["files"]), pictures=pictures, truth=truth, digest=digest.hexdigest())
