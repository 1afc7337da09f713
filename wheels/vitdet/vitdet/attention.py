"""Multi-head attention with decomposed relative positions (MViTv2, arXiv 2112.01526, section 4.1).

The logit between query pixel (y, x) and key pixel (v, u) is

    scale * q·k  +  q·R_h[y, v]  +  q·R_w[x, u]

The two position terms separate into a row part and a column part. With the one-hot vectors e_v, e_u of the key's
row and column they are a dot product of (q·R_h[y], q·R_w[x]) and (e_v, e_u): extra channels of the query and the
key. So an NPU's fused attention kernel computes the whole logit, and no matrix of the size of the logits exists.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

Formulation = Literal["fused", "plain"]
BLOCK = (
    2**23
)  # most logits in memory at once on a CPU (at least one row of queries): 32 MiB in float32, twice with the softmax


def toeplitz(table: Tensor, size: int) -> Tensor:
    """Arrange a table of relative offsets by query and key position.

    Parameters
    ----------
    table
        (2 * size - 1, channels); row `size - 1 + d` belongs to the offset `d = query - key`.
    size
        Number of positions along the axis.

    Returns
    -------
    Tensor
        (size, size, channels) with `out[q, k] = table[size - 1 + q - k]`. Only padding, expanding and slicing: an
        index tensor would cost a host-to-device copy and a synchronisation in every block.
    """
    channels = table.shape[1]
    # Rows of 2*size entries, all alike. Cutting the sequence into rows of one entry fewer shifts each row by one
    # against the row before: by_key[k, c] = table[c - k].
    rows = F.pad(table, (0, 0, 0, 1)).expand(size, 2 * size, channels).reshape(-1, channels)
    by_key = rows[: size * (2 * size - 1)].view(size, 2 * size - 1, channels)
    return by_key[:, size - 1 :].transpose(0, 1)


def resize_offsets(table: Tensor, length: int) -> Tensor:
    """Resample a (offsets, channels) table linearly to `length` offsets, for another size of image or window."""
    rows = F.interpolate(table.float().t()[None], size=length, mode="linear", align_corners=False)
    return rows[0].t().to(table.dtype)


class AttentionByRows(torch.autograd.Function):
    """softmax(q·k + row + column)·v on a CPU, for a block of query rows at a time.

    All blocks use the same memory. For a matrix of all pairs, the operating system would spend much of the time on
    allocating its pages. The gradient is FlashAttention's (arXiv 2205.14135, algorithm 4).

    Shapes, where `heads` counts the heads of all images: query (heads, size, size, channels); key and value
    (heads, size * size, channels); row and column (heads, size, size, size); the result has the shape of key.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # logits in single precision
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the attention's output; keep what `backward` needs."""
        key, value = key.contiguous(), value.contiguous()
        rows, logits, weights = _block(query)
        blocks = zip(*(part.split(rows, 1) for part in (query, row, column)), strict=True)
        out = torch.cat([_softmax(q, r, c, key, logits, weights) @ value for q, r, c in blocks], dim=1)
        ctx.save_for_backward(query, key, value, row, column, out)
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, value, row and column."""
        query, key, value, row, column, out = ctx.saved_tensors
        rows, logits, weights = _block(query)
        mean = (grad * out).sum(-1, keepdim=True)  # the softmax gradient's mean, weighted by the softmax
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        grads = []
        blocks = [part.split(rows, 1) for part in (query, row, column)]
        blocks += [part.split(rows * query.shape[1], 1) for part in (grad, mean)]
        for q, r, c, grad_out, mean_out in zip(*blocks, strict=True):
            softmax = _softmax(q, r, c, key, logits, weights)
            grad_value.baddbmm_(softmax.mT, grad_out)
            grad_logits = torch.bmm(grad_out, value.mT, out=logits).sub_(mean_out).mul_(softmax)
            grad_key.baddbmm_(grad_logits.mT, q.flatten(1, 2))
            by_pixel = _by_pixel(grad_logits, r)
            grads.append(((grad_logits @ key).view(q.shape), by_pixel.sum(-1), by_pixel.sum(-2)))
        grad_query, grad_row, grad_column = (torch.cat(parts, dim=1) for parts in zip(*grads, strict=True))
        return grad_query, grad_key, grad_value, grad_row, grad_column


def _block(query: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return how many query rows make a block (a divisor of all rows), and memory for its logits and its softmax."""
    heads, size = query.shape[:2]
    rows = max(n for n in range(1, size + 1) if n == 1 or (size % n == 0 and heads * n * size**3 <= BLOCK))
    return rows, *query.new_empty(2, heads, rows * size, size * size)


