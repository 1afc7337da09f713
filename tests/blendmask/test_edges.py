"""What real images hold: nothing, very much, sizes that differ; in training and in use."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import blendmask
import numpy as np
import pytest
import torch
from blendmask.config import load
from blendmask.model import BlendMask
from detectron2.structures import Boxes, Instances

TINY = Path(blendmask.__file__).parent / "configs" / "blendmask-tiny.yaml"


def tiny() -> BlendMask:
    return BlendMask(load(TINY)[0])


def sample(height: int, width: int, boxes: np.ndarray, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32).reshape(-1, 4)))
    instances.gt_classes = torch.from_numpy(draw.integers(0, 80, len(boxes)))
    instances.gt_crops = torch.from_numpy(draw.random((len(boxes), 28, 28)) < 0.5)
    semantic = np.zeros((height, width), np.int16)
    for (x0, y0, x1, y1), kind in zip(boxes.astype(int), instances.gt_classes.tolist(), strict=True):
        semantic[y0:y1, x0:x1] = kind + 1
    image = draw.integers(0, 256, (3, height, width), dtype=np.uint8)
    return {
        "image": torch.from_numpy(image),
        "instances": instances,
        "basis_sem": torch.from_numpy(semantic),
    }


def some(count: int, seed: int = 0, side: float = 128) -> np.ndarray:
    draw = np.random.default_rng(seed)
    corner = draw.uniform(0, side - 30, (count, 2))
    return np.concatenate([corner, corner + draw.uniform(3, 30, (count, 2))], axis=1)


NOTHING = np.zeros((0, 4))


@pytest.mark.parametrize(
    "objects", [(NOTHING, NOTHING), (some(3), NOTHING), (some(700), some(2))], ids=["none", "one", "700"]
)
def test_every_parameter_learns_from_any_batch(device: str, objects: tuple[np.ndarray, ...]) -> None:
    model = tiny().to(device).train()
    losses = model([sample(96 + 32 * number, 128, one) for number, one in enumerate(objects)])
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    lost = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert lost == []
    if not any(len(one) for one in objects):
        # The masks and boxes of nothing teach nothing.
        assert losses["loss_mask"] == losses["loss_fcos_loc"] == losses["loss_fcos_ctr"] == 0


def test_the_loss_does_not_depend_on_what_shares_a_chunk(device: str) -> None:
    """One image's objects, alone and in a batch with itself: sums double, and so does what they are divided by."""
    model = tiny().to(device).eval()
    model.training = True  # losses, with normalisation that does not look at the batch
    one = sample(128, 128, some(20))
    alone = model([one])
    twice = model([one, copy.deepcopy(one)])
    for name, value in alone.items():
        assert twice[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_padding_changes_nothing(device: str) -> None:
    """An image beside a larger one sees zeros where it ends, as at the border of a batch of its own."""
    model = tiny().to(device)
    small, large = sample(96, 128, NOTHING), sample(128, 160, NOTHING)
    batch = model.batch([small, large])
    assert batch.shape == (2, 3, 128, 160)
    assert torch.equal(batch[0, :, :96, :128], model.batch([small])[0, :, :96, :128])
    assert batch[0, :, 96:].abs().sum() == batch[0, :, :, 128:].abs().sum() == 0


def test_no_detections_are_empty_results(device: str) -> None:
    model = tiny().to(device).eval()
    torch.nn.init.constant_(model.proposal_generator.fcos_head.cls_logits.bias, -50)
    objects = model([sample(96, 128, NOTHING) | {"height": 200, "width": 300}])[0]["instances"]
    assert len(objects) == 0
    assert objects.pred_masks.shape == (0, 200, 300)
    assert objects.pred_boxes.tensor.shape == (0, 4)


def test_detections_are_sorted_inside_the_image_and_at_most_as_many_as_slots(device: str) -> None:
    model = tiny().to(device).eval()
    head = model.proposal_generator.fcos_head
    torch.nn.init.normal_(head.cls_logits.weight, std=1)
    torch.nn.init.constant_(head.cls_logits.bias, 0)
    torch.nn.init.constant_(head.bbox_pred.bias, 1)
    objects = model([sample(96, 128, NOTHING) | {"height": 200, "width": 300}])[0]["instances"]
    assert 10 < len(objects) <= 100
    assert torch.equal(objects.scores, objects.scores.sort(descending=True).values)
    x0, y0, x1, y1 = objects.pred_boxes.tensor.T
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x1 <= 300).all()
    assert (y1 <= 200).all()
    assert objects.pred_masks.shape == (len(objects), 200, 300)
    assert objects.pred_masks.any()


def test_small_maps_have_fewer_candidates_than_slots(device: str) -> None:
    """32 x 32 px: 85 locations; what non-maximum suppression leaves is fewer than the slots."""
    model = tiny().to(device).eval()
    model.proposal_generator.overlap = 0.0
    torch.nn.init.constant_(model.proposal_generator.fcos_head.cls_logits.bias, 1)
    torch.nn.init.constant_(model.proposal_generator.fcos_head.bbox_pred.bias, 9)
    objects = model([sample(32, 32, NOTHING)])[0]["instances"]
    assert 0 < len(objects) <= 100
    assert objects.pred_masks.shape == (len(objects), 32, 32)


def test_mixed_precision_learns_about_the_same(device: str) -> None:
    torch.manual_seed(0)
    model = tiny().to(device).train()
    batch = [sample(128, 128, some(5, seed)) for seed in range(2)]
    single = model(batch)
    kind = torch.float16 if device == "npu" else torch.bfloat16
    with torch.autocast(device, kind):
        half = model(batch)
    sum(half.values()).backward()
    for name, value in single.items():
        assert half[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.01), name
    assert any(half[name].item() != single[name].item() for name in single)
