"""Masks as bitmaps that are created only when they are used: equal to mmdet's, in less memory and time.

Flipping, resizing to the nearest pixel, cropping and padding select whole rows and columns. A mask of an augmented
picture is therefore the annotated mask plus a selection of its rows and columns. Augmentation steps change only the
selections; without this, large-scale jitter would create a bitmap of up to 2048 x 2048 pixels per object and step. The
annotated masks stay run-length encoded, and are decoded one object at a time, within the object's box: the bitmaps of
an aerial photograph of 4000 x 5000 pixels with hundreds of objects would take gigabytes.
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
Choice = npt.NDArray[np.float32]  # not int64, which OpenCV cannot resize
Chosen = npt.NDArray[np.intp]
PADDING = -1


class DeferredMasks(BitmapMasks):
    """mmdet's bitmap masks, created when they are first used.

    Parameters
    ----------
    annotated
        Compressed RLE of each object, as pycocotools makes it: `size` [height, width], the same for all, and `counts`.
    rows, columns
        For each row and column of these masks, the row or column of `annotated` that it shows, or `PADDING` for zeros.
        The numbers rise or fall, with `PADDING` at the ends only.
    """

    def __init__(self, annotated: Sequence[dict[str, Any]], rows: Choice, columns: Choice) -> None:
        self.annotated, self.rows, self.columns = annotated, rows, columns
        self.height, self.width = len(rows), len(columns)

    @classmethod
    def of(cls, annotated: Sequence[dict[str, Any]], height: int, width: int) -> DeferredMasks:
        """Return the masks as annotated; raise ValueError if one does not belong to a picture of height x width."""
        for rle in annotated:
            if list(rle["size"]) != [height, width]:
                raise ValueError(f"a mask of {rle['size']} pixels in an image of {[height, width]}")
        return cls(annotated, *(np.arange(side, dtype=np.float32) for side in (height, width)))

    @cached_property
    def masks(self) -> Bitmaps:
        """The bitmaps, (objects, height, width), uint8, contiguous."""
        return self._draw(np.zeros((len(self), self.height, self.width), np.uint8))

    def __reduce__(self) -> tuple[Any, ...]:
        """Create the bitmaps when the masks are pickled: a data loader's worker spends the time, not the training.

        They are created in shared memory, which PyTorch passes to the other process without a copy.
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
        # OpenCV resizes the selections, so that it chooses the nearest row as it does for bitmaps.
        rows = mmcv.imresize(self.rows[:, None], (1, height), interpolation="nearest")
        columns = mmcv.imresize(self.columns[None, :], (width, 1), interpolation="nearest")
        return DeferredMasks(self.annotated, rows.ravel(), columns.ravel())

    def flip(self, flip_direction: str = "horizontal") -> BitmapMasks:
        """Mirror the masks: "horizontal", "vertical", or "diagonal" for both."""
        if flip_direction not in ("horizontal", "vertical", "diagonal"):
            raise ValueError(f"flip_direction {flip_direction!r}")
        rows = self.rows if flip_direction == "horizontal" else self.rows[::-1]
        columns = self.columns if flip_direction == "vertical" else self.columns[::-1]
        return DeferredMasks(self.annotated, rows, columns)

    def crop(self, bbox: npt.NDArray[np.int64]) -> BitmapMasks:
        """Crop to (left, top, right, bottom), in pixels; the result has at least one pixel."""
        left, right = np.clip(bbox[0::2], 0, self.width)
        top, bottom = np.clip(bbox[1::2], 0, self.height)
        rows = self.rows[top : max(bottom, top + 1)]
        return DeferredMasks(self.annotated, rows, self.columns[left : max(right, left + 1)])

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Pad with zeros to (height, width), at the bottom and at the right."""
        if (self.height, self.width) == tuple(out_shape):
            return self
        if pad_val:
            return super().pad(out_shape, pad_val)
        below, right = out_shape[0] - self.height, out_shape[1] - self.width
        rows = np.pad(self.rows, (0, below), constant_values=PADDING)
        return DeferredMasks(self.annotated, rows, np.pad(self.columns, (0, right), constant_values=PADDING))

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """Join the masks of several pictures, all of one size."""
        return BitmapMasks.cat(masks)

    def get_bboxes(self, dst_type: str | type = "hbox") -> Any:
        """Return the box around each mask, (objects, 4); zeros for an empty mask. Types except "hbox" are mmdet's."""
        if get_box_type(dst_type)[1] is not HorizontalBoxes:
            return super().get_bboxes(dst_type)
        boxes = np.zeros((len(self), 4), np.float32)
        for box, (top, rows, left, columns, bitmap) in zip(boxes, self._visible(), strict=True):
            across = np.flatnonzero(np.asarray(bitmap.any(axis=0))[columns])
            down = np.flatnonzero(np.asarray(bitmap.any(axis=1))[rows])
            if len(across):
                box[:] = left + across[0], top + down[0], left + across[-1] + 1, top + down[-1] + 1
        return HorizontalBoxes(boxes)

    def _draw(self, masks: Bitmaps) -> Bitmaps:
        """Write the masks into zeros of (objects, height, width)."""
        for mask, (top, rows, left, columns, bitmap) in zip(masks, self._visible(), strict=True):
            mask[top : top + len(rows), left : left + len(columns)] = bitmap.take(columns, 1).take(rows, 0)
        return masks

    def _visible(self) -> Iterator[tuple[int, Chosen, int, Chosen, Bitmaps]]:
        """Yield (first row, rows, first column, columns, bitmap) for each object: the part of its mask within its box.

        The part begins at the first row and first column of this mask. `rows` and `columns` say, for each of the part's
        rows and columns, which row or column of `bitmap` it shows. `bitmap` holds only those rows and columns of the
        annotated mask that are shown.
        """
        boxes = coco_mask.toBbox(self.annotated).astype(int).tolist() if self.annotated else []
        for rle, (left, top, width, height) in zip(self.annotated, boxes, strict=True):
            first_row, rows = within(self.rows, top, height)
            first_column, columns = within(self.columns, left, width)
            shown_rows, rows = np.unique(rows, return_inverse=True)
            shown_columns, columns = np.unique(columns, return_inverse=True)
            by_column = decode_columns(rle, left, width)[shown_columns][:, top + shown_rows]
            yield first_row, rows, first_column, columns, np.ascontiguousarray(by_column.T)


