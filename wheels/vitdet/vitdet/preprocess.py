"""What happens to a batch on its way to the device: no index tensors, and ground truth of few distinct shapes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

# Ground-truth boxes come in blocks of so many, the last one filled up with empty boxes.
BOX_BLOCK = 32


def pad_boxes(boxes: Tensor) -> Tensor:
    """(k, 4) to (blocks, BOX_BLOCK, 4), at least one block, filled up with zeros: they overlap nothing."""
    boxes = F.pad(boxes, (0, 0, 0, -len(boxes) % BOX_BLOCK if len(boxes) else BOX_BLOCK))
    return boxes.view(-1, BOX_BLOCK, 4)


@MODELS.register_module()
class FixedShapePreprocessor(DetDataPreprocessor):
    """mmdet's, with equal results.

    - Channels are swapped by flipping: the list of indices that mmengine swaps by is a copy to the device, and a wait,
      for each image.
    - For training, `padded_boxes` of each sample holds the boxes as `pad_boxes` makes them, padded on the host: on the
      device each number of boxes would be another shape. `FixedShapeRPNHead` takes them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._flip, self._channel_conversion = self._channel_conversion, False

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Move, convert, normalise and pad a batch as it comes from the data loader."""
        for sample in data.get("data_samples") or () if training else ():
            boxes = pad_boxes(get_box_tensor(sample.gt_instances.bboxes))
            sample.set_field(InstanceData(bboxes=boxes), "padded_boxes", dtype=InstanceData)
        return super().forward(data, training)

    def cast_data(self, data: Any) -> Any:
        """Move to the device, and swap the channels there."""
        data = super().cast_data(data)
        if self._flip and isinstance(data, dict) and "inputs" in data:
            images = data["inputs"]
            # (3, height, width) each, or one tensor of the whole batch
            batched = isinstance(images, Tensor)
            data["inputs"] = images.flip(1) if batched else [torch.flip(image, (0,)) for image in images]
        return data
