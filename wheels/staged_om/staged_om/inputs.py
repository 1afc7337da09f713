"""The pictures of a comparison, read once by a program, so that every rung sees the same ones.

The tool writes LIST: file names with their digests, and ids in an annotation file where there is one. Its folder is
named by its content, so what a later search finds there are the same pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ascendet_common import images

from staged_om.ap import Truth

LIST = "inputs.json"


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
    """Return the pictures of a folder with LIST.

    Raises
    ------
    ascendet_common.images.ImageError
        A picture is damaged.
    """
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    pictures = tuple(map(images.read, listed["files"]))
    truth = None
    if listed["annotations"]:
        content = json.loads(Path(listed["annotations"]).read_text(encoding="utf-8"))
        truth = Truth(annotations=content, image_ids=listed["image_ids"])
    digest = hashlib.sha256((folder / LIST).read_bytes())
    for picture in pictures:
        digest.update(picture.tobytes())
    return Inputs(names=tuple(listed["files"]), pictures=pictures, truth=truth, digest=digest.hexdigest())
