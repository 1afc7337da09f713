"""Indices repeated by counts, by CANN's aclnnRepeatInterleave, which torch_npu offers for values only."""

from __future__ import annotations

import torch
from torch import Tensor


def repeat_interleave(repeats: Tensor, *, output_size: int | None = None) -> Tensor:
    """Return index i `repeats[i]` times: `aten::repeat_interleave.Tensor` on an NPU.

    >>> repeat_interleave(torch.tensor([1, 0, 2]))
    tensor([0, 2, 2])

    Parameters
    ----------
    repeats
        (N,) int32 or int64, none negative.
    output_size
        Their sum, if it is known: the host waits only where it is not, once.

    Returns
    -------
    Tensor
        (output_size,) of the type of `repeats`.

    Raises
    ------
    RuntimeError
        `repeats` has another rank or type, or a negative value (which is noticed where the host waits anyway).
    """
    if repeats.dim() != 1 or repeats.dtype not in (torch.int32, torch.int64):
        raise RuntimeError(
            f"repeats must have shape (N,) and type int32 or int64, got {tuple(repeats.shape)}, {repeats.dtype}"
        )
    if repeats.numel() == 0:
        return torch.empty_like(repeats)
    if output_size is None:
        output_size, smallest = torch.stack((repeats.sum(), repeats.min().to(torch.int64))).tolist()
        if smallest < 0:
            raise RuntimeError(f"repeats must not be negative, got {smallest}")
    if output_size == 0:
        return repeats.new_empty(0)
    indices = torch.arange(repeats.numel(), dtype=repeats.dtype, device=repeats.device)
    with (
        torch._C._AutoDispatchBelowAutograd()
    ):  # above it, values may be repeated by way of this very operator
        return torch.repeat_interleave(indices, repeats, output_size=output_size)
