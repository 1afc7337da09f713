"""What the programs of BlendMask share: their options, their configuration, their rank and device, their data set."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from ascendet_common import progress
from ascendet_common.device import has_npu
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import distributed

from blendmask import config

CONFIGS = Path(__file__).with_name("configs")
# Ranks wait for each other as long as one of them reads and scores; torch's own limit is half an hour.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process among those that torchrun started, and its device."""

    number: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all programs."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="changes of detectron2's configuration"
    )
    return made


def load_config(args: argparse.Namespace) -> CfgNode:
    """Return CONFIG's or MODEL's configuration, with the command line's changes, for the device that there is.

    Raises
    ------
    KeyError
        MODEL is not set; scripts/run.sh checks it.
    ConfigError
        The configuration asks for something that is not done here, or has a key that nothing knows.
    """
    cfg, others = config.load(os.environ.get("CONFIG") or CONFIGS / f"{os.environ['MODEL']}.yaml")
    if os.environ.get("RANK", "0") == "0":
        for text in _left_out(cfg, others):
            progress.write("note", text=text)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE = device_type()
    config.check(cfg)
    return cfg


def _left_out(cfg: CfgNode, others: tuple[str, ...]) -> list[str]:
    """Return sentences about what a configuration says and a training here does not do."""
    named = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    texts = []
    if named:
        texts.append(
            f"DATASETS of the configuration ({', '.join(named)}) is not used: DATASET={os.environ['DATASET']} is"
        )
    if others:
        texts.append(f"of other models, and not used: {', '.join(others)}")
    return texts


def device_type() -> str:
    """Return "npu" where there is one, else "cpu"."""
    return "npu" if has_npu() else "cpu"


def data_root() -> Path:
    """Return the folder of DATASET."""
    return Path(os.environ.get("ASCENDET_DATA", "data"), os.environ["DATASET"])


def set_classes(cfg: CfgNode, classes: tuple[str, ...]) -> None:
    """Give the model as many classes."""
    cfg.MODEL.FCOS.NUM_CLASSES = cfg.MODEL.BASIS_MODULE.NUM_CLASSES = len(classes)


def join_ranks() -> Rank:
    """Become one of the ranks that torchrun started, or the only one; take the rank's device."""
    number, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    kind = device_type()
    if kind == "npu":
        torch.npu.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        device = torch.device("npu", torch.npu.current_device())
    else:
        device = torch.device("cpu")
    if "RANK" in os.environ:
        distributed.init_process_group("hccl" if kind == "npu" else "gloo", timeout=_PATIENCE)
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", count)))
    return Rank(number=number, count=count, device=device)
