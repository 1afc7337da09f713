"""What the host does for an exported ViTDet: before, between and after its four device stages; in numpy and OpenCV.

`preprocess` scales pictures as the test pipeline does, `proposals` makes regions of the RPN's maps, `select` makes
detections of what the box head says of them, and `paste` turns their masks into RLE of the whole picture. They give
what the detector's own `predict` gives, but need neither PyTorch nor mmdetection.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from ascendet_common.images import ImageError
from staged_om.host import Batch, Detections, DeviceStep, HostStep, Step
from staged_om.meta import Meta
from staged_om.nms import suppress
from staged_om.rle import encode

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

PICTURE, ROIS, BOXES, ROWS = "picture", "rois", "boxes", "rows"
SCORES, DELTAS, MASKS = "scores", "deltas", "masks"
# What steps leave for later ones.
_SCALED, _PROPOSALS, _FOUND = "vitdet.scaled", "vitdet.proposals", "vitdet.found"
# Boxes grow and shrink at most by this factor when they are decoded (mmdet's wh_ratio_clip).
_LARGEST_LOG = np.float32(abs(math.log(16 / 1000)))

_PARTED = 16  # `top` looks at every part of so many values first: 0.3 ms for 196,608 values, not 1.1 ms


def features(levels: int) -> tuple[str, ...]:
    """Return the names of the pyramid's maps, such as p2 to p6."""
    return tuple(f"p{level + 2}" for level in range(levels))


def rpn_scores(levels: int) -> tuple[str, ...]:
    """Return the names of the RPN's maps of logits."""
    return tuple(f"rpn_scores_{name}" for name in features(levels))


def rpn_deltas(levels: int) -> tuple[str, ...]:
    """Return the names of the RPN's maps of deltas."""
    return tuple(f"rpn_deltas_{name}" for name in features(levels))


def pipeline(meta: Meta) -> tuple[Step, ...]:
    """Return the steps of a ViTDet that `vitdet.export` wrote."""
    host = Host(meta)
    return (
        HostStep(name="preprocess", run=host.preprocess, writes=(PICTURE,)),
        DeviceStep(stage="backbone"),
        DeviceStep(stage="rpn"),
        HostStep(
            name="proposals", run=host.proposals, reads=(*host.score_maps, *host.delta_maps), writes=(ROIS,)
        ),
        DeviceStep(stage="roi"),
        HostStep(name="select", run=host.select, reads=(SCORES, DELTAS), writes=host.selected),
        DeviceStep(stage="mask"),
        HostStep(name="paste", run=host.paste, reads=(MASKS,)),
    )


class Scaled:
    """How a picture became a part of the input.

    Attributes
    ----------
    factors
        float32 [4]: width, height, width, height of the scaled picture by that of the picture.
    limit
        (height, width) at which boxes end, px of the input.
    """

    def __init__(self, picture: tuple[int, int], scaled: tuple[int, int], limit: tuple[int, int]) -> None:
        down, across = scaled[0] / picture[0], scaled[1] / picture[1]
        self.factors = np.array([across, down, across, down], np.float32)
        self.limit = limit