class ReadyMasks(BitmapMasks):
    """mmdet's bitmap masks, but padding them to the size that they already have copies nothing."""

    @classmethod
    def of(cls, masks: torch.Tensor) -> ReadyMasks:
        """Return masks that share the memory of `masks`, (objects, height, width), uint8."""
        return cls(masks.numpy(), *masks.shape[1:])

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """Pad to (height, width), at the bottom and at the right."""
        return self if (self.height, self.width) == tuple(out_shape) else super().pad(out_shape, pad_val)


def within(chosen: Choice, low: int, count: int) -> tuple[int, Chosen]:
    """Return the part of `chosen` that lies in low … low + count - 1: its first position, and its values minus `low`.

    >>> within(np.float32([PADDING, 7, 6, 6, 5, 4]), 5, 2)
    (2, array([1, 1, 0]))
    """
    places = ((chosen >= low) & (chosen < low + count)).nonzero()[0]
    first = int(places[0]) if len(places) else 0
    return first, chosen[first : first + len(places)].astype(np.intp) - low


def decode_columns(rle: dict[str, Any], left: int, count: int) -> Bitmaps:
    """Return `count` columns of a mask from `left` on, (count, height); pycocotools can only decode the whole image.

    Raises ValueError if the runs do not have as many pixels as a picture of `rle["size"]`.
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
    """Return the lengths of the runs of a compressed RLE, of zeros and ones in turn.

    The format is that of pycocotools' `rleToString`. Each number consists of digits of 5 bits, the lowest first; 32 is
    added to every digit but the last, and 16 in the last digit marks a negative number. From the fourth number on, the
    difference to the number two places before is stored.

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
class LoadDeferredAnnotations(LoadAnnotations):
    """mmdet's loading of annotations, with `DeferredMasks` instead of its bitmaps."""

    def _load_masks(self, results: dict[str, Any]) -> None:
        if not self.poly2mask:
            super()._load_masks(results)
            return
        height, width = results["ori_shape"]
        masks = [encode(mask, height, width) for mask in self._process_masks(results)]
        results["gt_masks"] = DeferredMasks.of(masks, height, width)


def encode(mask: list[Any] | dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """Return the compressed RLE of polygons, or of RLE in any form, as mmdet's loading computes it before decoding."""
    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(mask, height, width))
    if isinstance(mask["counts"], list):
        return coco_mask.frPyObjects(mask, height, width)
    return mask | {"counts": mask["counts"].encode() if isinstance(mask["counts"], str) else mask["counts"]}
