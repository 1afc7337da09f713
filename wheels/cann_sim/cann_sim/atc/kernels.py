"""The kernels of a SoC: which GE operator takes which data types on AI Core, and what AI CPU has beside it.

`kernels.tsv` holds facts about CANN 8.5's operator library of Ascend 910B: an operator, its list of mixed precision,
`cpu` if the open operator repositories have an AI CPU kernel, and the combinations of data types that AI Core takes,
inputs before and outputs behind `>`, one letter each (`LETTERS`; `n` is int32 or int64, `*` one or more of the letter
before it). Combinations that a kernel decides in code are those of its documentation. The library of 910_93 is closed;
documents give it the same kernels. Those of 310P and 910A follow from the documents: no bfloat16, and on 310P
convolutions in float16 only.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from cann_sim.atc.registry import ge_operator

Family = Literal["910B", "910_93", "310P", "910A"]
LETTERS = {
    "h": "float16", "s": "float32", "b": "bfloat16", "d": "float64", "i": "int32", "l": "int64", "c": "int8",
    "C": "uint8", "w": "int16", "W": "uint16", "u": "uint32", "U": "uint64", "?": "bool",
}  # fmt: skip
_LETTER = {name: letter for letter, name in LETTERS.items()}
FLOATS = ("float16", "float32", "bfloat16")
CUBE = frozenset(
    (
        "Conv2D",
        "DepthwiseConv2D",
        "Conv3D",
        "Conv2DTransposeD",
        "Conv3DTransposeD",
        "MatMulV2",
        "BatchMatMulV2",
    )
)
_CONVOLUTIONS = frozenset(("Conv2D", "DepthwiseConv2D", "Conv3D", "Conv2DTransposeD", "Conv3DTransposeD"))


@dataclass(frozen=True, kw_only=True)
class Soc:
    """A SoC: its name as --soc_version gives it, such as `Ascend910B3`, and the family whose kernels it has."""

    name: str
    family: Family


@dataclass(frozen=True)
class Combination:
    """Data types that a kernel takes and gives: letters of inputs and outputs, with `n` and `*` as in the table."""

    inputs: str
    outputs: str

    def input_letters(self, count: int) -> str | None:
        """Return a letter for each of `count` inputs, or None if it takes fewer; what is optional may be missing.

        >>> Combination("h*s", "h").input_letters(4)
        'hhhs'
        >>> Combination("hhh", "h").input_letters(2)
        'hh'
        """
        return _spread(self.inputs, count)

    def output_letters(self, count: int) -> str | None:
        """Return a letter for each of `count` outputs, or None if it gives fewer."""
        return _spread(self.outputs, count)


def _spread(pattern: str, count: int) -> str | None:
    head, star, tail = pattern.partition("*")
    if star:
        return head + head[-1] * max(count - len(head) - len(tail), 0) + tail if count else ""
    return pattern[:count] if count <= len(pattern) else None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What the libraries have for one GE operator on one SoC.

    Attributes
    ----------
    mixlist
        `white` (lowered by mixed precision), `black` (never), `grey` (as the operators before it).
    combinations
        Those of AI Core; empty without a kernel there.
    on_cpu
        Whether AI CPU has a kernel.
    """

    operator: str
    mixlist: str
    combinations: tuple[Combination, ...]
    on_cpu: bool


@cache
def kernel(soc: Soc, operator: str) -> Kernel | None:
    """Return the kernels of a GE operator, or None if neither engine has any."""
    known = _table().get(operator)
    if known is None or soc.family in ("910B", "910_93"):
        return known
    kept = [
        combination
        for combination in known.combinations
        if "b" not in combination.inputs + combination.outputs
    ]
    if soc.family == "310P" and operator in _CONVOLUTIONS:
        kept = [combination for combination in kept if "s" not in combination.inputs + combination.outputs]
    return Kernel(operator=operator, mixlist=known.mixlist, combinations=tuple(kept), on_cpu=known.on_cpu)


@cache
def _table() -> dict[str, Kernel]:
    text = files("cann_sim.atc").joinpath("kernels.tsv").read_text(encoding="utf-8")
    table = {}
    for row in csv.DictReader(text.splitlines(), delimiter="\t"):
        pairs = (word.partition(">") for word in row["combinations"].split())
        combinations = tuple(Combination(inputs, outputs) for inputs, _, outputs in pairs)
        table[row["operator"]] = Kernel(
            operator=row["operator"],
            mixlist=row["list"],
            combinations=combinations,
            on_cpu=row["cpu"] == "cpu",
        )
    return table


def letter(dtype: str) -> str:
    """Return the letter of a data type in the table."""
    return _LETTER[dtype]


# ---- which GE operator an ONNX operator becomes ----

Attributes = Mapping[str, Any]
Shapes = Sequence[tuple[int, ...] | None]

# What is only another view of its input, which a card computes when it converts.
VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "NPUFormatCast"))


def _convolution(attributes: Attributes, shapes: Shapes) -> str:
    x, weight = shapes[0], shapes[1]
    if x is None or weight is None:
        return "Conv2D"
    if len(x) == 5:
        return "Conv3D"
    group = attributes.get("group", 1)
    return "DepthwiseConv2D" if group > 1 and group == x[1] and weight[1] == 1 else "Conv2D"


