"""A trained detector as the modules that `vitdet.export` writes: backbone, rpn, roi and mask, all of static shapes.

They hold the detector's own modules, so the nodes of a graph have the names of its layers. What ATC refuses or computes
slowly is rewritten (`Options`); a rewrite changes the order of float32 sums at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from torch import Tensor, nn

from vitdet.attention import Attention, resize_offsets, toeplitz
from vitdet.backbone import Block, ViT
from vitdet.pyramid import LN2d

# What is changed for ATC unless it is left out, by name: the option `--no-rewrite` of `vitdet.export`.
REWRITES = {
    "attention": "rank 3, and positions as channels of query and key: one matrix product gives all logits",
    "conv-transpose": "2x2 with stride 2 as a 1x1 convolution whose channels are moved to pixels",
    "layer-norm": "over channels as LayerNormalization of the last axis between two transpositions",
    "level-roots": "a region's level from sqrt(w) * sqrt(h); w * h is above float16 from 256 x 256 px on",
    "rois-fp32": "regions, their levels and RoiAlign in float32 in every precision mode",
}
# ATC's own operators in the place of standard ones; ONNX Runtime has none of them.
VARIANTS = {
    "roi-extractor": "RoiExtractor: levels and RoiAlign of all levels in one operator, up to opset 16",
    "flash-attention": "NPUFlashAttention in the blocks that attend globally",
}
ALIGN = 16  # channels of NPUFlashAttention come in multiples of this


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a detector becomes stages.

    Attributes
    ----------
    size
        (height, width) of the input, px: multiples of twice the patch size.
    batch
        Pictures per execution.
    without
        Names of `REWRITES` to leave out.
    variants
        Names of `VARIANTS` to use.
    """

    size: tuple[int, int]
    batch: int = 1
    without: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()

    def rewrites(self, name: str) -> bool:
        """Return whether this rewrite is done."""
        if name not in REWRITES:
            raise KeyError(name)
        return name not in self.without


# -- attention --


class FlashAttention(torch.autograd.Function):
    """The node NPUFlashAttention: softmax(query·key)·value of [batch, tokens, heads * channels], layout BSH."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Return what the node computes, [batch, tokens, heads * channels]."""
        parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        return F.scaled_dot_product_attention(*parts, scale=1.0).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int) -> Any:
        """Return the node; the domain is removed when the graph is written."""
        out = g.op(
            "ascend::NPUFlashAttention",
            query,
            key,
            value,
            head_num_i=heads,
            input_layout_s="BSH",
            scale_value_f=1.0,
            keep_prob_f=1.0,
        )
        out.setType(query.type())
        return out


