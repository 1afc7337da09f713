"""What a training needs to stop after any step and to go on as if it had not, whatever its framework."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

# errors.EXIT_CODES of the tool, which is not here: the ranks' last line names the error.
EXIT_INTERRUPTED = 25
EXIT_LOSS_NOT_FINITE = 35
INTERRUPTED = "interrupted.pth"

# (seed, epoch, index): an image in an epoch, whose augmentation it seeds in whatever process loads it.
Draw = tuple[int, int, int]


def seed_draw(draw: Draw) -> int:
    """Seed what augmentations draw from (`random`, numpy) for one image of one epoch; returns the image's index."""
    random.seed("{} {} {}".format(*draw))
    np.random.seed(draw)  # what mmcv's and detectron2's transforms draw from
    return draw[2]


def note_last(folder: Path, name: str) -> None:
    """Note the checkpoint to resume from, all of the note or nothing."""
    temp = folder / ".last_checkpoint"
    temp.write_text(str(folder / name), encoding="utf-8")
    temp.rename(folder / "last_checkpoint")
