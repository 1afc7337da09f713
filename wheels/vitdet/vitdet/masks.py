"""Bitmaps of an image's objects that exist only when they are used: bit for bit mmdet's, in less memory and time.

Flipping, resizing to the nearest pixel, cropping and padding choose whole rows and columns. So a mask of an augmented
image is the mask as annotated, some of its rows and some of its columns; only these choices go from step to step, and
large-scale jitter no longer makes a bitmap of up to 2048 x 2048 pixels, at each step anew, for each object. The masks
as annotated stay run-length encoded, and of one object at a time the bitmap of its box is decoded: an aerial image of
4000 x 5000 pixels with hundreds of objects would be gigabytes of bitmaps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from pycocotools import mask as coco_mask

Bitmaps = npt.NDArray[np.uint8]
Choice = npt.NDArray[np.float32]  # OpenCV resizes no int64
Chosen = npt.NDArray[np.intp]
PADDING = -1


class DeferredMasks(BitmapMasks):  # type: ignore[misc]  # mmdet has no types
    """mmdet's bitmaps, made when they are asked for.

    Parameters
    ----------
    annotated
        Compressed RLE of each object, as pycocotools makes it: `size` [height, width], all alike, and `counts`.
    rows, columns
        For each row and column of these masks the one of `annotated` that it shows, or `PADDING`: zeros. They rise or
        fall, with `PADDING` at their ends only.
    """

    def __init__(self, annotated: Sequence[dict[str, Any]], rows: Choice, columns: Choice) -> None:
        self.annotated, self.rows, self.columns = annotated, rows, columns
        self.height, self.width = len(rows), len(columns)

    @classmethod
    def of(cls, annotated: Sequence[dict[str, Any]], height: int, width: int) -> DeferredMasks:
        """Return the masks as annotated; ValueError where one is not for an image of height x width."""
        for rle in annotated:
            if list(rle["size"]) != [height, width]:
                raise ValueError(f"a mask of {rle['size']} pixels in an image of {[height, width]}")
        return cls(annotated, *(np.arange(side, dtype=np.float32) for side in (height, width)))

    @cached_property
    def masks(self) -> Bitmaps:
        """(objects, height, width), contiguous."""
        return self._draw(np.zeros((len(self), self.height, self.width), np.uint8))

    def __reduce__(self) -> tuple[Any, ...]:
        """Materialise the masks when they are pickled, so that a data loader's worker pays for it and not the training.

        They are made in shared memory, by which a tensor goes to another process: no second copy exists.
        """
        masks = vars(self).get("masks")
        if masks is None and len(self):
            shape = (len(self), self.height, self.width)
            tensor = torch.empty(0, dtype=torch.uint8)
            tensor.set_(torch.UntypedStorage._new_shared(int(np.prod(shape))), 0, shape)
            self._draw(tensor.numpy())
        else:
            tensor = torch.from_numpy(self.masks)
        return ReadyMasks.of, (tensor,)

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitem__(self, index: Any) -> DeferredMasks:
        """Return the masks of some of the objects."""
        chosen = np.arange(len(self))[index].reshape(-1)
        return DeferredMasks([self.annotated[number] for number in chosen], self.rows, self.columns)

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
        """Return the box around each mask, (objects, 4); zeros around nothing. Other types than "hbox" are mmdet's."""
        if get_box_type(dst_type)[1] is not HorizontalBoxes:
            return super().get_bboxes(dst_type)
        boxes = np.zeros((len(self), 4), np.float32)
        for box, (top, rows, left, columns, bitmap) in zip(boxes, self._visible(), strict=True):
            across, down = bitmap.any(axis=0)[columns].nonzero()[0], bitmap.any(axis=1)[rows].nonzero()[0]
            if len(across):
                box[:] = left + across[0], top + down[0], left + across[-1] + 1, top + down[-1] + 1
        return HorizontalBoxes(boxes)

    def _draw(self, masks: Bitmaps) -> Bitmaps:
        """Write the masks into zeros of (objects, height, width)."""
        for mask, (top, rows, left, columns, bitmap) in zip(masks, self._visible(), strict=True):
            mask[top : top + len(rows), left : left + len(columns)] = bitmap.take(columns, 1).take(rows, 0)
        return masks

    def _visible(self) -> Iterator[tuple[int, Chosen, int, Chosen, Bitmaps]]:
        """Yield for each object which part of these masks its box covers, and what is there.

        That is: the part's first row and, for each of its rows, the one of the bitmap that it shows; the same for
        columns; and the bitmap, of those rows and columns of the annotated mask that are shown.
        """
        boxes = coco_mask.toBbox(self.annotated).astype(int).tolist() if self.annotated else []
        for rle, (left, top, width, height) in zip(self.annotated, boxes, strict=True):
            first_row, rows = within(self.rows, top, height)
            first_column, columns = within(self.columns, left, width)
            shown_rows, rows = np.unique(rows, return_inverse=True)
            shown_columns, columns = np.unique(columns, return_inverse=True)
            by_column = decode_columns(rle, left, width)[shown_columns][:, top + shown_rows]
            yield first_row, rows, first_column, columns, np.ascontiguousarray(by_column.T)


