"""The plain vision transformer of ViTDet (arXiv 2203.16527): one scale, window attention, a few global blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from vitdet.attention import Attention, Formulation
from vitdet.checkpoint import load_pretrained


class PatchEmbed(nn.Module):
    """Divide an image into patches and project each patch to one token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens of images (batch, 3, height, width) as (batch, rows, columns, dim)."""
        return self.proj(image).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """The transformer block's two-layer perceptron."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, (..., dim) like the input."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Transformer block with attention within windows of `window` x `window` tokens, or global if `window` is None."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        grid: int,
        window: int | None,
        attention: Formulation,
    ) -> None:
        super().__init__()
        self.window = window
        # eps is PyTorch's 1e-5, not MAE's 1e-6: the published ViTDet checkpoint was trained with 1e-5.
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, window or grid, attention)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (batch, rows, columns, dim) like the input."""
        y = self.norm1(x)
        if self.window:
            y = merge_windows(self.attn(split_windows(y, self.window)), self.window, x.shape)
        else:
            y = self.attn(y)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def split_windows(x: Tensor, window: int) -> Tensor:
    """Split (batch, rows, columns, dim) into (batch * windows, window, window, dim), zero-padded to whole windows."""
    batch, rows, columns, dim = x.shape
    x = F.pad(x, (0, 0, 0, -columns % window, 0, -rows % window))
    x = x.view(batch, x.shape[1] // window, window, x.shape[2] // window, window, dim)
    return x.transpose(2, 3).reshape(-1, window, window, dim)


def merge_windows(x: Tensor, window: int, shape: Sequence[int]) -> Tensor:
    """Undo `split_windows`: back to `shape`, without the padding."""
    batch, rows, columns, dim = shape
    down, across = math.ceil(rows / window), math.ceil(columns / window)
    x = x.view(batch, down, across, window, window, dim).transpose(2, 3)
    return x.reshape(batch, down * window, across * window, dim)[:, :rows, :columns]


def resize_positions(table: Tensor, grid: int) -> Tensor:
    """Fit a checkpoint's absolute position embedding to a `grid` x `grid` map and drop the class token's entry.

    From (1, n * n [+ 1], dim) to (1, grid * grid, dim); bicubic interpolation if n differs from `grid`.
    """
    side = math.isqrt(table.shape[1])
    if side * side != table.shape[1]:
        table = table[:, 1:]  # the class token comes first
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            raise ValueError(f"pos_embed of {table.shape[1] + 1} entries is no square map")
    if side == grid:
        return table
    image = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).to(table.dtype)


@MODELS.register_module()
class ViT(BaseModule):
    """ViTDet's backbone: (batch, 3, img_size, img_size) to one map (batch, embed_dim, img_size/patch_size, …).

    Parameters
    ----------
    img_size, patch_size
        Side of the (padded) square input and of a patch, in pixels. The size is fixed: position embeddings are
        fitted to it when a checkpoint is loaded, once, and never in `forward`.
    embed_dim, depth, num_heads, mlp_ratio
        The transformer's shape.
    window_size, window_block_indexes
        Blocks that attend within windows of `window_size` tokens; the others attend globally.
    drop_path_rate
        Stochastic depth of the last block; it grows linearly from 0.
    attention
        See `vitdet.attention.Attention`.
    init_cfg
        None, or `dict(type="Pretrained", checkpoint=…)` with a file of MAE weights.
    """

    def __init__(
        self,
        *,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        window_size: int = 14,
        window_block_indexes: Sequence[int] = (0, 1, 3, 4, 6, 7, 9, 10),
        drop_path_rate: float = 0.0,
        attention: Formulation = "fused",
        init_cfg: dict[str, str] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is no multiple of patch_size {patch_size}")
        self.grid = img_size // patch_size
        self.img_size = img_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid * self.grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                drop_path_rate * index / max(depth - 1, 1),
                self.grid,
                window_size if index in window_block_indexes else None,
                attention,
            )
            for index in range(depth)
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def init_weights(self) -> None:
        """Load the file that `init_cfg` names, if any: mmengine's loader does not know MAE's layout and only warns."""
        if self.init_cfg is None:
            super().init_weights()
        else:
            load_pretrained(self, self.init_cfg["checkpoint"])
            self._is_init = True

    def forward(self, image: Tensor) -> Tensor:
        """Return one feature map, (batch, embed_dim, grid, grid); the neck makes the pyramid."""
        if image.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"this backbone takes {self.img_size} x {self.img_size} images, not {tuple(image.shape[-2:])}: "
                "pad them in the data pipeline, or set img_size of the backbone and of the pipeline alike"
            )
        # Contiguous: each sum below keeps the strides of its first operand, so normalisation would copy the permuted
        # map in every block.
        x = self.patch_embed(image).contiguous()
        x = x + self.pos_embed.view(1, self.grid, self.grid, -1)
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2).contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        table = state_dict.get(prefix + "pos_embed")
        if table is not None and table.ndim == 3 and table.shape[1] != self.grid * self.grid:
            state_dict[prefix + "pos_embed"] = resize_positions(table, self.grid)
        super()._load_from_state_dict(state_dict, prefix, *args)
