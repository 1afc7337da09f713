"""Batch normalisation over all ranks (SyncBN) that needs no kernel of its own: the same on a CPU and on an NPU."""

from __future__ import annotations

import torch
from fvcore.nn.distributed import differentiable_all_gather
from torch import Tensor, distributed, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """Normalise by the statistics of all ranks' batches, weighted by their number of pixels; one rank: BatchNorm2d.

    torch's own class knows GPUs only; torch_npu replaces its forward by one that refuses tensors on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape; the statistics are float32 whatever `x` is."""
        ranks = distributed.get_world_size() if distributed.is_initialized() else 1
        if not self.training or ranks == 1:
            return super().forward(x)
        values = x.float()
        count = values.new_full((1,), x.numel() / x.shape[1])
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        gathered = torch.stack(differentiable_all_gather(torch.cat([mean, variance, count])))
        means, variances, counts = gathered.split([len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        # Each rank's spread about its own mean, and the spread of these means: no difference of large sums.
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


NORMS: dict[str, type[nn.BatchNorm2d]] = {"SyncBN": SyncBatchNorm, "BN": nn.BatchNorm2d}
