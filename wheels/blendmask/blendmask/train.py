"""Train a model, one rank per device: `torchrun --nproc-per-node=2 -m blendmask.train`, as scripts/run.sh does.

Environment: MODEL, DATASET, WORK_DIR; RESUME=1 continues from the last checkpoint in WORK_DIR; CHECKPOINT is a file
to start from, of the same or of other classes. Without it MODEL.WEIGHTS, a backbone in ASCENDET_DATA/weights, is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ascendet_common import fallback, progress
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.data import DataError, describe_difference, shorten
from ascendet_common.errors import forget, reporting
from ascendet_common.options import add_train_options
from detectron2.config import CfgNode

from blendmask import checkpoint, launch, recipe
from blendmask.config import backbone_file
from blendmask.data import load_split, to_train_on
from blendmask.launch import Rank
from blendmask.model import BlendMask
from blendmask.trainer import Trainer, last_of

CONFIG = (
    "config.yaml"  # all of the configuration, as it was before it was fitted to the data set and the devices
)


def start(model: BlendMask, cfg: CfgNode, classes: tuple[str, ...], rank: Rank) -> None:
    """Give a model the weights that its training starts from: CHECKPOINT's, or a backbone's, or none."""
    if file := os.environ.get("CHECKPOINT"):
        content = checkpoint.read(file)
        stated = checkpoint.classes_in(content)
        report, made_anew = checkpoint.load_to_start(
            model, content, other_classes=bool(stated) and stated != classes
        )
        text = f"starts from {file}: {report}"
        if made_anew:
            text = f"starts from a checkpoint of other classes; made anew: {', '.join(made_anew)}"
    elif name := backbone_file(cfg):
        weights = Path(os.environ.get("ASCENDET_DATA", "data"), "weights", name)
        report = checkpoint.load_backbone(model, weights)
        text = "; ".join(
            [f"starts from {name}: no weight is missing, none is unexpected", *str(report).splitlines()]
        )
    else:
        return
    if rank.first:
        progress.write("note", text=text)


def check_resumed(content: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Raise CheckpointMismatch where a training goes on that was of other classes."""
    stated = checkpoint.classes_in(content)
    if stated != classes:
        raise CheckpointMismatch(
            f"the checkpoint is not one of this model: {describe_difference(stated, classes)}"
        )


def main() -> None:
    """Train to the end, or until a signal."""
    parser = launch.parser("Train a model.")
    add_train_options(parser)
    args = parser.parse_args()
    forget()
    with reporting():
        cfg = launch.load_config(args)
        backbone_file(cfg)  # raises before anything is read
        rank = launch.join_ranks()
        if rank.first:
            Path(os.environ["WORK_DIR"], CONFIG).write_text(cfg.dump(), encoding="utf-8")
        root, work = launch.data_root(), Path(os.environ["WORK_DIR"])
        learning, validating = load_split(root, "train"), load_split(root, "val")
        if learning.classes != validating.classes:
            raise DataError(
                f"{validating.file} has other classes than {learning.file}: {shorten(validating.classes)}; "
                f"not {shorten(learning.classes)}"
            )
        pictures = to_train_on(learning.found, str(learning.file))
        launch.set_classes(cfg, learning.classes)
        plan = recipe.fit(cfg, len(pictures), rank.count, epochs=args.epochs, lr=args.lr)
        torch.manual_seed(max(cfg.SEED, 0))  # the same weights on every rank
        model = BlendMask(cfg)
        # A rank died and torchrun starts all of them anew: on from the last checkpoint.
        again = os.environ.get("RESUME") or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        last = last_of(work) if again else None
        content = checkpoint.read(last) if last else None
        if content is None:
            start(model, cfg, learning.classes, rank)
        else:
            check_resumed(content, learning.classes)
        trainer = Trainer(
            cfg=cfg,
            plan=plan,
            model=model.to(rank.device),
            pictures=pictures,
            validating=validating,
            rank=rank,
            work=work,
            mixed=args.amp or cfg.SOLVER.AMP.ENABLED,
        )
        fallback.watch()
        if content is not None:
            trainer.resume(content)
        trainer.train()


if __name__ == "__main__":
    main()