def _transposed(attributes: Attributes, shapes: Shapes) -> str:
    return "Conv3DTransposeD" if shapes[0] is not None and len(shapes[0]) == 5 else "Conv2DTransposeD"


def _product(attributes: Attributes, shapes: Shapes) -> str:
    return (
        "MatMulV2" if all(shape is not None and len(shape) == 2 for shape in shapes[:2]) else "BatchMatMulV2"
    )


def _resize(attributes: Attributes, shapes: Shapes) -> str:
    mode = attributes.get("mode", "nearest")
    if mode == "cubic":
        return "Resize"
    return "ResizeNearestNeighborV2" if mode == "nearest" else "ResizeBilinearV2"


def _max_pool(attributes: Attributes, shapes: Shapes) -> str:
    return "MaxPool3D" if len(attributes.get("kernel_shape", ())) == 3 else "MaxPoolV3"


def _pad(attributes: Attributes, shapes: Shapes) -> str:
    return "PadV3" if attributes.get("mode", "constant") == "constant" else "MirrorPad"


_CHOICES: dict[str, str | Callable[[Attributes, Shapes], str]] = {
    "Conv": _convolution, "ConvTranspose": _transposed, "MatMul": _product, "Gemm": "MatMulV2", "Resize": _resize,
    "Upsample": _resize, "MaxPool": _max_pool, "AveragePool": "AvgPoolV2", "GlobalAveragePool": "ReduceMeanD",
    "GlobalMaxPool": "ReduceMaxD", "ReduceMean": "ReduceMeanD", "ReduceSum": "ReduceSumD",
    "ReduceMax": "ReduceMaxD", "ReduceMin": "ReduceMinD", "ReduceProd": "ReduceProdD",
    "ReduceSumSquare": "SquareSumV1", "ReduceLogSum": "ReduceLogSum", "ReduceLogSumExp": "ReduceLogSumExp",
    "ArgMax": "ArgMaxV2", "ArgMin": "ArgMin", "BatchNormalization": "BNInfer", "LayerNormalization": "LayerNorm",
    "Concat": "ConcatD", "Split": "SplitD", "Slice": "StridedSlice", "Gather": "GatherV2", "TopK": "TopKV2",
    "Clip": "ClipByValueV2", "Max": "Maximum", "Min": "Minimum", "Mean": "AccumulateNV2", "Pad": _pad,
    "Tile": "Tile", "Transpose": "TransposeD", "Trilu": "Tril", "OneHot": "OneHot", "ScatterND": "TensorScatterUpdate",
    "RoiAlign": "ROIAlign", "NonMaxSuppression": "NonMaxSuppressionV7", "NonZero": "NonZero", "Xor": "NotEqual",
    "ConstantOfShape": "Fill", "EyeLike": "Eye", "NPUFlashAttention": "FlashAttentionScore",
    "NPUPromptFlashAttention": "PromptFlashAttention", "NPUFusedAttentionScore": "AttentionScore", "Gelu": "Gelu",
    "LpNormalization": "LpNormV2",
}  # fmt: skip

# Kernels that take other inputs than the node, in another order or not all: the node's input of each.
_TAKES: dict[str, tuple[int, ...]] = {
    "BNInfer": (0, 1, 2, 3, 4), "MatMulV2": (0, 1, 2), "ResizeBilinearV2": (0,), "ResizeNearestNeighborV2": (0,),
    "StridedSlice": (0,), "TopKV2": (0,), "PadV3": (0,), "MirrorPad": (0,), "SplitD": (0,),
    "ReduceMeanD": (0,), "ReduceSumD": (0,), "ReduceMaxD": (0,), "ReduceMinD": (0,), "ReduceProdD": (0,),
    "SquareSumV1": (0,), "ReduceLogSum": (0,), "ReduceLogSumExp": (0,), "ArgMaxV2": (0,), "ArgMin": (0,),
    "LpNormV2": (0,), "ROIAlign": (0, 1), "Tril": (0,), "Expand": (0,), "Tile": (0,), "GatherV2": (0, 1),
    "Cumsum": (0,), "OneHot": (), "Fill": (), "FlashAttentionScore": (0, 1, 2, 3),
}  # fmt: skip


def ge_name(operator: str, domain: str, attributes: Attributes, shapes: Shapes) -> str:
    """Return the GE operator that a card runs for an ONNX operator with inputs of these shapes."""
    choice = _CHOICES.get(operator)
    if choice is None:
        return ge_operator(domain, operator).partition("|")[0] or operator
    return choice if isinstance(choice, str) else choice(attributes, shapes)


def taken(operator: str, count: int) -> tuple[int, ...]:
    """Return which of a node's `count` inputs a GE operator takes as tensors with a data type of its choice."""
    return tuple(i for i in _TAKES.get(operator, range(count)) if i < count)


def given(operator: str, count: int) -> tuple[int, ...]:
    """Return which output of a GE operator each of a node's `count` outputs is."""
    return (3,) if operator == "FlashAttentionScore" else tuple(range(count))
