"""Bitmaps of an image's objects that augmentation does not copy: bit for bit mmdet's, several times as fast.

Flipping, resizing to the nearest pixel, cropping and padding choose whole rows and columns. So a mask of an augmented
image is the mask as annotated, some of its rows and some of its columns; only these choices go from step to step, and
large-scale jitter no longer makes a bitmap of up to 2048 x 2048 pixels, at each step anew, for each object.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mmcv
import numpy as np
import numpy.typing as npt
import torch
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes, get_box_type
from mmdet.structures.mask import BitmapMasks

Bitmaps = npt.NDArray[np.uint8]
Choice = npt.NDArray[np.float32]  # OpenCV resizes no int64
PADDING = -1


class DeferredMasks(BitmapMasks):  # type: ignore[misc]  # mmdet has no types
    """mmdet's bitmaps, made when they are asked for.

    Parameters
    ----------
    annotated
        (objects, height, width) of the image as annotated.
    rows, columns
        For each row and column of these masks the one of `annotated` that it shows, or `PADDING`: zeros. By default
        the masks as annotated.
    """

    def __init__(self, annotated: Bitmaps, rows: Choice | None = None, columns: Choice | None = None) -> None:
        self.annotated = annotated
        self.rows = np.arange(annotated.shape[1], dtype=np.float32) if rows is None else rows
        self.columns = np.arange(annotated.shape[2], dtype=np.float32) if columns is None else columns
        self.height, self.width = len(self.rows), len(self.columns)

    @cached_property
    def masks(self) -> Bitmaps:
        """(objects, height, width), contiguous."""
        return choose(choose(self.annotated, self.columns, 2), self.rows, 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies come made. A data loader's worker makes them, not the training that waits for them."""
        masks = torch.from_numpy(self.masks)  # between processes a tensor takes shared memory, not the pipe
        return _made, (masks,)

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, index: Any) -> DeferredMasks:
        """Of some of the objects."""
        chosen = self.annotated[index].reshape(-1, *self.annotated.shape[1:])
        return DeferredMasks(chosen, self.rows, self.columns)

    def rescale(self, scale: float | tuple[int, int], interpolation: str = "nearest") -> BitmapMasks:
        """Resize by a factor, or to fit into (long side, short side) at the same aspect ratio."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = "nearest") -> BitmapMasks:
        """Resize to (height, width)."""
        if interpolation != "nearest":
            return super().resize(out_shape, interpolation)
        height, width = out_shape
        # OpenCV itself says which row is the nearest one.
        rows = mmcv.imresize(self.rows[:, None], (1, height), interpolation="nearest")
        columns = mmcv.imresize(self.columns[None, :], (width, 1), interpolation="nearest")
        return DeferredMasks(self.annotated, rows.ravel(), columns.ravel())

    def flip(self, flip_direction: str = "horizontal") -> BitmapMasks:
        """Mirror: "horizontal", "vertical", or "diagonal" for both."""
        if flip_direction not in ("horizontal", "vertical", "diagonal"):
            raise ValueError(f"flip_direction {flip_direction!r}")
        rows = self.rows if flip_direction == "horizontal" else self.rows[::-1]
        columns = self.columns if flip_direction == "vertical" else self.columns[::-1]
        return DeferredMasks(self.annotated, rows, columns)

    def crop(self, bbox: npt.NDArray[np.int64]) -> BitmapMasks:
        """Cut out (left, top, right, bottom), in pixels, at least one pixel."""
        left, right = np.clip(bbox[0::2], 0, self.width)
        top, bottom = np.clip(bbox[1::2], 0, self.height)
        rows = self.rows[top : max(bottom, top + 1)]
        return DeferredMasks(self.annotated, rows, self.columns[left : max(right, left + 1)])

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Fill up with zeros to (height, width), at the bottom and at the right."""
        if (self.height, self.width) == tuple(out_shape):
            return self
        if pad_val:
            return super().pad(out_shape, pad_val)
        below, right = out_shape[0] - self.height, out_shape[1] - self.width
        rows = np.pad(self.rows, (0, below), constant_values=PADDING)
        return DeferredMasks(self.annotated, rows, np.pad(self.columns, (0, right), constant_values=PADDING))

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Join the masks of several images, all of one size."""
        return BitmapMasks.cat(masks)

    def get_bboxes(self, dst_type: str | type = "hbox") -> Any:
        """The box around each mask, (objects, 4); zeros around nothing. Other types than "hbox" are mmdet's."""
        if get_box_type(dst_type)[1] is not HorizontalBoxes:
            return super().get_bboxes(dst_type)
        height, width = self.annotated.shape[1:]
        across = (self.annotated & shown(self.rows, height)[:, None]).any(axis=1)
        down = (self.annotated & shown(self.columns, width)).any(axis=2)
        across, down = choose(across, self.columns, 1), choose(down, self.rows, 1)
        boxes = np.zeros((len(self), 4), np.float32)
        seen = across.any(axis=1) & down.any(axis=1)
        for low, high, line in ((0, 2, across[seen]), (1, 3, down[seen])):
            boxes[seen, low] = line.argmax(axis=1)
            boxes[seen, high] = line.shape[1] - line[:, ::-1].argmax(axis=1)
        return HorizontalBoxes(boxes)


def _made(masks: torch.Tensor) -> DeferredMasks:
    """Masks of which nothing is left to do, from (objects, height, width)."""
    deferred = DeferredMasks(masks.numpy())
    deferred.masks = deferred.annotated
    return deferred


def choose(array: npt.NDArray[Any], chosen: Choice, axis: int) -> npt.NDArray[Any]:
    """The chosen slices along an axis, in that order; zeros for `PADDING`."""
    out = np.take(array, chosen.astype(np.intp), axis=axis)
    np.moveaxis(out, axis, 0)[chosen == PADDING] = 0
    return out


def shown(chosen: Choice, size: int) -> Bitmaps:
    """(size,) with all bits set where a row or column of the annotated masks is among the chosen ones."""
    bits = np.zeros(size, np.uint8)
    bits[chosen[chosen != PADDING].astype(np.intp)] = 255
    return bits


@TRANSFORMS.register_module()
class LoadDeferredAnnotations(LoadAnnotations):  # type: ignore[misc]
    """mmdet's loading of annotations, with `DeferredMasks` for its bitmaps."""

    def _load_masks(self, results: dict[str, Any]) -> None:
        super()._load_masks(results)
        if self.poly2mask:
            results["gt_masks"] = DeferredMasks(results["gt_masks"].masks)
