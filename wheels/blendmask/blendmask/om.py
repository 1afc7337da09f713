"""What the host does for an exported BlendMask: before, between and after its two device stages; in numpy.

`preprocess` scales the pictures as detectron2 does, `select` makes boxes of what the detector says of every location,
and `paste` turns the blended masks into RLE of the whole picture. They give what `blendmask.model.BlendMask` gives, but
need neither torch nor detectron2.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from ascendet_common.images import ImageError
from PIL import Image
from staged_om.host import Batch, Detections, DeviceStep, HostStep, Step
from staged_om.meta import Meta
from staged_om.nms import suppress
from staged_om.rle import encode

from blendmask.grid import Grid

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

PICTURE, ROWS, COLUMNS = "picture", "rows", "columns"
BASES, FEATURES, ATTENTION = "bases", "features", "attention"
BOXES, NEIGHBOURS, PLACES, MASKS = "boxes", "neighbours", "places", "masks"
_KEPT = "blendmask.kept"  # what `select` leaves for `paste`


def scores_of(level: str) -> str:
    """Return the name of the detector's output with a level's scores."""
    return f"scores_{level}"


def sides_of(level: str) -> str:
    """Return the name of the detector's output with a level's distances to the sides of boxes."""
    return f"sides_{level}"


def pipeline(meta: Meta) -> tuple[Step, ...]:
    """Return the steps of a BlendMask that `blendmask.export` wrote."""
    host = Host(meta)
    return (
        HostStep(name="preprocess", run=host.preprocess, writes=host.pictures),
        DeviceStep(stage="detector"),
        HostStep(name="select", run=host.select, reads=host.maps, writes=(BOXES, host.indices)),
        DeviceStep(stage="blend"),
        HostStep(name="paste", run=host.paste, reads=(MASKS,)),
    )


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Classes found at locations, in no particular order.

    Attributes
    ----------
    scores
        float32 [n]: probability of the class times centreness.
    classes, places
        int64 [n]: `places` are locations of the grid.
    """

    scores: Floats
    classes: Integers
    places: Integers


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The boxes of one picture by falling score, at most as many as slots; boxes in pixels of the scaled picture."""

    boxes: Floats
    found: Candidates


class Host:
    """The host's part of one exported model.

    Parameters
    ----------
    meta
        Of the exported model; `Meta.host` has what `blendmask.export.host_facts` puts there.
    """

    def __init__(self, meta: Meta) -> None:
        facts = meta.host
        self.batch, self.size = meta.batch, (meta.height, meta.width)
        # Normalised values by channel and byte: the operations of PyTorch, in float32.
        mean, std = (np.array(facts[name], np.float32)[:, None] for name in ("mean", "std"))
        self.values = (np.arange(256, dtype=np.float32) - mean) / std
        self.shortest, self.longest = int(facts["min_size"]), int(facts["max_size"])
        self.threshold, self.overlap = float(facts["threshold"]), float(facts["overlap"])
        self.candidates, self.slots = int(facts["candidates"]), int(facts["slots"])
        self.levels = tuple(facts["levels"])
        self.maps = (*map(scores_of, self.levels), *map(sides_of, self.levels))
        detector, blend = meta.stages
        self.pictures = tuple(port.name for port in detector.inputs)
        (self.indices,) = (port.name for port in blend.inputs if port.name in (NEIGHBOURS, PLACES))
        shapes = {port.name: port.shape for port in detector.outputs}
        sizes = [shapes[scores_of(level)][-2:] for level in self.levels]
        self.grid = Grid([(height, width) for height, width in sizes], facts["strides"])
        self.middles = np.ascontiguousarray(self.grid.table()[:, :2].T.astype(np.float32))

    # -- before the detector --

    def preprocess(self, batch: Batch) -> None:
        """Scale the pictures and put each into the top left of a place of the batch.

        `picture` gets float32 [batch, 3, height, width], normalised, 0 where no picture is; or, if the stage has the
        inputs `rows` and `columns`, uint8 [batch, height, width, 3], which AIPP normalises, and these float32
        [batch, 1, height, 1] and [batch, 1, 1, width], 1 where the picture is.

        Raises
        ------
        ImageError
            A picture's shape leaves nothing of it after scaling.
        """
        scaled = [self.scale(pixels) for pixels in batch.pictures]
        if ROWS in self.pictures:
            pixels = np.zeros((self.batch, *self.size, 3), np.uint8)
            rows = np.zeros((self.batch, 1, self.size[0], 1), np.float32)
            columns = np.zeros((self.batch, 1, 1, self.size[1]), np.float32)
            for number, one in enumerate(scaled):
                height, width = one.shape[:2]
                pixels[number, :height, :width] = one
                rows[number, :, :height] = columns[number, ..., :width] = 1
            batch.values |= {PICTURE: pixels, ROWS: rows, COLUMNS: columns}
        else:
            values = np.zeros((self.batch, 3, *self.size), np.float32)
            for one, place in zip(scaled, values, strict=False):
                height, width = one.shape[:2]
                inside = place[:, :height, :width]
                for channel, table in enumerate(self.values):
                    inside[channel] = cv2.LUT(one[:, :, channel], table)
            batch.values[PICTURE] = values
        batch.values[_KEPT] = [one.shape[:2] for one in scaled]

    def scale(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Scale a picture [height, width, 3] as detectron2's ResizeShortestEdge does, but to fit into the input."""
        height, width = self.scaled_size(*pixels.shape[:2])
        if not height or not width:
            raise ImageError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels cannot be scaled")
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of a scaled picture: the shorter side `shortest`, the longer at most `longest`.

        Where that is larger than the input, such as a picture in portrait format for an input in landscape format, it
        is the largest of the same aspect that fits.
        """
        down, across = float(height), float(width)
        if self.shortest:
            factor = self.shortest / min(height, width)
            # The shorter side is exact, not a product; rounded is at the end: so does detectron2.
            down, across = (
                (self.shortest, factor * width) if height < width else (factor * height, self.shortest)
            )
            if max(down, across) > self.longest:
                factor = self.longest / max(down, across)
                down, across = down * factor, across * factor
        rows, columns = int(down + 0.5), int(across + 0.5)
        if rows > self.size[0] or columns > self.size[1]:
            factor = min(self.size[0] / down, self.size[1] / across)
            rows = min(int(down * factor + 0.5), self.size[0])
            columns = min(int(across * factor + 0.5), self.size[1])
        return rows, columns

    # -- between the stages --

    def select(self, batch: Batch) -> None:
        """Choose the boxes of each picture, and say where the blender finds their attention.

        `boxes` gets float32 [batch * slots, 4], x0 y0 x1 y1 in pixels of the input, zeros in empty slots. `neighbours`
        gets int32 [batch * slots * 9]: the rows of `features` around the boxes' locations; or `places` int32
        [batch * slots], the rows of `attention`.
        """
        slots, count = self.slots, self.grid.count
        boxes = np.zeros((self.batch * slots, 4), np.float32)
        if self.indices == NEIGHBOURS:
            indices = np.full((self.batch * slots, 9), count, np.int32)
        else:
            indices = np.zeros((self.batch * slots, 1), np.int32)
        kept = []
        for number, size in enumerate(batch.values[_KEPT]):
            one = self.find(*([batch.values[name][number] for name in kind] for kind in self.kinds))
            kept.append((size, one))
            rows = slice(number * slots, number * slots + len(one.boxes))
            boxes[rows] = one.boxes
            if self.indices == NEIGHBOURS:
                indices[rows] = self.grid.neighbours[one.found.places] + number * (count + 1)
            else:
                indices[rows, 0] = one.found.places + number * count
        batch.values |= {BOXES: boxes, self.indices: indices.reshape(-1), _KEPT: kept}

    @property
    def kinds(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the scores and of the sides."""
        return self.maps[: len(self.levels)], self.maps[len(self.levels) :]

    def find(self, scores: list[Floats], sides: list[Floats]) -> _Found:
        """Return the boxes of one picture: scores [classes, height, width] and sides [4, height, width] per level."""
        candidates = _concatenate(
            [
                best(one, self.threshold, self.candidates, start)
                for one, start in zip(scores, self.grid.starts, strict=True)
            ]
        )
        distances = np.concatenate([one.reshape(4, -1) for one in sides], axis=1)
        corners = np.concatenate([self.middles - distances[:2], self.middles + distances[2:]])
        # As in `blendmask.fcos`: far enough apart that boxes of two classes never overlap.
        extent = corners.max() - corners.min() + np.float32(1)
        order = np.argsort(-candidates.scores, kind="stable")
        boxes = corners[:, candidates.places[order]].T
        classes = candidates.classes[order]
        apart = boxes + (classes.astype(np.float32) * extent)[:, None]
        # torchvision compares float32 overlaps with a double. Not by classes, of which there may be many: numpy's calls
        # for each would take longer than comparing all.
        kept = suppress(apart, np.float64(self.overlap), self.slots)
        order = order[kept]
        return _Found(
            boxes=boxes[kept],
            found=Candidates(
                scores=candidates.scores[order],
                classes=candidates.classes[order],
                places=candidates.places[order],
            ),
        )

    # -- after the blender --

    def paste(self, batch: Batch) -> None:
        """Write the detections: boxes and masks in pixels of the pictures as they were given."""
        masks = batch.values[MASKS]
        kept = batch.values[_KEPT]
        batch.detections = []
        for number, (pixels, ((rows, columns), one)) in enumerate(zip(batch.pictures, kept, strict=True)):
            height, width = pixels.shape[:2]
            across, down = np.float32(width / columns), np.float32(height / rows)
            boxes = one.boxes * np.array([across, down, across, down])
            boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
            there = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).nonzero()[0]
            boxes = boxes[there]
            batch.detections.append(
                Detections(
                    boxes=boxes,
                    scores=np.sqrt(one.found.scores[there]),
                    labels=one.found.classes[there],
                    masks=encode(masks[number * self.slots + there], boxes, height, width),
                )
            )


def _concatenate(parts: list[Candidates]) -> Candidates:
    return Candidates(
        scores=np.concatenate([part.scores for part in parts]),
        classes=np.concatenate([part.classes for part in parts]),
        places=np.concatenate([part.places for part in parts]),
    )


def best(scores: Floats, threshold: float, limit: int, start: int) -> Candidates:
    """Return the best scores [classes, height, width] of a level above a threshold, at most `limit`.

    `start` is the number of the level's first location.
    """
    flat = scores.reshape(-1)
    indices = np.flatnonzero(flat > np.float32(threshold))
    if len(indices) > limit:
        indices = indices[np.argpartition(flat[indices], len(indices) - limit)[-limit:]]
        indices.sort()
    classes, places = np.divmod(indices, flat.size // len(scores))
    return Candidates(scores=flat[indices], classes=classes, places=places + start)
