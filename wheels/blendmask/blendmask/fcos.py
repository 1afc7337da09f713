"""FCOS: a class, a box and a centreness for every location of the pyramid (arXiv 1904.01355), without anchors.

Two things differ from the obvious way, not the numbers. What the box branch says is wanted at few locations only: in
training at the positive ones, and of BlendMask's 784 attention values per location, in use, at the detected objects. So
its last convolutions are done there, as a matrix product with the 3x3 windows around them. And no shape depends on what
is in the images, nor does the host wait for anything but the number of boxes that non-maximum suppression leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from torch import Tensor, nn
from torchvision.ops import nms

from blendmask.grid import Grid, grid_of, on_device


class FCOSHead(nn.Module):
    """The towers and the last convolutions, shared by all levels.

    Parameters
    ----------
    cfg
        `MODEL.FCOS` says all of it.
    channels
        Of all maps.
    """

    def __init__(self, cfg: CfgNode, channels: int) -> None:
        super().__init__()
        fcos = cfg.MODEL.FCOS
        self.share_tower = self._tower(fcos.NUM_SHARE_CONVS, channels, fcos.NORM)
        self.cls_tower = self._tower(fcos.NUM_CLS_CONVS, channels, fcos.NORM)
        self.bbox_tower = self._tower(fcos.NUM_BOX_CONVS, channels, fcos.NORM)
        self.cls_logits = nn.Conv2d(channels, fcos.NUM_CLASSES, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        prior = fcos.PRIOR_PROB
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))

    @staticmethod
    def _tower(count: int, channels: int, norm: str) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(count):
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
            if norm == "GN":
                layers.append(nn.GroupNorm(32, channels))
            layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    def towers(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the features of the class branch and of the box branch, by level, of the maps' shapes."""
        shared = [self.share_tower(one) for one in maps]
        return [self.cls_tower(one) for one in shared], [self.bbox_tower(one) for one in shared]


