"""Trains ViTDet-tiny for test_detector.py: python detector_job.py cpu|cpu-fused|npu|ddp STEPS OUT."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import vitdet
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from vitdet.attention import Attention
from vitdet.data import fill


def fused_on_the_cpu(self: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The NPU's arithmetic, for a kernel that wants value as wide as query and key.

    Attention by rows sums in another order. The last bit of a score decides which proposals are drawn: from the third
    step on, losses would differ by more than rounding.
    """
    return self._fused(query, key, F.pad(value, (0, 2 * self.size)))[..., : value.shape[-1]]


def build(device: torch.device) -> tuple[torch.nn.Module, list[Any]]:
    """The model with seeded weights, and its batches; the same on every device."""
    from mmdet.registry import MODELS

    cfg = Config.fromfile(str(Path(vitdet.__file__).parent / "configs" / "vitdet-tiny.py"))
    fill(cfg)
    init_default_scope("mmdet")
    set_random_seed(0)  # numpy's and Python's too: they draw the flips of the batches
    model = MODELS.build(cfg.model)
    model.init_weights()
    loader = cfg.train_dataloader
    loader.update(num_workers=0, persistent_workers=False, sampler=dict(type="DefaultSampler", shuffle=False))
    batches = list(Runner.build_dataloader(loader, seed=0))
    return model.to(device).train(), batches


def total_loss(model: torch.nn.Module, batch: Any) -> Tensor:
    """The sum that training minimises."""
    losses = model(**batch, mode="loss")
    parts = (value for name, value in losses.items() if "loss" in name)
    return sum(sum(part) if isinstance(part, list) else part for part in parts)  # type: ignore[return-value]


def train(device: torch.device, steps: int) -> list[float]:
    """The loss of every step."""
    model, batches = build(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        batch = model.data_preprocessor(copy.deepcopy(batches[step % len(batches)]), True)
        loss = total_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        losses.append(loss.item())
    return losses


def compare_gradients() -> dict[str, float]:
    """The largest difference between DDP's gradients and the mean of the ranks' own, relative to each tensor's size."""
    rank = int(os.environ["RANK"])
    device = torch.device("npu", int(os.environ["LOCAL_RANK"]))
    torch.npu.set_device(device)
    dist.init_process_group("hccl")
    model, batches = build(device)
    batch = model.data_preprocessor(copy.deepcopy(batches[rank]), True)

    def gradients(module: torch.nn.Module) -> list[Tensor]:
        module.zero_grad()
        torch.manual_seed(rank)
        total_loss(module, copy.deepcopy(batch)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    own = gradients(model)
    averaged = gradients(DistributedDataParallel(model, device_ids=[device]))
    largest, differ = 0.0, False
    for alone, together in zip(own, averaged, strict=True):
        both = [torch.empty_like(alone) for _ in range(dist.get_world_size())]
        dist.all_gather(both, alone)
        mean = torch.stack(both).cpu().mean(0)
        differ = differ or not torch.equal(both[0], both[1])
        largest = max(
            largest, ((together.cpu() - mean).abs().max() / mean.abs().max().clamp(min=1e-12)).item()
        )
    dist.barrier()
    dist.destroy_process_group()
    return {"parameters": len(own), "ranks_differ": differ, "largest_difference": largest}


def main() -> None:
    kind, steps, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if kind == "ddp":
        result: Any = compare_gradients()
        if os.environ["RANK"] != "0":
            return
    else:
        if kind == "cpu-fused":
            Attention._by_rows = fused_on_the_cpu  # type: ignore[method-assign]
        result = train(torch.device(kind.partition("-")[0]), steps)
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
