"""A region proposal network with the same shapes in every step, and without synchronisations in its losses.

mmdet's head selects anchors by index lists whose lengths change with each image: every operator on them has new shapes
(an NPU may have to compile for each), and the host must wait for each list's length. Here `topk` selects a fixed number
of anchors, and a weight of zero marks those that do not count. The learning is the same: the same anchors are positive,
negative and ignored, the same number is sampled uniformly, and the losses have the same value.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import nms
from mmdet.models.dense_heads import RPNHead
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.models.task_modules.samplers import RandomSampler
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor


def assign(
    anchors: Tensor, boxes: Tensor, positive: float, negative: float, low_quality: float | None
) -> Tensor:
    """Assign each anchor to a ground-truth box, to the background, or to nothing, as mmdet's `MaxIoUAssigner` does.

    Parameters
    ----------
    anchors
        (n, 4), x1 y1 x2 y2 in pixels.
    boxes
        (blocks, block size, 4), as `vitdet.preprocess.pad_boxes` returns them. They are processed one block at a time,
        so the shapes are always the same, and no matrix of all boxes and anchors exists.
    positive, negative
        An anchor is positive if its IoU with its best box is at least `positive`, negative if it is below `negative`,
        and ignored in between.
    low_quality
        A box also gets the anchors that overlap it the most, if their IoU is at least this (above 0); None for never.

    Returns
    -------
    Tensor
        (n,) int32: 1 + the box's number where positive, 0 where negative, -1 where ignored.
    """
    best = torch.zeros_like(anchors[:, 0])
    best_box = torch.zeros_like(best, dtype=torch.int32)
    rescued = torch.zeros_like(best_box)
    number = torch.arange(1, boxes.shape[1] + 1, dtype=torch.int32, device=anchors.device)[:, None]
    for start, block in enumerate(boxes):
        overlaps = bbox_overlaps(block, anchors)
        value, index = overlaps.max(dim=0)
        best_box = torch.where(value > best, index.int() + start * boxes.shape[1], best_box)
        best = torch.maximum(value, best)
        if low_quality is not None:
            highest = overlaps.max(dim=1, keepdim=True).values
            mine = (overlaps == highest) & (highest >= low_quality)
            # If several boxes claim an anchor, the last one gets it, as in mmdet.
            last = torch.where(mine, number + start * boxes.shape[1], 0).amax(dim=0)
            rescued = torch.maximum(last, rescued)
    assigned = torch.where(best >= positive, best_box + 1, -(best >= negative).int())
    return torch.where(rescued > 0, rescued, assigned)


@MODELS.register_module()
class FixedShapeRPNHead(RPNHead):
    """mmdet's `RPNHead`, with the same parameters, configuration and results.

    It needs images of one size and the `padded_boxes` of `FixedShapePreprocessor`. It raises ValueError for settings
    that it does not support: other assigners and samplers, bounds on negatives, ignored regions, anchors cut at the
    border.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._grids: dict[Any, tuple[list[Tensor], Tensor]] = {}
        if self.train_cfg:
            plain = (
                type(self.assigner) is MaxIoUAssigner
                and self.assigner.gt_max_assign_all
                and self.assigner.ignore_iof_thr <= 0
                and self.assigner.min_pos_iou > 0
                and type(self.sampler) is RandomSampler
                and self.sampler.neg_pos_ub < 0
                and self.train_cfg.allowed_border < 0
                and self.train_cfg.pos_weight <= 0
            )
            if not plain or self.reg_decoded_bbox or not self.use_sigmoid_cls:
                raise ValueError("FixedShapeRPNHead does not do all of this configuration: use RPNHead")

    def grid(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the anchors of each level, (n of the level, 4), and random keys, (2 n,) for all levels; both cached.

        A random draw is `keys[offset : offset + n]` with a random offset. It needs no copy to the device, and because
        the host draws the offset, the result is the same on every device.
        """
        sizes, device = tuple(tuple(one.shape[-2:]) for one in maps), maps[0].device
        if (sizes, device) not in self._grids:
            with torch.inference_mode(False):
                anchors = self.prior_generator.grid_priors(sizes, device=device)
                count = sum(map(len, anchors))
                keys = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(device)
                self._grids[sizes, device] = (anchors, torch.cat([keys, keys]))
        return self._grids[sizes, device]

    def draw(self, assigned: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the sampler's number of anchors at random from `assigned`, (n,) as `assign` returns it.

        Returns the indices of positives and of negatives, and for both a mask of the indices that count: all positives,
        up to the sampler's share, and negatives for the rest of the number.
        """
        count = len(assigned)
        offset = int(torch.randint(count, ()))
        keys = keys[offset : offset + count]
        most = min(self.sampler.num, count)
        positive = torch.where(assigned > 0, keys, -1.0).topk(
            min(int(most * self.sampler.pos_fraction), count)
        )
        negative = torch.where(assigned == 0, keys, -1.0).topk(most)
        is_positive = positive.values >= 0
        rank = torch.arange(most, device=assigned.device)
        is_negative = (negative.values >= 0) & (rank < self.sampler.num - is_positive.sum())
        return positive.indices, negative.indices, is_positive, is_negative

    def loss_and_predict(
        self, x: tuple[Tensor, ...], batch_data_samples: list[Any], proposal_cfg: Any = None
    ) -> tuple[dict[str, Tensor], list[InstanceData]]:
        """Return the losses, and the proposals for the second stage."""
        scores, deltas = self(x)
        losses = self.fixed_shape_loss(
            scores, deltas, [sample.padded_boxes.bboxes for sample in batch_data_samples]
        )
        metas = [sample.metainfo for sample in batch_data_samples]
        return losses, self.predict_by_feat(scores, deltas, batch_img_metas=metas, cfg=proposal_cfg)

    def fixed_shape_loss(
        self, scores: list[Tensor], deltas: list[Tensor], boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return both losses from maps (images, anchors per pixel [x 4], rows, columns) by level and boxes by image."""
        levels, keys = self.grid(scores)
        anchors = torch.cat(levels)
        score = torch.cat([by_anchor(one, 1) for one in scores], dim=1)[..., 0]
        delta = torch.cat([by_anchor(one, 4) for one in deltas], dim=1)
        parts = []
        for index, block in enumerate(boxes):
            low_quality = self.assigner.min_pos_iou if self.assigner.match_low_quality else None
            assigned = assign(
                anchors, block, self.assigner.pos_iou_thr, self.assigner.neg_iou_thr, low_quality
            )
            positive, negative, is_positive, is_negative = self.draw(assigned, keys)
            mine = anchors[positive]
            # If there are fewer positives, other anchors fill the places: each is its own target, with no weight.
            box = block.flatten(0, 1)[(assigned[positive] - 1).clamp(min=0).long()]
            target = self.bbox_coder.encode(mine, torch.where(is_positive[:, None], box, mine))
            picked = torch.cat([positive, negative])
            labels = torch.ones_like(picked)  # 1: background, the number of classes
            labels[: len(positive)] = 0
            weight = torch.cat([is_positive, is_negative]).float()
            # mmdet counts at least one of each kind.
            total = is_positive.sum().clamp(min=1) + is_negative.sum().clamp(min=1)
            parts.append((score[index, picked], labels, weight, delta[index, positive], target, total))
        score, labels, weight, delta, target = (
            torch.stack(part) for part in list(zip(*parts, strict=True))[:5]
        )
        total = sum(part[-1] for part in parts)
        of_positive = weight[:, : delta.shape[1], None].expand_as(delta)
        return {
            "loss_rpn_cls": self.loss_cls(
                score.reshape(-1, 1), labels.reshape(-1), weight.reshape(-1), avg_factor=total
            ),
            "loss_rpn_bbox": self.loss_bbox(delta, target, of_positive, avg_factor=total),
        }

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: None = None,
        batch_img_metas: list[dict[str, Any]] | None = None,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """Return the proposals of each image, the best first: `bboxes` (k, 4) in input pixels, `scores`, `labels` (0).

        The host has to synchronise only for k, the number of proposals after non-maximum suppression, twice per image.
        """
        if rescale or not with_nms:
            raise ValueError("region proposals are in pixels of the network's input, after nms")
        cfg = cfg or self.test_cfg
        levels, _ = self.grid(cls_scores)
        scores, deltas, anchors, level_of = [], [], [], []
        for level, own in enumerate(levels):
            logits = by_anchor(cls_scores[level].detach(), 1)[..., 0].float()
            top = logits.sigmoid().topk(min(cfg.nms_pre, len(own)), dim=1)
            places = top.indices[..., None].expand(-1, -1, 4)
            scores.append(top.values)
            deltas.append(by_anchor(bbox_preds[level].detach(), 4).float().gather(1, places))
            anchors.append(own[top.indices])
            level_of.append(torch.full_like(top.values[0], level))
        score, delta, anchor = (torch.cat(part, dim=1) for part in (scores, deltas, anchors))
        level_of = torch.cat(level_of)
        assert batch_img_metas is not None
        return [
            self.suppress(
                self.bbox_coder.decode(anchor[index], delta[index], max_shape=meta["img_shape"]),
                score[index],
                level_of,
                cfg,
            )
            for index, meta in enumerate(batch_img_metas)
        ]

    def suppress(self, boxes: Tensor, scores: Tensor, level: Tensor, cfg: Any) -> InstanceData:
        """Return the proposals after non-maximum suppression within each level, without boxes that are too small."""
        smallest = cfg.get("min_bbox_size", -1)
        valid = ((boxes[:, 2:] - boxes[:, :2]) > smallest).all(dim=1)
        scores = torch.where(valid, scores, -1.0)
        # Shift the levels so far apart that boxes of different levels never overlap.
        apart = boxes + (level * (boxes.max() + 1))[:, None]
        kept, order = nms(apart, scores, cfg.nms["iou_threshold"], max_num=cfg.max_per_img)
        scores, boxes = kept[:, 4], boxes[order]
        count = int((scores >= 0).sum()) if smallest >= 0 else len(scores)
        return InstanceData(
            bboxes=boxes[:count],
            scores=scores[:count],
            labels=torch.zeros_like(scores[:count], dtype=torch.long),
        )


def by_anchor(map_: Tensor, channels: int) -> Tensor:
    """Return a map (images, anchors per pixel * channels, rows, columns) as (images, anchors, channels)."""
    return map_.permute(0, 2, 3, 1).reshape(len(map_), -1, channels)