@PROPOSAL_GENERATOR_REGISTRY.register()
class FCOS(nn.Module):
    """What detectron2 calls a proposal generator: the head, and the boxes that are found with it.

    Parameters
    ----------
    cfg
        `MODEL.FCOS` says all of it.
    shapes
        The pyramid's, by name.
    """

    def __init__(self, cfg: CfgNode, shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        fcos = cfg.MODEL.FCOS
        self.in_features = list(fcos.IN_FEATURES)
        self.strides = tuple(fcos.FPN_STRIDES)
        self.fcos_head = FCOSHead(cfg, shapes[self.in_features[0]].channels)
        self.alpha, self.gamma = fcos.LOSS_ALPHA, fcos.LOSS_GAMMA
        self.threshold, self.overlap = fcos.INFERENCE_TH_TEST, fcos.NMS_TH
        self.candidates, self.slots = fcos.PRE_NMS_TOPK_TEST, fcos.POST_NMS_TOPK_TEST

    def forward(self, features: dict[str, Tensor]) -> Branches:
        """Run the towers and the classes' convolution."""
        maps = [features[name] for name in self.in_features]
        of_classes, of_boxes = self.fcos_head.towers(maps)
        return Branches(
            logits=[self.fcos_head.cls_logits(one).float() for one in of_classes],
            boxes=of_boxes,
            grid=grid_of(tuple((one.shape[-2], one.shape[-1]) for one in maps), self.strides),
        )

    def background_loss(self, logits: Tensor) -> Tensor:
        """Return the focal loss (arXiv 1708.02002) of (n, classes, count) logits, were nothing anywhere; a sum."""
        return self._negative(logits).sum()

    def class_loss(self, logits: Tensor, valid: Tensor) -> Tensor:
        """Return what is to be added to `background_loss` for the logits (p,) of what is there; a sum."""
        positive = self.alpha * torch.sigmoid(-logits) ** self.gamma * F.softplus(-logits)
        return ((positive - self._negative(logits)) * valid).sum()

    def _negative(self, logits: Tensor) -> Tensor:
        return (1 - self.alpha) * torch.sigmoid(logits) ** self.gamma * F.softplus(logits)

    def find(self, branches: Branches) -> list[Found]:
        """Find the boxes of each image: at most so many as there are slots."""
        head, grid = self.fcos_head, branches.grid
        table, _ = on_device(grid, branches.logits[0].device)
        scores, classes, places, sides = [], [], [], []
        for start, logits, features in zip(grid.starts, branches.logits, branches.boxes, strict=True):
            score = logits.flatten(2).sigmoid() * head.ctrness(features).float().flatten(2).sigmoid()
            count = score.shape[2]
            best = score.flatten(1).topk(min(self.candidates, score[0].numel()), dim=1)
            kind = best.indices.div(count, rounding_mode="floor")
            scores.append(best.values)
            classes.append(kind)
            places.append(best.indices - kind * count + start)
            sides.append(head.bbox_pred(features).float().flatten(2))
        score, kind, place = (torch.cat(part, dim=1) for part in (scores, classes, places))
        side = torch.cat(sides, dim=2).relu().transpose(1, 2) * table[:, 2:]
        middle = table[:, :2]
        boxes = torch.cat([middle - side[..., :2], middle + side[..., 2:]], dim=2)
        return [self._suppress(*image) for image in zip(boxes, score, kind, place, strict=True)]

    def _suppress(self, boxes: Tensor, scores: Tensor, classes: Tensor, places: Tensor) -> Found:
        """Suppress boxes that overlap better ones of their class; candidates below the threshold only fill slots."""
        # Far enough apart that boxes of two classes never overlap. Over all locations, not over the candidates, because
        # `blendmask.om` must find the same number without knowing the candidates below the threshold.
        extent = boxes.max() - boxes.min() + 1
        boxes = boxes.index_select(0, places)
        apart = boxes + (classes * extent)[:, None]
        kept = nms(apart, scores, self.overlap)[: self.slots]
        if boxes.device.type == "cpu":  # nothing compiles there: no empty slots
            kept = kept[scores[kept] > self.threshold]
        elif len(kept) < self.slots:
            scores = torch.cat([scores, scores.new_zeros(1)])
            kept = F.pad(kept, (0, self.slots - len(kept)), value=len(boxes))
            boxes, classes, places = (
                F.pad(one, (0, 0) * (one.dim() - 1) + (0, 1)) for one in (boxes, classes, places)
            )
        return Found(
            boxes=boxes.index_select(0, kept),
            scores=scores.index_select(0, kept),
            classes=classes.index_select(0, kept),
            places=places.index_select(0, kept),
        )


@dataclass(frozen=True, kw_only=True)
class Branches:
    """What both branches say of a batch of n images.

    logits
        Per level (n, classes, height, width), float32.
    boxes
        The box branch's features, per level (n, channels, height, width).
    grid
        The locations of all levels.
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Found:
    """The boxes of an image by falling score; slots at the end, whose score is below the threshold, are empty.

    boxes
        (slots, 4): x0 y0 x1 y1, px of the padded image.
    scores
        (slots,): probability of the class times centreness; the square root is what a detection states.
    classes, places
        (slots,) int64: places are locations of the grid.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    places: Tensor


def rows_of(maps: Sequence[Tensor]) -> Tensor:
    """Make maps (n, channels, height, width) rows, (n * (count + 1), channels): after each image's, one of zeros."""
    rows = [one.flatten(2).transpose(1, 2) for one in maps]
    images, _, channels = rows[0].shape
    return torch.cat([*rows, rows[0].new_zeros(images, 1, channels)], dim=1).flatten(0, 1)


def matrix_of(convolutions: Sequence[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """Return the weights (outputs, 9 * channels) and biases (outputs,) of 3x3 convolutions of the same maps.

    `F.linear(windows, *matrix_of(...))` is what they say where the windows are, with `windows_at`.
    """
    weights = torch.cat([one.weight for one in convolutions])
    return weights.permute(0, 2, 3, 1).flatten(1), torch.cat([one.bias for one in convolutions])


def windows_at(rows: Tensor, neighbours: Tensor) -> Tensor:
    """Gather 3x3 windows, (p, 9 * channels), of `rows_of` maps; `neighbours` (p * 9,) are places of rows."""
    return rows.index_select(0, neighbours).view(len(neighbours) // 9, 9 * rows.shape[1])


def box_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630), (p,), of distances (p, 4) to the left, top, right and bottom.

    The IoU of FCOS has 1 added to both areas.
    """
    smaller, larger = torch.minimum(predicted, target), torch.maximum(predicted, target)
    both, hull, one, other = (
        (side[:, 0] + side[:, 2]) * (side[:, 1] + side[:, 3]) for side in (smaller, larger, predicted, target)
    )
    union = one + other - both
    return 1 - (both + 1) / (union + 1) + (hull - union) / hull
