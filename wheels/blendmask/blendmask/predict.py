"""Write what a checkpoint finds in the validation split, one rank per device; `make eval` scores it.

    torchrun --nproc-per-node=2 -m blendmask.predict

Environment: MODEL, DATASET, CHECKPOINT; WORK_DIR, which gets `predictions.json`, COCO results with boxes and masks, and
`images.json` with `annotations`, the file, and `images`, the ids of the images that were looked at, in their order.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from ascendet_common import fallback, progress
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.data import describe_difference
from ascendet_common.errors import forget, reporting
from ascendet_common.options import add_predict_options
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

import blendmask.checkpoint
from blendmask import launch
from blendmask.data import Pictures, Record, as_list, load_split
from blendmask.launch import Rank
from blendmask.mapper import Mapper
from blendmask.metric import describe
from blendmask.model import BlendMask

_EVERY = 5.0  # seconds between two rows of progress


def predict(
    model: nn.Module,
    cfg: CfgNode,
    found: Sequence[Record],
    categories: Sequence[Any],
    rank: Rank,
    phase: str,
) -> list[dict[str, Any]]:
    """Return what a model finds in images, as COCO results in the order of the images; on other ranks nothing.

    Parameters
    ----------
    model
        It is in training mode afterwards if it was before.
    cfg
        How images are scaled.
    found
        The records of all images; each rank takes its part.
    categories
        The ids of the classes, by number.
    rank
        This one.
    phase
        Of the rows of progress.
    """
    training = model.training
    model.eval()
    mine = range(rank.number, len(found), rank.count)
    loader: Iterable[list[Record]] = torch.utils.data.DataLoader(
        Pictures([found[place] for place in mine], Mapper(cfg, training=False)),
        batch_size=1,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=as_list,
    )
    results = []
    last = time.monotonic()
    try:
        for done, (place, samples) in enumerate(zip(mine, loader, strict=True), 1):
            (result,) = model(samples)
            results.append((place, describe(result["instances"], found[place]["image_id"], categories)))
            if rank.first and (time.monotonic() - last > _EVERY or done == len(mine)):
                last = time.monotonic()
                progress.write(phase, step=done, of=len(mine))
    finally:
        model.train(training)
    gathered = comm.gather(results) if rank.count > 1 else [results]
    by_place = sorted((image for part in gathered for image in part), key=lambda image: image[0])
    return [one for _, image in by_place for one in image]


def load_model(cfg: CfgNode, device: torch.device, classes: tuple[str, ...], checkpoint: str) -> BlendMask:
    """Build the model of so many classes with a checkpoint's weights, on a device, ready for use.

    Raises
    ------
    CheckpointError
        A damaged file, or one of another model or other classes.
    """
    content = blendmask.checkpoint.read(checkpoint)
    stated = blendmask.checkpoint.classes_in(content)
    if stated and stated != classes:
        raise CheckpointMismatch(
            f"the checkpoint is not one of this model: {describe_difference(stated, classes)}"
        )
    launch.set_classes(cfg, classes)
    model = BlendMask(cfg)
    blendmask.checkpoint.load(model, content)
    return model.to(device).eval()


def main() -> None:
    """Predict."""
    parser = launch.parser("Write a checkpoint's predictions on the validation split.")
    add_predict_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        rank = launch.join_ranks()
        split = load_split(launch.data_root(), "val")
        found = split.found[: args.images]
        model = load_model(cfg, rank.device, split.classes, os.environ["CHECKPOINT"])
        fallback.watch()
        results = predict(model, cfg, found, split.categories, rank, "predict")
        if rank.first:
            work = Path(os.environ["WORK_DIR"])
            images = {
                "annotations": str(split.file.absolute()),
                "images": [record["image_id"] for record in found],
            }
            (work / "images.json").write_text(json.dumps(images), encoding="utf-8")
            (work / "predictions.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