def _softmax(
    query: Tensor, row: Tensor, column: Tensor, key: Tensor, logits: Tensor, weights: Tensor
) -> Tensor:
    """Return the softmax for a block of query rows, written into `weights`."""
    torch.bmm(query.flatten(1, 2), key.mT, out=logits)
    by_pixel = _by_pixel(logits, row)
    by_pixel += row.unsqueeze(-1)
    by_pixel += column.unsqueeze(-2)
    return torch.softmax(logits, dim=-1, out=weights)


def _by_pixel(logits: Tensor, row: Tensor) -> Tensor:
    """Return a view with the axes (heads, query rows, query columns, key rows, key columns)."""
    return logits.view(*row.shape, row.shape[-1])


class Attention(nn.Module):
    """Self-attention among all pixels of a map.

    Parameters
    ----------
    dim, num_heads
        Channels of the map; `dim` is a multiple of `num_heads`.
    size
        Height and width of the square map, in tokens.
    formulation
        "fused" calls `scaled_dot_product_attention`, or `AttentionByRows` on a CPU. "plain" computes the logits of all
        pairs with basic operators and no loop, for graph export and for devices without a fused kernel.
    """

    def __init__(self, dim: int, num_heads: int, size: int, formulation: Formulation) -> None:
        super().__init__()
        if formulation not in ("fused", "plain"):
            raise ValueError(f"attention must be 'fused' or 'plain', not {formulation!r}")
        self.num_heads = num_heads
        self.size = size
        self.formulation = formulation
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Zero at the start: MAE's pre-trained model has no relative positions, and training starts from it unchanged.
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, dim // num_heads))
        # (tokens, 2 * size): the key's row and column, one-hot, divided by the scale, because the scale must not apply
        # to the position terms. A buffer, so that it moves to the device with the module.
        axis = torch.eye(size) / self.scale
        row_and_column = torch.cat([axis.repeat_interleave(size, 0), axis.repeat(size, 1)], dim=1)
        self.register_buffer("key_position", row_and_column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output, (batch, size, size, dim) like the input."""
        batch, height, width, dim = x.shape
        qkv = self.qkv(x).view(batch, height, width, 3, self.num_heads, -1)
        # each (batch, heads, height, width, channels)
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
        if self.formulation == "plain":
            attend = self._plain
        else:
            attend = self._by_rows if x.device.type == "cpu" else self._fused
        out = attend(query, key.flatten(2, 3), value.flatten(2, 3))  # (batch, heads, tokens, channels)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, dim))

    def position_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the row term and the column term of the logits, each (batch, heads, height, width, size)."""
        batch, heads, size, _, channels = query.shape
        # One matrix product per row (or column) of queries, all at once: the row is the batch of `matmul`.
        by_row = query.permute(2, 0, 1, 3, 4).reshape(size, -1, channels)
        row = by_row @ toeplitz(self.rel_pos_h, size).transpose(1, 2)
        by_column = query.permute(3, 0, 1, 2, 4).reshape(size, -1, channels)
        column = by_column @ toeplitz(self.rel_pos_w, size).transpose(1, 2)
        shape = (size, batch, heads, size, size)
        return row.view(shape).permute(1, 2, 0, 3, 4), column.view(shape).permute(1, 2, 3, 0, 4)

    def _fused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        position = self.key_position.to(key.dtype).expand(*key.shape[:2], -1, -1)
        # torch_npu calls npu_fusion_attention here. Value has fewer channels than query and key: CANN's documentation
        # of aclnnFlashAttentionScore allows it, MindSpeed-LLM (--mla-fa-without-pad) recommends CANN 8.2.RC1 or later.
        return F.scaled_dot_product_attention(
            torch.cat([query, *self.position_logits(query)], dim=-1).flatten(2, 3),
            torch.cat([key, position], dim=-1),
            value,
            scale=self.scale,
        )

    def _by_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, size, _, channels = query.shape
        row, column = (term.flatten(0, 1) for term in self.position_logits(query))
        scaled = (query * self.scale).flatten(0, 1)
        out = AttentionByRows.apply(scaled, key.flatten(0, 1), value.flatten(0, 1), row, column)
        return out.view(batch, heads, size * size, channels)

    def _plain(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        row, column = self.position_logits(query)
        logits = (query * self.scale).flatten(2, 3) @ key.transpose(-2, -1)
        by_pixel = logits.view(*query.shape[:-1], self.size, self.size)
        by_pixel = by_pixel + row.unsqueeze(-1) + column.unsqueeze(-2)
        return by_pixel.view(logits.shape).softmax(dim=-1) @ value

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ("rel_pos_h", "rel_pos_w"):
            table = state_dict.get(prefix + name)
            if table is not None and table.ndim == 2 and len(table) != 2 * self.size - 1:
                state_dict[prefix + name] = resize_offsets(table, 2 * self.size - 1)
        super()._load_from_state_dict(state_dict, prefix, *args)
