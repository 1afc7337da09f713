"""The locations of FCOS on maps of given sizes: made once for each size, and kept on the device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Grid:
    """All locations of all levels, level after level, row by row.

    Parameters
    ----------
    sizes
        (height, width) of each level's map.
    strides
        Of each level, px.

    Attributes
    ----------
    count
        How many locations there are.
    starts
        Where each level begins.
    neighbours
        (count, 9) int32: the locations of the 3x3 window around each one, row by row; `count` stands for what is
        outside the map.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> None:
        self.sizes, self.strides = tuple(sizes), tuple(strides)
        lengths = [height * width for height, width in self.sizes]
        self.count = sum(lengths)
        self.starts = [sum(lengths[:level]) for level in range(len(lengths))]

    @functools.cached_property
    def neighbours(self) -> npt.NDArray[np.int32]:
        """The 3x3 windows."""
        windows = []
        for start, (height, width) in zip(self.starts, self.sizes, strict=True):
            own = np.arange(start, start + height * width, dtype=np.int32).reshape(height, width)
            padded = np.pad(own, 1, constant_values=self.count)
            windows.append(
                np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(height * width, 9)
            )
        return np.concatenate(windows)

    def table(self) -> npt.NDArray[np.int32]:
        """Return x and y (px) and the stride of each location, (count, 3)."""
        parts = []
        for stride, (height, width) in zip(self.strides, self.sizes, strict=True):
            rows, columns = np.indices((height, width), dtype=np.int32).reshape(2, -1)
            middle = stride // 2
            parts.append(
                np.stack([columns * stride + middle, rows * stride + middle, np.full_like(rows, stride)], 1)
            )
        return np.concatenate(parts)


# Pictures of a data set come in many shapes; a table of a large one takes a megabyte.
@functools.lru_cache(maxsize=64)
def grid_of(sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...]) -> Grid:
    """Return the grid of these sizes, the same object each time."""
    return Grid(sizes, strides)


@functools.lru_cache(maxsize=64)
def on_device(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Copy a grid's table, (count, 3) float32, and its neighbours, (count, 9) int32, to a device; once."""
    import torch  # not above: `blendmask.om` needs the grid where there is no torch

    with torch.inference_mode(False):
        return (
            torch.from_numpy(grid.table()).float().to(device),
            torch.from_numpy(grid.neighbours).to(device),
        )
