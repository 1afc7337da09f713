"""Trains ViTDet-tiny by ViTDet-B's augmentation where pictures have no objects, for test_empty_ranks.py.

    python -m torch.distributed.run --nproc_per_node=2 empty_ranks_job.py STEPS FOLDER

Three trainings of so many steps, through the recipe's runner: in single precision, in mixed precision, and with a
region proposal network that finds nothing. Each rank writes FOLDER/<name>.<rank>.json: the objects that its images had
in each step, the losses, and a digest of its weights in the end.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS, RUNNERS
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from waits_job import tiny

TRAININGS: dict[str, dict[str, Any]] = {
    "single precision": {},
    "mixed precision": {"optim_wrapper.type": "AmpOptimWrapper"},
    "no proposals": {"model.train_cfg.rpn_proposal.min_bbox_size": 10_000},
}


@HOOKS.register_module()
class RecordHook(Hook):
    """Keep what a rank saw; write it when training ends."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.objects: list[list[int]] = []
        self.losses: list[dict[str, float]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """One step."""
        self.objects.append([len(sample.gt_instances) for sample in data_batch["data_samples"]])
        self.losses.append({name: float(value) for name, value in outputs.items()})

    def after_train(self, runner: Runner) -> None:
        """The weights too: as a digest."""
        digest = hashlib.sha256()
        for value in runner.model.state_dict().values():
            digest.update(value.cpu().contiguous().numpy().tobytes())
        found = {"objects": self.objects, "losses": self.losses, "weights": digest.hexdigest()}
        Path(f"{self.out}.{get_rank()}.json").write_text(json.dumps(found))


def configuration(plain: Config, name: str, steps: int, folder: Path) -> Config:
    """One of TRAININGS: pictures in their order, those without objects too, no validation, no checkpoint."""
    cfg = copy.deepcopy(plain)
    cfg.merge_from_dict(TRAININGS[name])
    cfg.launcher, cfg.work_dir, cfg.experiment_name = "pytorch", str(folder / name), name
    cfg.train_dataloader.dataset.filter_cfg.filter_empty_gt = False
    cfg.train_dataloader.sampler.shuffle = False
    cfg.train_cfg = dict(type="ResumableIterLoop", max_iters=steps, val_interval=steps + 1)
    cfg.param_scheduler = [dict(type="ConstantLR", factor=0.1, by_epoch=False, begin=0, end=steps)]
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.default_hooks.checkpoint.update(interval=-1, save_best=None, save_last=False)
    cfg.custom_hooks.append(dict(type="RecordHook", out=f"{folder}/{name}"))
    return cfg


def main() -> None:
    steps, folder = int(sys.argv[1]), Path(sys.argv[2])
    init_default_scope("mmdet")
    plain = tiny()
    for name in TRAININGS:
        RUNNERS.build(configuration(plain, name, steps, folder)).train()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
