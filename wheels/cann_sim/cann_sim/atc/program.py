"""What an OM file of cann_sim holds: flat programs of operators with the semantics of ONNX and the data types of ATC.

ATC's side (`cann_sim.atc`) makes it, `om_file` writes it, and `src/executor` runs it without Python. Every shape is
static; a model with gears has one program per gear, which share the constants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Attribute = int | float | str | list[int] | list[float] | list[str]


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of a program: its name, data type (numpy's name; `bfloat16`, too) and static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator of a program.

    Attributes
    ----------
    name
        The node's name in the ONNX graph; of fused nodes, that of the last one.
    operator
        Its ONNX operator with `opset`'s semantics, such as `Conv`; beside ONNX's own: `Gelu` of opset 20 with
        `approximate`, and what ATC registers on top (`RoiExtractor`, `NPUFlashAttention`).
    kernel
        The GE operator that a card would run, such as `Conv2D`: the name in profiles, dumps and counters.
    engine
        `AiCore`, `AiCpu` or `Host` (folded away on a card, such as a Reshape).
    inputs, outputs
        Names of values or constants; an empty name is an input that is left out.
    attributes
        As in ONNX.
    """

    name: str
    operator: str
    kernel: str
    engine: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Program:
    """The operators of one gear in an order in which they can run; `values` has every value that is no constant.

    A data type of `values` is the one that is computed and stored: an operator whose output is float16 computes in
    float32 and rounds once, as AI Core's Cube and Vector units do.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    values: dict[str, Value]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, kw_only=True)
class Aipp:
    """AIPP of one input: uint8 NHWC in, `(pixel - mean - min) * var_reci` out per channel, swapped if asked."""

    input: str
    size: tuple[int, int]
    channels_swapped: bool
    mean: tuple[float, ...]
    minimum: tuple[float, ...]
    reciprocal: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A converted model.

    Attributes
    ----------
    name, soc, command
        The model's name; the SoC that it was converted for, such as `Ascend910B3`; ATC's command line.
    opset
        The version of ONNX's operator set whose semantics the operations have.
    inputs, outputs
        As the model describes them: with gears an input's dimension that varies is -1, and outputs have the largest
        gear's shape.
    gears
        "" or the kind: `batch`, `image`, `dims`.
    programs
        By gear: `()` for a static model, `(4,)` for a batch, `(800, 1344)` for an image size, all dimensions of all
        inputs for dims.
    constants
        Shared by all programs; float16 where the program stores them so.
    metadata
        What the user's tools want to find again, such as `export_id`.
    """

    name: str
    soc: str
    command: str
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    gears: str
    programs: dict[tuple[int, ...], Program]
    constants: dict[str, np.ndarray]
    aipp: tuple[Aipp, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
