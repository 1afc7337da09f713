"""ViTDet's attention: the fused kernel on the simulated NPU against the plain formulation on the CPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip(
    "torch_npu", reason="torch_npu does not load: run it by `make test-sim`", exc_type=Exception
)
pytest.importorskip("vitdet", reason="the stack has no vitdet")
from vitdet.attention import Attention


@pytest.mark.parametrize(("size", "batch"), [(14, 3), (20, 1)])
def test_fused_on_the_npu_equals_plain_on_the_cpu(size: int, batch: int) -> None:
    """Values and gradients of a window's and a global block's kind."""
    found = []
    for formulation, device in (("plain", "cpu"), ("fused", "npu")):
        torch.manual_seed(1)
        attention = Attention(24, 3, size, formulation)
        for table in (attention.rel_pos_h, attention.rel_pos_w):
            torch.nn.init.normal_(table)
        x = torch.randn(batch, size, size, 24)
        attention, x = attention.to(device), x.to(device).requires_grad_()
        out = attention(x)
        (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
        found.append([out, x.grad, *(parameter.grad for parameter in attention.parameters())])
    for plain, fused in zip(*found, strict=True):
        assert (plain - fused.cpu()).abs().max() <= 1e-5 * plain.abs().max()