class Host:
    """The host's part of one exported model.

    Parameters
    ----------
    meta
        Of the exported model; `Meta.host` has what `vitdet.export` puts there.
    """

    def __init__(self, meta: Meta) -> None:
        facts = meta.host
        self.batch, self.size = meta.batch, (meta.height, meta.width)
        self.bytes = PICTURE in facts.get("aipp", {})
        self.pad: list[int] | None = facts["pad"]
        # Normalised values by channel of the input (RGB) and byte: the operations of PyTorch, in float32.
        mean, std = (np.array(facts[name], np.float32)[:, None] for name in ("mean", "std"))
        self.values = (np.arange(256, dtype=np.float32) - mean) / std
        levels = int(facts["levels"])
        self.score_maps, self.delta_maps = rpn_scores(levels), rpn_deltas(levels)
        self.anchors = [np.array(base, np.float32) for base in facts["anchors"]]
        self.strides = [np.array([x, y, x, y], np.float32) for x, y in facts["strides"]]
        self.rpn, self.rpn_coder, self.box_coder = facts["rpn"], facts["rpn_coder"], facts["box_coder"]
        self.class_agnostic = bool(facts["class_agnostic_boxes"])
        self.score, self.overlap = float(facts["score"]), float(facts["overlap"])
        self.detections, self.threshold = int(facts["detections"]), float(facts["mask"])
        self.classes = len(meta.classes)
        self.selected = (BOXES,) if facts["class_agnostic_masks"] else (BOXES, ROWS)

    # -- before the backbone --

    def preprocess(self, batch: Batch) -> None:
        """Scale the pictures and put each into the top left of a place of the batch.

        `picture` gets float32 [batch, 3, height, width], RGB, normalised; or, with AIPP, the bytes themselves, uint8
        [batch, height, width, 3], BGR.

        Raises
        ------
        ImageError
            A picture's shape leaves nothing of it after scaling.
        """
        pixels = np.zeros((self.batch, *self.size, 3), np.uint8) if self.bytes else None
        values = None if self.bytes else np.zeros((self.batch, 3, *self.size), np.float32)
        scaled = []
        for number, picture in enumerate(batch.pictures):
            one = self.scale(picture)
            rows, columns = one.shape[:2]
            if self.pad is not None:
                one = cv2.copyMakeBorder(
                    one,
                    0,
                    self.size[0] - rows,
                    0,
                    self.size[1] - columns,
                    cv2.BORDER_CONSTANT,
                    value=self.pad,
                )
            if pixels is not None:
                pixels[number] = one
            elif values is not None:
                for channel, table in enumerate(self.values):
                    part = cv2.LUT(cv2.extractChannel(one, 2 - channel), table)
                    values[number, channel, : part.shape[0], : part.shape[1]] = part
            limit = self.size if self.pad is not None else (rows, columns)
            scaled.append(Scaled(picture.shape[:2], (rows, columns), limit))
        batch.values |= {PICTURE: values if pixels is None else pixels, _SCALED: scaled}

    def scale(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Scale a picture [height, width, 3] to fit into the input, as mmcv's `imrescale` does for a square one."""
        height, width = pixels.shape[:2]
        factor = min(self.size[0] / height, self.size[1] / width)
        rows, columns = int(height * factor + 0.5), int(width * factor + 0.5)
        if not rows or not columns:
            raise ImageError(f"{width} x {height} pixels cannot be scaled")
        return np.asarray(cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_LINEAR))

    # -- between the stages --

    def proposals(self, batch: Batch) -> None:
        """Choose the regions of each picture: `rois` gets float32 [batch * proposals, 5], zeros in empty places.

        The first column is the picture's number in the batch, the others are x0 y0 x1 y1 in pixels of the input.
        """
        most = int(self.rpn["proposals"])
        rois = np.zeros((self.batch, most, 5), np.float32)
        rois[..., 0] = np.arange(self.batch)[:, None]
        chosen = []
        for number, scaled in enumerate(batch.values[_SCALED]):
            scores = [batch.values[name][number] for name in self.score_maps]
            deltas = [batch.values[name][number] for name in self.delta_maps]
            boxes = self.propose(scores, deltas, scaled.limit)
            rois[number, : len(boxes), 1:] = boxes
            chosen.append(boxes)
        batch.values |= {ROIS: rois.reshape(-1, 5), _PROPOSALS: chosen}

    def propose(self, scores: list[Floats], deltas: list[Floats], limit: tuple[int, int]) -> Floats:
        """Return the proposals of one picture, the best first, [k, 4].

        `scores` are logits [anchors, h, w], `deltas` [4 * anchors, h, w] per level. Within a level the order is that of
        the logits; mmdet's is that of their sigmoids, and arbitrary where float32 makes them equal.
        """
        parts = []
        for level, (logits, delta) in enumerate(zip(scores, deltas, strict=True)):
            flat = logits.reshape(-1)
            best = top(flat, int(self.rpn["candidates"]))
            anchor, place = np.divmod(best, logits[0].size)
            row, column = np.divmod(place, logits.shape[2])
            at = np.stack([column, row, column, row], axis=1).astype(np.float32) * self.strides[level]
            moves = delta.reshape(len(self.anchors[level]), 4, -1)[anchor, :, place]
            boxes = decode(self.anchors[level][anchor] + at, moves, self.rpn_coder, limit)
            parts.append((boxes, flat[best], np.full(len(best), level)))
        boxes, logits, levels = (np.concatenate(part) for part in zip(*parts, strict=True))
        with np.errstate(over="ignore"):
            sigmoids = 1 / (1 + np.exp(-logits))
        apart = boxes + (levels.astype(np.float32) * (boxes.max() + 1))[:, None]
        order = np.argsort(-sigmoids, kind="stable")
        smallest = self.rpn["smallest"]
        if smallest >= 0:
            width, height = (boxes[:, 2:] - boxes[:, :2]).T
            order = order[((width > smallest) & (height > smallest))[order]]
        kept = suppress(apart[order], float(self.rpn["overlap"]), int(self.rpn["proposals"]), levels[order])
        return boxes[order[kept]]

    def select(self, batch: Batch) -> None:
        """Choose the detections of each picture, for which masks are computed.

        `boxes` gets float32 [batch * detections, 5] like `rois`; `rows`, unless masks are class-agnostic, int32
        [batch * detections]: which of all masks [batch * detections * classes] each of them has.
        """
        boxes = np.zeros((self.batch, self.detections, 5), np.float32)
        boxes[..., 0] = np.arange(self.batch)[:, None]
        labels = np.zeros((self.batch, self.detections), np.int64)
        most = int(self.rpn["proposals"])
        all_found = []
        for number, (proposals, scaled) in enumerate(
            zip(batch.values[_PROPOSALS], batch.values[_SCALED], strict=True)
        ):
            mine = slice(number * most, number * most + len(proposals))
            found = self.find(proposals, batch.values[SCORES][mine], batch.values[DELTAS][mine], scaled.limit)
            count = len(found.boxes)
            boxes[number, :count, 1:], labels[number, :count] = found.boxes, found.labels
            all_found.append(found)
        rows = np.arange(labels.size) * self.classes + labels.reshape(-1)
        batch.values |= {BOXES: boxes.reshape(-1, 5), ROWS: rows.astype(np.int32), _FOUND: all_found}

    def find(self, proposals: Floats, scores: Floats, deltas: Floats, limit: tuple[int, int]) -> Detections:
        """Return the detections of one picture in pixels of the input, without masks.

        `proposals` [k, 4]; `scores` are logits [k, classes + 1], the background last; `deltas` [k, 4], or
        [k, 4 * classes].
        """
        shifted = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
        probabilities = (shifted / shifted.sum(axis=1, keepdims=True))[:, :-1]
        region, label = np.nonzero(probabilities > np.float32(self.score))
        score = probabilities[region, label]
        moves = deltas if self.class_agnostic else deltas.reshape(-1, self.classes, 4)[region, label]
        boxes = decode(
            proposals[region], moves[region] if self.class_agnostic else moves, self.box_coder, limit
        )
        # As mmdet's batched_nms: so far apart that boxes of two classes never overlap.
        apart = boxes + (label.astype(np.float32) * (boxes.max(initial=0) + 1))[:, None]
        order = np.argsort(-score, kind="stable")
        order = order[suppress(apart[order], self.overlap, self.detections)]
        return Detections(boxes=boxes[order], scores=score[order], labels=label[order])

    # -- after the mask head --

    def paste(self, batch: Batch) -> None:
        """Write the detections: boxes and masks in pixels of the pictures as they were given."""
        batch.detections = []
        for number, (found, scaled) in enumerate(
            zip(batch.values[_FOUND], batch.values[_SCALED], strict=True)
        ):
            logits = batch.values[MASKS][number * self.detections :][: len(found.boxes)]
            boxes = found.boxes / scaled.factors
            with np.errstate(over="ignore"):
                masks = 1 / (1 + np.exp(-logits))
            height, width = batch.pictures[number].shape[:2]
            batch.detections.append(
                Detections(
                    boxes=boxes,
                    scores=found.scores,
                    labels=found.labels,
                    masks=encode(masks, boxes, height, width, self.threshold),
                )
            )


