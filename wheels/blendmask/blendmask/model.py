"""BlendMask (arXiv 2001.00309): FCOS finds objects, and says for each how to blend a few bases into its mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_proposal_generator
from detectron2.structures import Boxes, Instances
from torch import Tensor, distributed, nn

import blendmask.backbone  # noqa: F401  # registers the backbone by its name in configurations
from blendmask.bases import ProtoNet
from blendmask.blender import Blender
from blendmask.fcos import Branches, Found, box_loss, matrix_of, rows_of, windows_at
from blendmask.grid import on_device
from blendmask.targets import Targets, Truth, assign, pack

Sample = Mapping[str, Any]


@META_ARCH_REGISTRY.register()
class BlendMask(nn.Module):
    """The model, as detectron2 knows one: it takes a list of samples and gives losses or `Instances`.

    A sample is a dictionary of detectron2's: `image` (3, height, width), BGR, 0 to 255; for training `instances` with
    `gt_boxes`, `gt_classes` and `gt_masks` (or `gt_crops`, as `blendmask.mapper` makes them) and `basis_sem`
    (height, width), class + 1 where an object is; for use `height` and `width`, the size that masks should have. All of
    it on the host: what the device needs is sent in as few copies as possible.

    Parameters
    ----------
    cfg
        A configuration that `blendmask.config.check` accepts.

    Attributes
    ----------
    padded
        The (height, width) that batches are padded to, px; None, as it is made: as little as the pyramid allows.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.padded: tuple[int, int] | None = None
        self.backbone = build_backbone(cfg)
        shapes = self.backbone.output_shape()
        self.proposal_generator = build_proposal_generator(cfg, shapes)
        self.basis_module = ProtoNet(cfg, shapes)
        self.blender = Blender(cfg)
        channels = shapes[cfg.MODEL.FCOS.IN_FEATURES[0]].channels
        self.top_layer = nn.Conv2d(channels, self.blender.channels, 3, padding=1)
        nn.init.normal_(self.top_layer.weight, std=0.01)
        nn.init.zeros_(self.top_layer.bias)

        fcos = cfg.MODEL.FCOS
        self.classes = fcos.NUM_CLASSES
        self.sizes_of_interest = list(fcos.SIZES_OF_INTEREST)
        self.radius = fcos.POS_RADIUS if fcos.CENTER_SAMPLE else None
        self.semantic_stride = (
            cfg.MODEL.BASIS_MODULE.COMMON_STRIDE if cfg.MODEL.BASIS_MODULE.LOSS_ON else None
        )
        self.mask_weight = cfg.MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT
        self.register_buffer(
            "pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Return five losses while training, otherwise `instances` per sample, on the host.

        These have `pred_boxes`, `scores`, `pred_classes` and `pred_masks` (k, height, width) bool, by falling score.
        """
        if self.training:
            return self.losses(samples)
        with torch.no_grad():
            return self.detect(samples)

    def batch(self, samples: Sequence[Sample]) -> Tensor:
        """Send the images to the device, normalised, padded with 0 at the right and bottom: (n, 3, height, width)."""
        images = [sample["image"] for sample in samples]
        divisor = self.backbone.size_divisibility
        height, width = self.padded or (
            -(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2)
        )
        # A fourth channel tells where an image is: one copy, and the same shapes whatever the images' sizes are.
        batch = images[0].new_zeros(len(images), 4, height, width)
        for image, place in zip(images, batch, strict=True):
            rows, columns = image.shape[1:]
            place[:3, :rows, :columns] = image
            place[3, :rows, :columns] = 1
        values = batch.to(self.device).float()
        return (values[:, :3] - self.pixel_mean) / self.pixel_std * values[:, 3:]

    # -- training --

    def losses(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the losses of a batch; all parameters take part, whatever is in the images."""
        images = self.batch(samples)
        features = self.backbone(images)
        branches: Branches = self.proposal_generator(features)
        targets = self.targets(samples, branches)
        losses = self.object_losses(branches, self.basis_module(features), targets)
        if self.semantic_stride:
            classes = self.semantic_targets(samples, images.shape[-2:]).to(self.device)
            losses |= self.basis_module.losses(features, classes)
        return losses

    def targets(self, samples: Sequence[Sample], branches: Branches) -> Targets:
        """Return what the samples' objects mean for the locations of a batch."""
        truths = [truth_of(sample["instances"], self.blender.size) for sample in samples]
        assigned = [
            assign(truth.boxes, branches.grid, self.sizes_of_interest, self.radius) for truth in truths
        ]
        return pack(truths, assigned, branches.grid, self.classes, self.device)

    def object_losses(self, branches: Branches, bases: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return the losses of classes, boxes, centreness and masks, divided by sums over all ranks."""
        fcos = self.proposal_generator
        rows = rows_of(branches.boxes)
        matrix = matrix_of([fcos.fcos_head.bbox_pred, fcos.fcos_head.ctrness, self.top_layer])
        logits = torch.cat([one.flatten(2) for one in branches.logits], dim=2)
        by_class = [fcos.background_loss(logits)]
        by_box, by_centre, by_mask = [], [], []
        for chunk in targets.chunks:
            said = F.linear(windows_at(rows, chunk.neighbours), *matrix)
            sides, centre, attention = said.split([4, 1, self.blender.channels], dim=1)
            by_class.append(fcos.class_loss(logits.flatten().index_select(0, chunk.logits), chunk.valid))
            by_box.append((box_loss(sides.float().relu(), chunk.sides) * chunk.centreness).sum())
            centre_loss = F.binary_cross_entropy_with_logits(
                centre[:, 0].float(), chunk.centreness, reduction="none"
            )
            by_centre.append((centre_loss * chunk.valid).sum())
            pooled = self.blender.pool(bases, chunk.regions).index_select(0, chunk.owners)
            mask_loss = F.binary_cross_entropy_with_logits(
                self.blender.blend(pooled, attention),
                chunk.crops.index_select(0, chunk.owners).float(),
                reduction="none",
            )
            by_mask.append((mask_loss.mean(dim=(1, 2)) * chunk.centreness).sum())
        totals = targets.totals
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(totals)
            totals = totals / distributed.get_world_size()
        positives, centreness = totals[0].clamp(min=1), totals[1].clamp(min=1e-6)
        return {
            "loss_fcos_cls": sum(by_class) / positives,
            "loss_fcos_loc": sum(by_box) / centreness,
            "loss_fcos_ctr": sum(by_centre) / positives,
            "loss_mask": sum(by_mask) / centreness * self.mask_weight,
        }

    def semantic_targets(self, samples: Sequence[Sample], size: tuple[int, int]) -> Tensor:
        """Return every `semantic_stride`th pixel of the samples' `basis_sem`, padded with 0; on the host."""
        stride = self.semantic_stride
        assert stride is not None
        classes = [sample["basis_sem"][::stride, ::stride] for sample in samples]
        batch = classes[0].new_zeros(len(samples), size[0] // stride, size[1] // stride)
        for one, place in zip(classes, batch, strict=True):
            place[: one.shape[0], : one.shape[1]] = one
        return batch

    # -- use --

    def detect(self, samples: Sequence[Sample]) -> list[dict[str, Instances]]:
        """Return what is found in each image."""
        features = self.backbone(self.batch(samples))
        branches: Branches = self.proposal_generator(features)
        bases = self.basis_module(features)
        rows = rows_of(branches.boxes)
        matrix = matrix_of([self.top_layer])
        _, neighbours = on_device(branches.grid, self.device)
        results = []
        for number, (sample, found) in enumerate(
            zip(samples, self.proposal_generator.find(branches), strict=True)
        ):
            around = neighbours.index_select(0, found.places).flatten() + number * (branches.grid.count + 1)
            attention = F.linear(windows_at(rows, around), *matrix)
            regions = F.pad(found.boxes, (1, 0))
            pooled = self.blender.pool(bases[number : number + 1], regions)
            masks = self.blender.blend(pooled, attention).sigmoid()
            results.append({"instances": self.describe(found, masks, sample)})
        return results

    def describe(self, found: Found, masks: Tensor, sample: Sample) -> Instances:
        """Put what was found into the image as it was before it was scaled; two copies to the host."""
        rows, columns = sample["image"].shape[1:]
        height, width = int(sample.get("height", rows)), int(sample.get("width", columns))
        across, down = width / columns, height / rows
        x0, y0, x1, y1 = found.boxes.unbind(dim=1)
        boxes = torch.stack(
            [
                (x0 * across).clamp(0, width),
                (y0 * down).clamp(0, height),
                (x1 * across).clamp(0, width),
                (y1 * down).clamp(0, height),
            ],
            dim=1,
        )
        pasted = paste_masks_in_image(masks, boxes, (height, width), threshold=0.5)
        facts = torch.cat([boxes, found.scores[:, None], found.classes[:, None].float()], dim=1).cpu()
        boxes, scores, classes = facts[:, :4], facts[:, 4], facts[:, 5]
        count = int((scores > self.proposal_generator.threshold).sum())
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(boxes[:count])
        instances.scores = scores[:count].sqrt()
        instances.pred_classes = classes[:count].long()
        instances.pred_masks = pasted[:count].cpu()
        return instances[instances.pred_boxes.nonempty()]


def truth_of(instances: Instances, size: int) -> Truth:
    """Return the objects of a sample, their masks cut out at `size` x `size`."""
    boxes = instances.gt_boxes.tensor.float()
    if instances.has("gt_crops"):
        crops = instances.gt_crops
    elif len(instances):
        crops = instances.gt_masks.crop_and_resize(boxes, size)
    else:
        crops = torch.zeros(0, size, size, dtype=torch.bool)
    return Truth(
        boxes=boxes.numpy(), classes=instances.gt_classes.numpy().astype(np.int64), crops=crops.numpy()
    )
