"""One rank of test_ranks.py: what a batch teaches, on several ranks, or all of it on one.

    torchrun --nproc-per-node=2 ranks_job.py OUT CASE
    python ranks_job.py OUT CASE

CASE says which images have objects: "full", "half" (the second rank's has none), "empty".
"""

from __future__ import annotations

import sys
from pathlib import Path

import blendmask
import numpy as np
import torch
from blendmask import launch
from blendmask.config import load
from blendmask.model import BlendMask
from test_edges import NOTHING, sample, some
from torch.nn.parallel import DistributedDataParallel

CASES = {"full": (5, 9), "half": (5, 0), "empty": (0, 0)}
TINY = Path(blendmask.__file__).parent / "configs" / "blendmask-tiny.yaml"


def make_smooth(model: torch.nn.Module) -> None:
    """Put softplus in the place of ReLU: of an activation near zero, rounding would decide whether it passes."""
    torch.nn.functional.relu_ = torch.nn.functional.softplus  # detectron2's ResNet
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())


def main() -> None:
    out, case = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = BlendMask(load(TINY)[0]).train()
    make_smooth(model)
    rank = launch.join_ranks()
    model.to(rank.device)
    batch = [
        sample(128, 128, some(count, seed) if count else NOTHING, seed)
        for seed, count in enumerate(CASES[case])
    ]
    mine = [batch[rank.number]] if rank.count > 1 else batch
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if rank.count > 1 else model
    for _ in range(2):  # DDP finds out in the second pass what the first one left unused
        model.zero_grad()
        losses = wrapped(mine)
        sum(losses.values()).backward()
    # On every rank: this waits for torch_npu's task queue, which destroy_process_group does not.
    grads = {name: value.grad.cpu().numpy() for name, value in model.named_parameters()}
    buffers = {name: value.cpu().numpy() for name, value in model.named_buffers() if "running" in name}
    if rank.first:
        np.savez(out, **grads, **buffers)
    if rank.count > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