class StaticAttention(nn.Module):
    """`Attention` among rows x columns tokens, which need not be a square, of a fixed number of maps.

    Parameters
    ----------
    attention
        The trained module. Its tables of relative positions are resized if the map has another size.
    count, rows, columns
        Number of maps (pictures, or windows of all pictures) and their tokens.
    flash
        Whether the node is NPUFlashAttention.
    """

    row_table: Tensor
    column_table: Tensor
    key_position: Tensor

    def __init__(self, attention: Attention, count: int, rows: int, columns: int, *, flash: bool) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale, self.flash = attention.num_heads, attention.scale, flash
        self.count, self.rows, self.columns = count, rows, columns
        self.dim = self.proj.in_features
        tables = (
            toeplitz(_offsets(table.detach(), 2 * side - 1), side).transpose(1, 2).contiguous()
            for table, side in ((attention.rel_pos_h, rows), (attention.rel_pos_w, columns))
        )
        for name, table in zip(("row_table", "column_table"), tables, strict=True):
            self.register_buffer(name, table, persistent=False)
        # (1, tokens, rows + columns): the key's row and column, one-hot.
        row = torch.eye(rows).repeat_interleave(columns, 0)
        column = torch.eye(columns).repeat(rows, 1)
        self.register_buffer("key_position", torch.cat([row, column], dim=1)[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output, (count, rows, columns, dim) like the input."""
        count, rows, columns, heads = self.count, self.rows, self.columns, self.heads
        tokens, channels, maps = rows * columns, self.dim // heads, count * heads
        parts = self.qkv(x).reshape(count, tokens, 3, heads, channels).permute(2, 0, 3, 1, 4)
        parts = parts.reshape(3, maps, tokens, channels)
        query, key, value = parts[0], parts[1], parts[2]
        # One matrix product per row (or column) of queries: the row is the batch.
        by_pixel = query.reshape(maps, rows, columns, channels)
        by_row = by_pixel.permute(1, 0, 2, 3).reshape(rows, maps * columns, channels) @ self.row_table
        by_row = by_row.reshape(rows, maps, columns, rows).permute(1, 0, 2, 3).reshape(maps, tokens, rows)
        by_column = by_pixel.permute(2, 0, 1, 3).reshape(columns, maps * rows, channels) @ self.column_table
        by_column = by_column.reshape(columns, maps, rows, columns).permute(1, 2, 0, 3)
        by_column = by_column.reshape(maps, tokens, columns)
        query = torch.cat([query * self.scale, by_row, by_column], dim=2)
        key = torch.cat([key, self.key_position.expand(maps, -1, -1)], dim=2)
        if self.flash:
            out = self._flash(query, key, value)
        else:
            out = (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
            out = out.reshape(count, heads, tokens, channels).permute(0, 2, 1, 3)
        return self.proj(out.reshape(count, rows, columns, self.dim))

    def _flash(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens, width = self.rows * self.columns, -(-query.shape[-1] // ALIGN) * ALIGN

        def arrange(part: Tensor) -> Tensor:
            missing = int(width - part.shape[-1])
            if missing:
                part = torch.cat([part, torch.zeros(self.count * self.heads, tokens, missing)], dim=2)
            part = part.reshape(self.count, self.heads, tokens, width)
            return part.permute(0, 2, 1, 3).reshape(self.count, tokens, self.heads * width)

        out = FlashAttention.apply(arrange(query), arrange(key), arrange(value), self.heads)
        return out.reshape(self.count, tokens, self.heads, width)[..., : self.dim // self.heads]


def _offsets(table: Tensor, length: int) -> Tensor:
    return table if len(table) == length else resize_offsets(table, length)


class PadEnd(torch.autograd.Function):
    """The node Pad: zeros behind the rows and columns of (batch, rows, columns, dim); `F.pad` makes ten nodes of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: int, across: int) -> Tensor:
        """Return (batch, rows + down, columns + across, dim)."""
        return F.pad(x, (0, 0, 0, across, 0, down))

    @staticmethod
    def symbolic(g: Any, x: Any, down: int, across: int) -> Any:
        """Return the node."""
        pads = g.op("Constant", value_t=torch.tensor([0, 0, 0, 0, 0, down, across, 0]))
        batch, rows, columns, dim = x.type().sizes()
        out = g.op("Pad", x, pads, mode_s="constant")
        out.setType(x.type().with_sizes([batch, rows + down, columns + across, dim]))
        return out


class Windows(nn.Module):
    """Attention within windows, on (batch, rows, columns, dim) tokens of a fixed grid."""

    def __init__(self, attention: nn.Module, window: int, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.attention, self.window, self.shape = attention, window, shape
        _, rows, columns, _ = shape
        self.missing = (-rows % window, -columns % window)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attention's output, of the input's shape."""
        batch, rows, columns, dim = self.shape
        window, (below, beside) = self.window, self.missing
        down, across = (rows + below) // window, (columns + beside) // window
        if below or beside:
            x = PadEnd.apply(x, below, beside)
        x = x.reshape(batch, down, window, across, window, dim).permute(0, 1, 3, 2, 4, 5)
        x = self.attention(x.reshape(batch * down * across, window, window, dim))
        x = x.reshape(batch, down, across, window, window, dim).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, down * window, across * window, dim)
        return x[:, :rows, :columns] if below or beside else x


class StaticBlock(nn.Module):
    """`Block` on (batch, rows, columns, dim) tokens of a fixed grid."""

    def __init__(self, block: Block, batch: int, grid: tuple[int, int], options: Options) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        if block.window:
            count = batch * math.prod(-(-side // block.window) for side in grid)
            sides = (block.window, block.window)
        else:
            count, sides = batch, grid
        if options.rewrites("attention"):
            flash = "flash-attention" in options.variants and not block.window
            self.attn: nn.Module = StaticAttention(block.attn, count, *sides, flash=flash)
        elif sides[0] == sides[1] == block.attn.size:
            self.attn = block.attn
            block.attn.formulation = "plain"
        else:
            raise ValueError(
                "the model's own attention takes its own size only: not without the rewrite attention"
            )
        if block.window:
            self.attn = Windows(self.attn, block.window, (batch, *grid, block.attn.proj.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (batch, rows, columns, dim) like the input."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# -- convolutions and norms --


class ConvToPixels(nn.Module):
    """A 2x2 transposed convolution of stride 2, as a 1x1 convolution to four pixels and their rearrangement."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        width = layer.out_channels
        self.conv = nn.Conv2d(layer.in_channels, 4 * width, kernel_size=1, bias=layer.bias is not None)
        with torch.no_grad():
            self.conv.weight.copy_(layer.weight.permute(1, 2, 3, 0).reshape(4 * width, -1, 1, 1))
            if layer.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(layer.bias.repeat_interleave(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, channels, 2 * height, 2 * width)."""
        batch, _, height, width = map(int, x.shape)
        x = self.conv(x).reshape(batch, -1, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, -1, 2 * height, 2 * width)


class DecomposedNorm(nn.Module):
    """`LN2d` in single operators over the channel axis, as mmdetection's project has it."""

    def __init__(self, norm: LN2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map, (batch, channels, height, width) like the input."""
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def rewrite(module: nn.Module, options: Options) -> nn.Module:
    """Replace the layers below a module that the options rewrite, in place, and return the module."""
    for name, child in module.named_children():
        if (
            options.rewrites("conv-transpose")
            and isinstance(child, nn.ConvTranspose2d)
            and child.kernel_size == child.stride == (2, 2)
            and child.padding == child.output_padding == (0, 0)
            and child.groups == 1
        ):
            setattr(module, name, ConvToPixels(child))
        elif isinstance(child, LN2d) and not options.rewrites("layer-norm"):
            setattr(module, name, DecomposedNorm(child))
        else:
            rewrite(child, options)
    return module


# -- regions --


class Align(torch.autograd.Function):
    """The node RoiAlign with half_pixel, which is mmcv's `roi_align` with aligned=True."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, boxes: Tensor, pictures: Tensor, side: int, scale: float, samples: int
    ) -> Tensor:
        """Return [n, channels, side, side] from features, boxes [n, 4] in pixels and their pictures [n], int64."""
        rois = torch.cat([pictures[:, None].to(boxes), boxes], dim=1)
        return roi_align(features, rois, (side, side), scale, samples, "avg", True)

    @staticmethod
    def symbolic(
        g: Any, features: Any, boxes: Any, pictures: Any, side: int, scale: float, samples: int
    ) -> Any:
        """Return the node."""
        return g.op(
            "RoiAlign",
            features,
            boxes,
            pictures,
            coordinate_transformation_mode_s="half_pixel",
            mode_s="avg",
            output_height_i=side,
            output_width_i=side,
            sampling_ratio_i=samples,
            spatial_scale_f=scale,
        )


class Extractor(torch.autograd.Function):
    """The node RoiExtractor: the levels of regions, and RoiAlign of each from its level."""

    @staticmethod
    def forward(
        ctx: Any,
        rois: Tensor,
        finest: int,
        scales: tuple[float, ...],
        side: int,
        samples: int,
        *features: Tensor,
    ) -> Tensor:
        """Return [n, channels, side, side] for regions [n, 5]."""
        mine = Levels(finest, len(scales), roots=False)(rois[:, 1:])
        out = torch.zeros(len(rois), features[0].shape[1], side, side)
        for level, scale, of_level in zip(features, scales, mine, strict=False):
            places = of_level[:, 0].nonzero()[:, 0]
            out[places] = roi_align(level, rois[places], (side, side), scale, samples, "avg", True)
        return out

    @staticmethod
    def symbolic(
        g: Any, rois: Any, finest: int, scales: tuple[float, ...], side: int, samples: int, *features: Any
    ) -> Any:
        """Return the node; the domain is removed when the graph is written."""
        out = g.op(
            "ascend::RoiExtractor",
            *features,
            rois,
            finest_scale_i=finest,
            roi_scale_factor_f=0.0,
            spatial_scale_f=list(scales),
            pooled_height_i=side,
            pooled_width_i=side,
            sample_num_i=samples,
            pool_mode_s="avg",
            aligned_i=1,
        )
        shape = [rois.type().sizes()[0], features[0].type().sizes()[1], side, side]
        out.setType(features[0].type().with_sizes(shape))
        return out


class Levels(nn.Module):
    """Which level each region is read from, as mmdet's SingleRoIExtractor decides it, without a logarithm.

    The level is floor(log2(sqrt(w * h) / finest + 1e-6)) within the levels there are; here it is counted how many of
    2, 4, … that quotient reaches.
    """

    def __init__(self, finest: int, count: int, *, roots: bool) -> None:
        super().__init__()
        self.finest, self.count, self.roots = finest, count, roots

    def forward(self, boxes: Tensor) -> list[Tensor]:
        """Return for each level [n, 1]: 1 where the box [n, 4] is of this level, else 0."""
        # Selected by index and not by slices: ATC 8.1 miscompiles Slice beside Transpose.
        low, high = boxes[:, self._columns(boxes, 0, 1)], boxes[:, self._columns(boxes, 2, 3)]
        sides = high - low
        width, height = sides[:, self._columns(boxes, 0)], sides[:, self._columns(boxes, 1)]
        scale = width.sqrt() * height.sqrt() if self.roots else (width * height).sqrt()
        quotient = scale / self.finest + 1e-6
        reached = [(quotient >= 2.0**level).to(boxes.dtype) for level in range(1, self.count)]
        ends = [torch.ones_like(scale), *reached], [*reached, torch.zeros_like(scale)]
        return [begin - end for begin, end in zip(*ends, strict=True)]

    @staticmethod
    def _columns(boxes: Tensor, *numbers: int) -> Tensor:
        return torch.tensor(numbers, device=boxes.device)


class Regions(nn.Module):
    """mmdet's SingleRoIExtractor with static shapes: every level reads all regions, those of other levels empty."""

    def __init__(self, extractor: Any, options: Options) -> None:
        super().__init__()
        layer = extractor.roi_layers[0]
        if not layer.aligned or layer.pool_mode != "avg":
            raise ValueError("RoIAlign must be aligned and average")
        self.in_one = "roi-extractor" in options.variants
        self.side, self.samples = layer.output_size[0], layer.sampling_ratio
        self.scales = tuple(one.spatial_scale for one in extractor.roi_layers)
        self.finest = extractor.finest_scale
        self.levels = Levels(self.finest, len(self.scales), roots=options.rewrites("level-roots"))

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return [n, channels, side, side] for regions [n, 5]: picture, x1, y1, x2, y2."""
        if self.in_one:
            features = features[: len(self.scales)]
            return Extractor.apply(rois, self.finest, self.scales, self.side, self.samples, *features)
        boxes = rois[:, torch.tensor([1, 2, 3, 4])]
        pictures = rois[:, torch.tensor(0)].to(torch.int64)
        out = None
        for level, scale, mine in zip(features, self.scales, self.levels(boxes), strict=False):
            read = Align.apply(level, boxes * mine, pictures, self.side, scale, self.samples)
            read = read * mine[:, :, None, None]
            out = read if out is None else out + read
        return out


# -- the stages --


class Backbone(nn.Module):
    """Pictures [batch, 3, height, width], normalised, to the pyramid's five maps."""

    position: Tensor

    def __init__(self, model: Any, options: Options) -> None:
        super().__init__()
        vit: ViT = model.backbone
        patch = vit.patch_embed.proj.kernel_size[0]
        grid = (options.size[0] // patch, options.size[1] // patch)
        self.patch_embed, self.neck = vit.patch_embed, rewrite(model.neck, options)
        self.blocks = nn.ModuleList(StaticBlock(block, options.batch, grid, options) for block in vit.blocks)
        self.register_buffer("position", fit_positions(vit, grid), persistent=False)

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Return p2 to p6, [batch, channels, height / stride, width / stride]."""
        x = self.patch_embed(picture) + self.position
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


def fit_positions(vit: ViT, grid: tuple[int, int]) -> Tensor:
    """Return a backbone's absolute position embedding (1, rows, columns, dim), bicubic if it has another grid."""
    table = vit.pos_embed.detach().view(1, vit.grid, vit.grid, -1)
    if grid == (vit.grid, vit.grid):
        return table
    image = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).contiguous()


class Rpn(nn.Module):
    """The pyramid's maps to logits and deltas of all anchors, as maps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.rpn_head = model.rpn_head

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Return [batch, anchors, h, w] for each level, then [batch, 4 * anchors, h, w] for each level."""
        outs = [self.rpn_head.forward_single(level) for level in features]
        return (*(scores for scores, _ in outs), *(deltas for _, deltas in outs))


class Roi(nn.Module):
    """Proposals to logits of all classes and to boxes' deltas."""

    def __init__(self, model: Any, options: Options) -> None:
        super().__init__()
        self.regions = Regions(model.roi_head.bbox_roi_extractor, options)
        self.bbox_head = rewrite(model.roi_head.bbox_head, options)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return [n, classes + 1] and [n, 4] or [n, 4 * classes] from p2 to p5 and regions [n, 5]."""
        *features, rois = inputs
        scores, deltas = self.bbox_head(self.regions(features, rois))
        return scores, deltas


class Mask(nn.Module):
    """Detections to the logits of their masks."""

    def __init__(self, model: Any, options: Options) -> None:
        super().__init__()
        self.regions = Regions(model.roi_head.mask_roi_extractor, options)
        self.mask_head = rewrite(model.roi_head.mask_head, options)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return [n, side, side] from p2 to p5, regions [n, 5] and, unless class-agnostic, rows int32 [n].

        The row of region k with label c is k * classes + c: only the mask of its class leaves the device.
        """
        classes = self.mask_head.conv_logits.out_channels
        *features, rois = inputs if classes == 1 else inputs[:-1]
        logits = self.mask_head(self.regions(features, rois))
        logits = logits.reshape(-1, *map(int, logits.shape[-2:]))
        return logits if classes == 1 else logits.index_select(0, inputs[-1])


def build(model: Any, options: Options) -> dict[str, nn.Module]:
    """Return the stages of a detector in the order in which they run. The detector's layers are changed in place."""
    return {
        "backbone": Backbone(model, options).eval(),
        "rpn": Rpn(model).eval(),
        "roi": Roi(model, options).eval(),
        "mask": Mask(model, options).eval(),
    }
