"""What training steps make of batches that lack something, for test_empty.py: empty_job.py ours|theirs FILE.

Ours and theirs are those of loss_job.py, with the same random weights. FILE gets, by precision and case, each loss,
and the names of the parameters that got no gradient or one that is not finite.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loss_job import configuration, random_batch, randomise  # first: it keeps torch_npu out

import torch  # isort: skip
from mmengine.config import Config
from mmengine.registry import init_default_scope

FEW_REGIONS = {"train_cfg.rpn_proposal.max_per_img": 10}  # it takes seconds
NOTHING_FITS = {"train_cfg.rpn_proposal.min_bbox_size": 10_000}  # no proposal is that large
NOTHING_IS_POSITIVE = {
    "train_cfg.rcnn.sampler.add_gt_as_proposals": False,
    "train_cfg.rcnn.assigner.match_low_quality": False,
    "train_cfg.rcnn.assigner.pos_iou_thr": 2.0,
}


@dataclass(frozen=True)
class Case:
    """A batch: how many objects its images have, whether they are crowds or masks of nothing; what the model is."""

    counts: tuple[int, ...]
    crowd: bool = False
    masks: bool = True
    changes: dict[str, Any] = field(default_factory=dict)


CASES = {
    "no objects": Case((0, 0)),
    "no objects in the first image": Case((0, 5)),
    "no objects in the last image": Case((5, 0)),
    "one object": Case((1,)),
    "one object in two images": Case((0, 1)),
    "only crowds": Case((3, 5), crowd=True),
    "masks of nothing": Case((3, 5), masks=False),
    "no proposals, so no negatives": Case((3, 5), changes=NOTHING_FITS),
    "no regions": Case((0, 0), changes=NOTHING_FITS),
    "no regions in one image": Case((0, 5), changes=NOTHING_FITS),
    "objects, but no positives": Case((3, 5), changes=NOTHING_IS_POSITIVE),
    "objects, but no regions": Case((3, 5), changes=NOTHING_FITS | NOTHING_IS_POSITIVE),
}


def make_batch(case: Case, size: int, classes: int) -> dict[str, Any]:
    """The case's batch as a data loader gives it."""
    batch = random_batch(size, classes, case.counts)
    for sample in batch["data_samples"]:
        if case.crowd:
            sample.ignored_instances, sample.gt_instances = sample.gt_instances, sample.ignored_instances
        if not case.masks:
            sample.gt_instances.masks.masks[:] = 0
    return batch


def step(case: Case, plain: Any, precision: str) -> dict[str, Any]:
    """Losses and faulty gradients of one step of a model configuration."""
    from mmdet.registry import MODELS

    cfg = Config(copy.deepcopy(plain))
    cfg.merge_from_dict(FEW_REGIONS | case.changes)
    model = MODELS.build(cfg).train()
    randomise(model)
    batch = make_batch(case, cfg.backbone.img_size, cfg.roi_head.bbox_head.num_classes)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, enabled=precision == "float16")
    with torch.autocast("cpu", dtype=getattr(torch, precision), enabled=precision != "float32"):
        losses = model(**model.data_preprocessor(batch, True), mode="loss")
    total, parts = model.parse_losses(losses)
    scaler.scale(total).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        "losses": {name: value.item() for name, value in parts.items()},
        "without gradient": [name for name, value in gradients.items() if value is None],
        "not finite": [
            name for name, value in gradients.items() if value is not None and not value.isfinite().all()
        ],
    }


def main() -> None:
    whose, file = sys.argv[1:]
    init_default_scope("mmdet")
    cfg = configuration("tiny", whose)
    torch.set_num_threads(1)
    # Stock mmdet's RoIAlign is in half precision under amp, which mmcv has not on a CPU.
    precisions = ("float32",) if whose == "theirs" else ("float32", "float16")
    found = {
        precision: {name: step(case, cfg, precision) for name, case in CASES.items()}
        for precision in precisions
    }
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
