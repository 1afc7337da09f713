"""Move a batch to the device and normalise it without index tensors, and with few distinct shapes of ground truth."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

# Ground-truth boxes are grouped in blocks of this size; empty boxes fill the last block.
BOX_BLOCK = 32


def pad_boxes(boxes: Tensor) -> Tensor:
    """Return boxes (k, 4) as (blocks, BOX_BLOCK, 4), at least one block, padded with zeros, which overlap nothing."""
    boxes = F.pad(boxes, (0, 0, 0, -len(boxes) % BOX_BLOCK if len(boxes) else BOX_BLOCK))
    return boxes.view(-1, BOX_BLOCK, 4)


@MODELS.register_module()
class FixedShapePreprocessor(DetDataPreprocessor):
    """mmdet's preprocessor, with equal results and fewer synchronisations and shapes.

    - Channels are swapped with `flip`. mmengine swaps them with a list of indices, which costs a copy to the device and
      a synchronisation for each image.
    - For training, each sample's `padded_boxes` holds its boxes as `pad_boxes` returns them, for `FixedShapeRPNHead`.
      They are padded on the host, because on the device each number of boxes would be another shape.
    """

    _channel_conversion: bool  # mmengine's: whether it swaps the channels

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._flip = self._channel_conversion
        self._channel_conversion = False

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Move, convert, normalise and pad a batch as it comes from the data loader."""
        for sample in data.get("data_samples") or () if training else ():
            boxes = pad_boxes(get_box_tensor(sample.gt_instances.bboxes))
            sample.set_field(InstanceData(bboxes=boxes), "padded_boxes", dtype=InstanceData)
        return super().forward(data, training)

    def cast_data(self, data: Any) -> Any:
        """Move the batch to the device, and swap the channels there."""
        data = super().cast_data(data)
        if self._flip and isinstance(data, dict) and "inputs" in data:
            images = data["inputs"]
            # (3, height, width) each, or one tensor of the whole batch
            batched = isinstance(images, Tensor)
            data["inputs"] = images.flip(1) if batched else [torch.flip(image, (0,)) for image in images]
        return data