def top(values: Floats, count: int) -> Integers:
    """Return the indices of the `count` largest values [n], the largest first, of equal ones the first."""
    chosen = np.arange(len(values))
    parts = len(values) // _PARTED
    if parts > count:
        # As many parts as are wanted have a value of at least `least`: nothing below it can be among the largest.
        largest = values[: parts * _PARTED].reshape(_PARTED, parts).max(axis=0)
        chosen = np.flatnonzero(values >= np.partition(largest, parts - count)[parts - count])
    if len(chosen) > count:
        left = values[chosen]
        chosen = chosen[left >= np.partition(left, len(left) - count)[len(left) - count]]
    return chosen[np.argsort(-values[chosen], kind="stable")][:count]


def decode(boxes: Floats, deltas: Floats, coder: dict[str, Any], limit: tuple[int, int]) -> Floats:
    """Return boxes [n, 4] moved by deltas [n, 4], cut off at `limit` (height, width): mmdet's `delta2bbox`."""
    moves = deltas * np.array(coder["stds"], np.float32) + np.array(coder["means"], np.float32)
    middle = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
    sides = boxes[:, 2:] - boxes[:, :2]
    middle = middle + sides * moves[:, :2]
    half = sides * np.exp(moves[:, 2:].clip(-_LARGEST_LOG, _LARGEST_LOG)) * np.float32(0.5)
    out = np.concatenate([middle - half, middle + half], axis=1)
    out[:, 0::2] = out[:, 0::2].clip(0, limit[1])
    out[:, 1::2] = out[:, 1::2].clip(0, limit[0])
    return out
