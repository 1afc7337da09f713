"""From an annotated image to a sample of the model: read, scale, flip, and make the targets that need no batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ascendet_common import progress
from ascendet_common.data import DataError
from ascendet_common.images import ImageError, read
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import build_augmentation
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from detectron2.structures.masks import rasterize_polygons_within_box
from pycocotools import mask as coco_mask

Bits = npt.NDArray[np.bool_]
# px: what is narrower or lower than this is no object, as in detectron2's `filter_empty_instances`.
_SMALLEST = 1e-5


class Mapper:
    """Make a sample of an image's record.

    Its mask targets are made here, in the loader's workers: each object's mask inside its box (`gt_crops`), and the map
    of classes that the bases learn from (`basis_sem`). Crowd regions are left out of both. An object without a mask
    counts as a full box.

    Parameters
    ----------
    cfg
        `INPUT` says how images are scaled and flipped.
    training
        Whether targets are made, and what is random is random.
    """

    def __init__(self, cfg: CfgNode, training: bool) -> None:
        augmentations = build_augmentation(cfg, training)
        if training and cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, transforms.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        self.augmentations = transforms.AugmentationList(augmentations)
        self.training = training
        self.size = cfg.MODEL.BLENDMASK.BOTTOM_RESOLUTION

    def __call__(self, record: Mapping[str, Any], instead: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the sample; `height` and `width` are the image's own.

        Raises
        ------
        DataError
            `image-damaged`: a damaged image, where no other one may be trained on instead.
        """
        try:
            pixels = read(record["file_name"], (record["height"], record["width"]))
        except ImageError as error:
            if not self.training or instead is None:
                raise DataError(f"damaged image {error}", name="image-damaged") from None
            progress.write("warning", text=f"skipped a damaged image: {error}")
            return self(instead)
        return self.sample(pixels, record)

    def sample(self, pixels: npt.NDArray[np.uint8], record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sample of pixels (height, width, 3), BGR, that are read already."""
        given = transforms.AugInput(pixels)
        transform = self.augmentations(given)
        made = {name: value for name, value in record.items() if name != "annotations"}
        made["image"] = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        if self.training:
            made |= self.targets(record["annotations"], transform, given.image.shape[:2])
        return made

    def targets(
        self, annotations: list[dict[str, Any]], transform: transforms.Transform, size: tuple[int, int]
    ) -> dict[str, Any]:
        """Return `instances` and `basis_sem` of the objects after a transform, in an image of `size`."""
        height, width = size
        boxes, classes, crops = [], [], []
        semantic = np.zeros(size, np.int16)
        for one in annotations:
            if one["iscrowd"]:
                continue
            box = BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS)
            box = transform.apply_box(np.array([box]))[0].clip(0, [width, height, width, height])
            if (box[2:] - box[:2] <= _SMALLEST).any():
                continue
            shape = _Shape.of(one["segmentation"], transform, box)
            boxes.append(box)
            classes.append(one["category_id"])
            crops.append(shape.crop(box.astype(np.float32), self.size))
            shape.fill(semantic, one["category_id"] + 1)
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_crops = torch.from_numpy(np.array(crops, bool).reshape(-1, self.size, self.size))
        return {"instances": instances, "basis_sem": torch.from_numpy(semantic)}


class _Shape:
    """An object's outline after a transform: polygons (2 n,) each, or else a bitmap of the image."""

    def __init__(self, polygons: list[npt.NDArray[np.float64]], bitmap: Bits | None) -> None:
        self.polygons, self.bitmap = polygons, bitmap

    @classmethod
    def of(cls, annotated: Any, transform: transforms.Transform, box: npt.NDArray[np.float64]) -> _Shape:
        """Return what COCO's `segmentation` describes: polygons, RLE of both kinds, or nothing: the box."""
        if isinstance(annotated, dict):
            rle = annotated
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, *rle["size"])
            return cls([], transform.apply_segmentation(coco_mask.decode(rle)).astype(bool))
        polygons = [np.asarray(one, np.float64).reshape(-1, 2) for one in annotated if len(one) >= 6]
        if polygons:
            return cls([one.reshape(-1) for one in transform.apply_polygons(polygons)], None)
        x0, y0, x1, y1 = box
        return cls([np.array([x0, y0, x1, y0, x1, y1, x0, y1], np.float64)], None)

    def crop(self, box: npt.NDArray[np.float32], size: int) -> Bits:
        """Return the mask inside a box, (size, size)."""
        if self.bitmap is None:
            mask = rasterize_polygons_within_box(self.polygons, box, size)
        else:
            bitmaps = BitMasks(self.bitmap[None])
            mask = bitmaps.crop_and_resize(torch.from_numpy(box[None]), size)[0]
        return mask.numpy()

    def fill(self, image: npt.NDArray[np.int16], value: int) -> None:
        """Write `value` into an image where the object is, by COCO's rule of what a polygon covers."""
        if self.bitmap is not None:
            image[self.bitmap] = value
            return
        # Only the part that it is in: shifted by whole pixels, a polygon covers the same pixels.
        points = np.concatenate(self.polygons).reshape(-1, 2)
        left, top = np.floor(points.min(axis=0)).astype(int).clip(0)
        right, bottom = np.ceil(points.max(axis=0)).astype(int) + 1
        part = image[top:bottom, left:right]
        if part.size:
            shift = np.array([left, top])
            shifted = [(one.reshape(-1, 2) - shift).reshape(-1) for one in self.polygons]
            rle = coco_mask.merge(coco_mask.frPyObjects(shifted, *part.shape))
            part[coco_mask.decode(rle).astype(bool)] = value
