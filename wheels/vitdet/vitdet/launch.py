"""Shared parts of ViTDet's programs: their options, and the configuration made from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device

CONFIGS = Path(__file__).with_name("configs")


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all programs have."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, help="mmengine's key=value …"
    )
    return made


def load_config(args: argparse.Namespace) -> Config:
    """Return the configuration of MODEL on DATASET for WORK_DIR, changed by the options of the command line.

    Raises
    ------
    KeyError
        One of these environment variables is not set (scripts/run.sh checks them).
    """
    cfg = Config.fromfile(CONFIGS / f"{os.environ['MODEL']}.py")
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir = os.environ["WORK_DIR"]
    return cfg


def join_ranks(cfg: Config) -> None:
    """Make the configuration's runner join the process group of the ranks that torchrun started."""
    cfg.launcher = "pytorch"
    if get_device() == "cpu":  # mmengine's launcher knows accelerators only
        torch.distributed.init_process_group("gloo")
        cfg.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
        )


def leave_training_out(cfg: Config) -> None:
    """Remove training from a configuration, so that a prediction needs no split for training."""
    for name in ("train_cfg", "train_dataloader", "optim_wrapper", "param_scheduler"):
        cfg.pop(name, None)
