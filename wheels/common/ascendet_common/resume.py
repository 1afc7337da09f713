"""What a training needs to stop after any step and to go on as if it had not, whatever its framework."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from ascendet_common import results

# The same as errors.EXIT_CODES["interrupted"] of the tool, which cannot be imported here.
EXIT_INTERRUPTED = 25
# The same as errors.EXIT_CODES["loss-not-finite"] of the tool.
EXIT_LOSS_NOT_FINITE = 35
INTERRUPTED = "interrupted.pth"

# (seed, epoch, index): an image in an epoch, whose augmentation it seeds in whatever process loads it.
Draw = tuple[int, int, int]


def seed_draw(draw: Draw) -> int:
    """Seed the generators that augmentations use for one picture of one epoch, and return the picture's index."""
    random.seed("{} {} {}".format(*draw))
    np.random.seed(draw)  # mmcv's and detectron2's transforms use numpy's generator
    return draw[2]


def note_last(folder: Path, name: str) -> None:
    """Write the name of the checkpoint to resume from to `last_checkpoint`, in one step."""
    with results.replacing(folder / "last_checkpoint") as file:
        file.write(str(folder / name).encode())
