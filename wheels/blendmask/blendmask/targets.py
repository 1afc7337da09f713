"""What a training step is to learn, worked out on the host from the boxes, and packed for few copies to the device.

FCOS looks at every location of every map. But only a few locations around the middle of each object are positive, and
which ones follows from the boxes alone, which the host has. So it makes lists of them: the device assigns nothing,
counts nothing, and no shape depends on what is in the images. The lists come in chunks of one size; how many chunks
there are is all that changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blendmask.grid import Grid

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Of one chunk: its positive locations, and the objects that these belong to.
POSITIVES = 128
OBJECTS = 16


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The objects of one image.

    boxes
        (k, 4) float32: x0 y0 x1 y1, px.
    classes
        (k,) int64.
    crops
        (k, m, m) bool: each object's mask inside its box.
    """

    boxes: Floats
    classes: Ints
    crops: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Assigned:
    """The positive locations of one image, ordered by object.

    location
        (p,) int64: the place in the grid.
    object
        (p,) int64: whose box it is to predict.
    sides
        (p, 4) float32: from the location to the left, top, right and bottom of the box, in strides of its level.
    centreness
        (p,) float32: 1 in the middle of the box, 0 at its border.
    """

    location: Ints
    object: Ints
    sides: Floats
    centreness: Floats