class ReadyMasks(BitmapMasks):  # type: ignore[misc]
    """mmdet's bitmaps; to pad them to the size that they have copies nothing."""

    @classmethod
    def of(cls, masks: torch.Tensor) -> ReadyMasks:
        """Return masks that share the memory of `masks`, (objects, height, width), uint8."""
        return cls(masks.numpy(), *masks.shape[1:])

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Fill up to (height, width), at the bottom and at the right."""
        return self if (self.height, self.width) == tuple(out_shape) else super().pad(out_shape, pad_val)


def within(chosen: Choice, low: int, count: int) -> tuple[int, Chosen]:
    """Return where the chosen ones from `low` on, `count` of them, begin in `chosen`, and these, counted from `low`.

    >>> within(np.float32([PADDING, 7, 6, 6, 5, 4]), 5, 2)
    (2, array([1, 1, 0]))
    """
    places = ((chosen >= low) & (chosen < low + count)).nonzero()[0]
    first = int(places[0]) if len(places) else 0
    return first, chosen[first : first + len(places)].astype(np.intp) - low


def decode_columns(rle: dict[str, Any], left: int, count: int) -> Bitmaps:
    """Return some columns of a mask, (count, height): pycocotools decodes all of the image only.

    Raises ValueError where the runs are not those of an image of `rle["size"]`.
    """
    height, width = rle["size"]
    ends = run_lengths(rle["counts"]).cumsum()
    if ends[-1:] != [height * width]:
        raise ValueError(f"the mask's runs have {ends[-1:]} pixels, the image {height} x {width}")
    ends = np.clip(ends - left * height, 0, count * height)
    values = np.zeros(len(ends), np.uint8)
    values[1::2] = 1
    return values.repeat(np.diff(ends, prepend=0)).reshape(count, height)


def run_lengths(counts: bytes) -> npt.NDArray[np.int64]:
    """Return the lengths of the runs, of zeros and ones in turn, that a compressed RLE holds.

    The format is that of pycocotools' `rleToString`: digits of 5 bits, the least ones first, 32 added to all but a
    number's last, 16 in the last one for less than zero; from the fourth number on the difference to the last but one.

    >>> from pycocotools import mask
    >>> run_lengths(mask.frPyObjects({"size": [30, 40], "counts": [100, 900, 7, 3, 190]}, 30, 40)["counts"])
    array([100, 900,   7,   3, 190])
    """
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = ((digits & 32) == 0).nonzero()[0]
    first = np.concatenate([[0], last[:-1] + 1])
    place = 5 * (np.arange(len(digits)) - first.repeat(last - first + 1))
    numbers = np.add.reduceat((digits & 31) << place, first)
    numbers -= ((digits[last] & 16) << 1) << place[last]
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


@TRANSFORMS.register_module()
class LoadDeferredAnnotations(LoadAnnotations):  # type: ignore[misc]
    """mmdet's loading of annotations, with `DeferredMasks` for its bitmaps."""

    def _load_masks(self, results: dict[str, Any]) -> None:
        if not self.poly2mask:
            super()._load_masks(results)
            return
        height, width = results["ori_shape"]
        masks = [encode(mask, height, width) for mask in self._process_masks(results)]
        results["gt_masks"] = DeferredMasks.of(masks, height, width)


def encode(mask: list[Any] | dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return the compressed RLE of polygons, or of RLE in any form, as mmdet's loading makes it on its way."""
    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(mask, height, width))  # type: ignore[no-any-return]
    if isinstance(mask["counts"], list):
        return coco_mask.frPyObjects(mask, height, width)  # type: ignore[no-any-return]
    return mask | {"counts": mask["counts"].encode() if isinstance(mask["counts"], str) else mask["counts"]}