def assign(boxes: Floats, grid: Grid, sizes_of_interest: Sequence[float], radius: float | None) -> Assigned:
    """Find the positive locations of an image (FCOS, arXiv 1904.01355, section 3.2, and its journal form, 2006.09214).

    A location is positive for a box if it lies strictly inside it, closer than `radius` strides to its middle, and if
    the longest of the four distances to its sides is one of the location's level. Of several boxes it gets the one of
    the smallest area, the first of equal ones.

    Parameters
    ----------
    boxes
        (k, 4) float32, px.
    grid
        The locations of the padded images.
    sizes_of_interest
        Where the lengths of one level end and the next one's begin, px; both levels have the length itself.
    radius
        None: the whole box.
    """
    bounds = np.array([-1, *sizes_of_interest, np.inf], np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    places, owners, sides, strides = [], [], [], []
    for level, (stride, (height, width)) in enumerate(zip(grid.strides, grid.sizes, strict=True)):
        low, high = boxes[:, :2], boxes[:, 2:]
        if radius is not None:
            reach = np.float32(radius * stride)
            low, high = np.maximum(low, centres - reach), np.minimum(high, centres + reach)
        # The first and last column and row that can be inside; exactly which ones are is decided below.
        first = np.floor((low - stride // 2) / stride).astype(np.int64).clip(0)
        last = np.ceil((high - stride // 2) / stride).astype(np.int64).clip(max=[width - 1, height - 1])
        columns, rows = (last - first + 1).clip(0).T
        owner = np.repeat(np.arange(len(boxes)), columns * rows)
        index = np.arange(len(owner)) - np.repeat(np.cumsum(columns * rows) - columns * rows, columns * rows)
        column = first[owner, 0] + index % columns[owner]
        row = first[owner, 1] + index // columns[owner]
        at = (np.stack([column, row], axis=1) * stride + stride // 2).astype(np.float32)
        side = np.concatenate([at - boxes[owner, :2], boxes[owner, 2:] - at], axis=1)
        longest = side.max(axis=1, initial=-1)
        inside = (
            (side > 0).all(axis=1)
            & (at > low[owner]).all(axis=1)
            & (at < high[owner]).all(axis=1)
            & (longest >= bounds[level])
            & (longest <= bounds[level + 1])
        )
        places.append((grid.starts[level] + row * width + column)[inside])
        owners.append(owner[inside])
        sides.append(side[inside])
        strides.append(np.full(inside.sum(), stride, np.float32))
    place, owner, side, stride_of = (np.concatenate(part) for part in (places, owners, sides, strides))
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[owner]
    order = np.lexsort((owner, area, place))
    order = order[np.diff(place[order], prepend=-1) != 0]
    order = order[np.lexsort((place[order], owner[order]))]
    side = side[order]
    across, down = side[:, 0::2], side[:, 1::2]
    centreness = np.sqrt(across.min(axis=1) / across.max(axis=1) * down.min(axis=1) / down.max(axis=1))
    return Assigned(
        location=place[order],
        object=owner[order],
        sides=side / stride_of[order, None],
        centreness=centreness.astype(np.float32),
    )


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Positive locations of a batch, of one number, with what they are to predict; on the device.

    Places that are left over have weight 0 and predict something harmless.

    neighbours
        (POSITIVES * 9,) int32: rows of the box branch's features around each location, row by row.
    logits
        (POSITIVES,) int32: places of the right class's logit among all logits.
    owners
        (POSITIVES,) int32: which of the chunk's objects.
    sides, centreness, valid
        (POSITIVES, 4), (POSITIVES,), (POSITIVES,) float32; `valid` is 1 where there is a location.
    regions
        (OBJECTS, 5) float32: image, x0 y0 x1 y1 in px.
    crops
        (OBJECTS, m, m) uint8.
    """

    neighbours: Tensor
    logits: Tensor
    owners: Tensor
    sides: Tensor
    centreness: Tensor
    valid: Tensor
    regions: Tensor
    crops: Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a batch is to learn, on the device: at least one chunk, and the sums that losses are divided by.

    totals
        (2,) float32: how many locations are positive, and the sum of their centreness.
    """

    chunks: list[Chunk]
    totals: Tensor


def pack(
    truths: Sequence[Truth], assigned: Sequence[Assigned], grid: Grid, classes: int, device: torch.device
) -> Targets:
    """Put a batch's targets on the device: three copies, whatever is in the images."""
    # The positives of all images, one after the other, and the number of each one's object among all objects.
    image = np.repeat(np.arange(len(assigned)), [len(one.location) for one in assigned])
    location = np.concatenate([one.location for one in assigned])
    first = np.cumsum([0, *(len(one.boxes) for one in truths)])
    thing = np.concatenate([one.object for one in assigned]) + first[image]
    boxes, kinds, masks = (
        np.concatenate([getattr(one, name) for one in truths]) for name in ("boxes", "classes", "crops")
    )
    targets = np.concatenate(
        [
            np.concatenate([one.sides for one in assigned]),
            np.concatenate([one.centreness for one in assigned])[:, None],
            np.ones((len(image), 1), np.float32),
        ],
        axis=1,
    )
    spans = _spans(thing) or [slice(0, 0)]
    count = len(spans)
    floats = np.zeros((count, POSITIVES * 6 + OBJECTS * 5), np.float32)
    places = floats[:, : POSITIVES * 6].reshape(count, POSITIVES, 6)
    regions = floats[:, POSITIVES * 6 :].reshape(count, OBJECTS, 5)
    ints = np.zeros((count, POSITIVES, 11), np.int32)
    # A place without a location: it reads zeros, and is to predict a box of 2 by 2 strides.
    ints[:, :, :9], places[:, :, :4] = grid.count, 1
    crops = np.zeros((count, OBJECTS, *masks.shape[1:]), np.uint8)
    for number, part in enumerate(spans):
        here = slice(part.stop - part.start)
        things, owner = np.unique(thing[part], return_inverse=True)
        at, of = location[part], image[part]
        ints[number, here, :9] = grid.neighbours[at] + of[:, None] * (grid.count + 1)
        ints[number, here, 9] = (of * classes + kinds[thing[part]]) * grid.count + at
        ints[number, here, 10] = owner
        places[number, here] = targets[part]
        regions[number, : len(things), 0] = np.searchsorted(first, things, side="right") - 1
        regions[number, : len(things), 1:] = boxes[things]
        crops[number, : len(things)] = masks[things]
    totals = places[:, :, 5].sum(dtype=np.float64), places[:, :, 4].sum(dtype=np.float64)
    on_device = torch.from_numpy(np.append(floats.ravel(), np.array(totals, dtype=np.float32))).to(device)
    indices = torch.from_numpy(
        np.concatenate([ints[:, :, :9].reshape(count, -1), ints[:, :, 9], ints[:, :, 10]], axis=1)
    ).to(device)
    cut_out = torch.from_numpy(crops).to(device)
    chunks = []
    for number, row in enumerate(on_device[:-2].view(count, -1)):
        values = row[: POSITIVES * 6].view(POSITIVES, 6)
        around, logits, owners = indices[number].split([POSITIVES * 9, POSITIVES, POSITIVES])
        chunks.append(
            Chunk(
                neighbours=around,
                logits=logits,
                owners=owners,
                sides=values[:, :4],
                centreness=values[:, 4],
                valid=values[:, 5],
                regions=row[POSITIVES * 6 :].view(OBJECTS, 5),
                crops=cut_out[number],
            )
        )
    return Targets(chunks=chunks, totals=on_device[-2:])


def _spans(thing: Ints) -> list[slice]:
    """Cut positives, ordered by their object, into parts of at most POSITIVES, of at most OBJECTS objects."""
    number = np.cumsum(np.diff(thing, prepend=-1) != 0)
    spans = []
    start = 0
    while start < len(number):
        stop = min(start + POSITIVES, int(np.searchsorted(number, number[start] + OBJECTS)))
        spans.append(slice(start, stop))
        start = stop
    return spans
