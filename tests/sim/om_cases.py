"""Single nodes for the executor beside ONNX Runtime: also empty, of one element, with inputs left out, by opset."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

RANDOM = np.random.default_rng(0)


def floats(*shape: int, low: float = -3, high: float = 3) -> np.ndarray:
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def ints(*numbers: Any) -> np.ndarray:
    return np.array(numbers[0] if len(numbers) == 1 and isinstance(numbers[0], list) else numbers, np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def flags(*shape: int) -> np.ndarray:
    return RANDOM.random(shape) < 0.5


@dataclass(kw_only=True)
class Case:
    """One node: None is an input that is left out; `half` says whether it computes, so that float16 must round once."""

    operator: str
    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    note: str = ""
    half: bool = False
    tolerance: float = 1e-5


def case(operator: str, *inputs: np.ndarray | None, note: str = "", **options: Any) -> Case:
    known = {name: options.pop(name) for name in ("opset", "outputs", "half", "tolerance") if name in options}
    return Case(operator=operator, inputs=inputs, note=note, attributes=options, **known)


X = floats(2, 3, 4)
PICTURE = floats(2, 4, 7, 9)
ROIS = np.array([[1, 2, 20, 14], [0, 0, 3, 3], [-5, -4, 4, 6], [8, 8, 8, 8], [30, 2, 60, 40]], np.float32)

UNARY = [
    *(
        case(name, X, half=True)
        for name in (
            "Abs",
            "Ceil",
            "Cos",
            "Erf",
            "Exp",
            "Floor",
            "Neg",
            "Relu",
            "Sigmoid",
            "Sign",
            "Sin",
            "Softplus",
            "Softsign",
            "Tanh",
            "HardSwish",
            "Selu",
        )
    ),
    *(case(name, floats(5, low=0.1), half=True) for name in ("Log", "Sqrt", "Reciprocal")),
    case("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32), note="to even"),
    *(case(name, floats(0, 3), note="empty") for name in ("Relu", "Erf", "Softplus")),
    case("Relu", number(-2), note="of rank 0"),
    case("LeakyRelu", X, half=True),
    case("LeakyRelu", X, alpha=0.2),
    case("Elu", X, alpha=1.5),
    case("PRelu", X, floats(3, 1)),
    case("HardSigmoid", X, half=True),
    case("HardSigmoid", X, alpha=0.3, beta=0.1),
    case("Gelu", X, opset=20, half=True),
    case("Gelu", X, opset=20, approximate="tanh", half=True),
    case("Mish", X, opset=18),
    case("Clip", X, number(-1), number(1), half=True),
    case("Clip", X, None, number(0.5), note="without minimum"),
    case("Clip", X, opset=6, min=-0.5, max=1.0, note="limits as attributes"),
    case("Clip", X, number(2), number(-2), opset=13, note="limits crossed"),
    case("Not", flags(3, 4)),
    case("Identity", X),
    case("Cast", X, to=TensorProto.INT32),
    case("Cast", flags(4), to=TensorProto.FLOAT),
    case("Cast", X, to=TensorProto.FLOAT16),
    case("Cast", ints(0, 2, -1), to=TensorProto.BOOL),
    case("Dropout", X),
    case("IsNaN", np.array([0, np.nan, np.inf], np.float32)),
    case("IsInf", np.array([0, np.nan, np.inf, -np.inf], np.float32), detect_negative=0),
]
BINARY = [
    *(case(name, X, floats(3, 1), half=True) for name in ("Add", "Sub", "Mul", "Div")),
    *(case(name, floats(3, 1), X, note="the second is larger") for name in ("Add", "Sub", "Mul", "Div")),
    *(case(name, X, floats(1)) for name in ("Add", "Sub", "Mul", "Div")),
    *(case(name, floats(0, 3), floats(1, 3), note="empty") for name in ("Add", "Div")),
    case("Div", ints(7, -7, 7, -7), ints(2, 2, -2, -2), note="integers, towards zero"),
    case("Add", ints(1, 2), ints(3, 4)),
    case("Pow", X, number(2), half=True),
    case("Pow", floats(4, low=0), floats(4)),
    case("Pow", floats(4, low=0), number(0.5)),
    case("Pow", X, ints(3), note="an integer exponent"),
    case("Mod", ints(7, -7, 7, -7), ints(3, 3, -3, -3)),
    case("Mod", X, floats(4, low=1), fmod=1),
    case("Min", X, floats(4), floats(3, 1)),
    case("Max", X, floats(4)),
    case("Max", X, note="one input"),
    case("Sum", X, floats(4), floats(3, 1)),
    case("Mean", X, floats(4), half=True),
    *(
        case(name, np.round(X), np.round(floats(4)))
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(case(name, flags(3, 4), flags(4)) for name in ("And", "Or", "Xor")),
    case("Where", flags(3, 1), X, floats(4)),
    case("Where", flags(2, 1, 1), ints(1, 2), ints([[3], [4]])),
]
LINEAR = [
    case("MatMul", floats(5, 7), floats(7, 3), half=True),
    case("MatMul", floats(2, 1, 5, 7), floats(3, 7, 2)),
    case("MatMul", floats(7), floats(7), note="of vectors"),
    case("MatMul", floats(2, 5, 7), floats(7)),
    case("MatMul", floats(0, 7), floats(7, 3), note="empty"),
    case("MatMul", floats(2, 0), floats(0, 3), note="of nothing"),
    case("Gemm", floats(5, 7), floats(7, 3), floats(3), half=True),
    case("Gemm", floats(7, 5), floats(3, 7), floats(5, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", floats(5, 7), floats(7, 3), alpha=0.5, note="without C"),
    case("Conv", PICTURE, floats(6, 4, 3, 3), floats(6), pads=[1, 1, 1, 1], half=True),
    case("Conv", PICTURE, floats(6, 2, 3, 2), group=2, strides=[2, 1], dilations=[1, 2], note="without bias"),
    case("Conv", PICTURE, floats(6, 4, 3, 3), pads=[0, 1, 2, 0], note="uneven pads"),
    case("Conv", PICTURE, floats(6, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("Conv", PICTURE, floats(6, 4, 2, 2), auto_pad="SAME_LOWER"),
    case("Conv", PICTURE, floats(6, 4, 3, 3), auto_pad="VALID"),
    case("Conv", floats(1, 4, 9), floats(5, 4, 3), pads=[1, 1], note="of one dimension"),
    case("Conv", floats(0, 4, 7, 9), floats(6, 4, 3, 3), note="empty"),
    case("ConvTranspose", PICTURE, floats(4, 3, 2, 2), floats(3), strides=[2, 2], half=True),
    case(
        "ConvTranspose", PICTURE, floats(4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    case("ConvTranspose", PICTURE, floats(4, 3, 3, 3), pads=[0, 1, 1, 0], group=2, note="uneven pads"),
    case("ConvTranspose", PICTURE, floats(4, 3, 3, 3), strides=[2, 2], output_shape=[14, 18]),
    case("ConvTranspose", PICTURE, floats(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
]
NORMALIZATIONS = [
    case("Softmax", X, half=True),
    case("Softmax", X, axis=1),
    case("Softmax", X, axis=-2),
    case("Softmax", X, opset=11, note="from axis 1 on"),
    case("Softmax", X, opset=11, axis=2),
    case("Softmax", floats(3, 0), note="empty"),
    case("Softmax", floats(2, 1)),
    case("LogSoftmax", X, half=True),
    case("LogSoftmax", X, axis=0),
    case("LogSoftmax", X, opset=11),
    case("LayerNormalization", X, floats(4), floats(4), half=True),
    case("LayerNormalization", X, floats(4), note="without bias", outputs=3),
    case("LayerNormalization", X, floats(3, 4), floats(3, 4), axis=1, epsilon=0.1),
    case("InstanceNormalization", PICTURE, floats(4), floats(4), half=True),
    case("InstanceNormalization", floats(2, 8, 30), floats(8), floats(8), epsilon=0.01),
    case("BatchNormalization", PICTURE, floats(4), floats(4), floats(4), floats(4, low=0.5), half=True),
    case("LpNormalization", X, axis=1, p=2),
]
REDUCTIONS = [
    *(
        case(name, X, opset=13, axes=[-1], half=True)
        for name in (
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceProd",
            "ReduceLogSumExp",
        )
    ),
    *(
        case(name, X, ints(0, 2), opset=18, keepdims=0, note="axes as input")
        for name in ("ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd")
    ),
    *(
        case(name, X, opset=13, note="of everything")
        for name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
    ),
    case("ReduceSum", X, ints(1), half=True),
    case("ReduceSum", X, opset=11, axes=[0, 1], keepdims=0),
    case("ReduceSum", X, noop_with_empty_axes=1, note="of nothing"),
    case("ReduceSum", floats(0, 3), ints(0), note="empty"),
    case("ReduceLogSum", floats(2, 3, low=0.1), opset=13, axes=[1]),
    case("ReduceSum", ints([[1, 2], [3, 4]]), ints(0)),
    case("ArgMax", np.round(X), axis=-1),
    case("ArgMax", np.round(X), axis=1, keepdims=0, select_last_index=1),
    case("ArgMin", np.round(X), axis=0),
    case("ArgMin", np.round(X), axis=2, select_last_index=1),
    case("CumSum", X, ints(1), half=True),
    case("CumSum", X, ints(-1), exclusive=1, reverse=1),
    case("CumSum", ints(1, 2, 3), ints(0)),
    case("TopK", np.round(floats(3, 50)), ints(20), outputs=2, note="ties"),
    case("TopK", np.round(floats(6, 5)), ints(2), outputs=2, axis=0, largest=0),
    case("TopK", floats(3, 5), ints(0), outputs=2, note="of none"),
]
SHAPES = [
    case("Reshape", X, ints(-1, 0 + 6)),
    case("Reshape", X, ints(0, -1)),
    case("Reshape", floats(0, 4), ints(0, 2), allowzero=1),
    case("Flatten", X, axis=2),
    case("Flatten", X, axis=-1),
    case("Flatten", X, axis=0),
    case("Squeeze", floats(1, 3, 1), ints(0)),
    case("Squeeze", floats(1, 3, 1)),
    case("Squeeze", floats(1, 3, 1), opset=11, axes=[2]),
    case("Unsqueeze", X, ints(0, -1)),
    case("Unsqueeze", X, opset=11, axes=[1]),
    case("Expand", floats(3, 1), ints(2, 1, 4)),
    case("Transpose", X),
    case("Transpose", X, perm=[2, 0, 1]),
    case("Concat", X, floats(2, 1, 4), floats(2, 0, 4), axis=1),
    case("Concat", X, X, axis=-1),
    case("Split", floats(2, 7), ints(3, 4), axis=1, outputs=2),
    case("Split", floats(6, 2), outputs=3),
    case("Split", floats(2, 7), opset=11, axis=-1, split=[2, 0, 5], outputs=3),
    case("Split", floats(2, 7), opset=18, axis=1, num_outputs=2, outputs=2, note="the last is smaller"),
    case("Slice", floats(5, 9), ints(1, 2), ints(4, 100)),
    case("Slice", floats(5, 9), ints(-3), ints(-1), ints(1)),
    case("Slice", floats(5, 9), ints(100), ints(-100), ints(-1), ints(-2), note="backwards"),
    case("Slice", floats(5, 9), ints(0, 8), ints(2**62, -(2**62)), ints(0, 1), ints(2, -3), note="far ends"),
    case("Slice", floats(5, 9), ints(3), ints(1), ints(0), note="empty"),
    case("Slice", floats(5, 9), opset=9, starts=[1], ends=[3], axes=[1]),
    case("Pad", X, ints(0, 1, 0, 0, 0, 2)),
    case("Pad", X, ints(0, -1, 0, 1, 0, -2), number(5)),
    case("Pad", X, opset=10, pads=[1, 0, 0, 0, 0, 1], value=2.0),
    case("Pad", X, ints(0, 2, 1, 0, 1, 2), mode="reflect"),
    case("Pad", X, ints(0, 2, 1, 0, 1, 5), mode="edge"),
    case("Pad", X, ints(1, 2), None, ints(-1), opset=18, note="of one axis"),
    case("Tile", X, ints(2, 1, 3)),
    case("Tile", X, ints(0, 1, 1), note="empty"),
    case("Shape", X),
    case("Shape", X, start=-2),
    case("Shape", X, start=1, end=2),
    case("Size", X),
    case("Range", ints([2])[0], ints([11])[0], ints([3])[0]),
    case("Range", ints([5])[0], ints([0])[0], ints([-2])[0]),
    case("ConstantOfShape", ints(2, 3), value=numpy_helper.from_array(np.array([7], np.int64))),
    case("ConstantOfShape", ints(0, 3)),
    case("Trilu", X, ints([1])[0]),
    case("Trilu", X, upper=0),
    case("DepthToSpace", floats(2, 8, 3, 2), blocksize=2),
    case("DepthToSpace", floats(2, 8, 3, 2), blocksize=2, mode="CRD"),
    case("SpaceToDepth", floats(2, 3, 4, 6), blocksize=2),
]
INDEXING = [
    case("Gather", X, ints([[0, -1], [1, 2]]), axis=1),
    case("Gather", X, ints([2])[0], axis=-1),
    case("Gather", X, ints([]), note="of none"),
    case("GatherElements", X, ints([[[0, -1, 1, 2]]] * 2), axis=1),
    case("GatherND", X, ints([[0, 1], [-1, -1]])),
    case("GatherND", X, ints([[[2]], [[-1]]]), batch_dims=1),
    case("GatherND", X, ints([[0, 1, 2]])),
    case("ScatterND", X, ints([[0, 1], [1, 0]]), floats(2, 4)),
    case("ScatterND", X, ints([[0], [0]]), floats(2, 3, 4), note="twice"),
    case("ScatterND", X, ints([[1, 2, 3], [1, 2, 3]]), floats(2), opset=16, reduction="add"),
    case("ScatterND", X, ints([[1, 2, 3], [1, 2, 3]]), floats(2), opset=18, reduction="max"),
    case("ScatterND", X, ints([[1, 2, 3], [0, 0, 3]]), floats(2), opset=16, reduction="mul"),
    case("ScatterND", X, np.zeros((0, 1), np.int64), floats(0, 3, 4), note="of none"),
    case("ScatterElements", X, ints([[[2, -3, 0, 1]]] * 2), floats(2, 1, 4), axis=1),
    case("ScatterElements", X, ints([[[0, 0, 0, 0]]]), floats(1, 1, 4), opset=16, reduction="add"),
    case("ScatterElements", X, ints([[[0, 1, 0, 1]]]), floats(1, 1, 4), opset=18, reduction="min"),
    case("OneHot", ints(0, 2, -1), ints([4])[0], np.array([1, 5], np.int64)),
    case("OneHot", ints([[0, 1]]), ints([3])[0], np.array([0, 1], np.int64), axis=1),
]
POOLING = [
    case("MaxPool", PICTURE, kernel_shape=[3, 3], half=True),
    case("MaxPool", PICTURE, kernel_shape=[2, 3], strides=[2, 2], pads=[1, 0, 0, 2]),
    case("MaxPool", PICTURE, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", PICTURE, kernel_shape=[2, 2], dilations=[2, 3]),
    case("MaxPool", PICTURE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("MaxPool", PICTURE, kernel_shape=[1, 1], strides=[2, 2]),
    case("MaxPool", floats(1, 3, 9), kernel_shape=[3], strides=[2]),
    case("AveragePool", PICTURE, kernel_shape=[3, 3], half=True),
    case("AveragePool", PICTURE, kernel_shape=[3, 2], pads=[1, 1, 0, 1], strides=[2, 2]),
    case("AveragePool", PICTURE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, strides=[2, 3]),
    case("AveragePool", floats(1, 3, 9), kernel_shape=[4], auto_pad="SAME_LOWER"),
    case("AveragePool", PICTURE, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("GlobalAveragePool", PICTURE, half=True),
    case("GlobalMaxPool", PICTURE),
    case("GlobalAveragePool", floats(1, 2, 1, 1)),
]


def scales(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


RESIZE = [
    *(
        case(
            "Resize",
            PICTURE,
            None,
            scales(1, 1, 2, 1.5),
            mode=mode,
            coordinate_transformation_mode=rule,
            half=mode == "linear",
        )
        for mode in ("nearest", "linear")
        for rule in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ),
    *(
        case("Resize", PICTURE, None, None, ints(2, 4, *size), mode=mode, note="sizes")
        for mode in ("nearest", "linear")
        for size in ((14, 18), (3, 20), (1, 1), (7, 9))
    ),
    *(
        case(
            "Resize",
            PICTURE,
            None,
            scales(1, 1, 1.7, 0.6),
            nearest_mode=rule,
            coordinate_transformation_mode="asymmetric",
        )
        for rule in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    case(
        "Resize",
        PICTURE,
        None,
        None,
        ints(2, 4, 1, 12),
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
    case("Resize", PICTURE, scales(1, 1, 2, 2), opset=10),
    case("Resize", PICTURE, scales(1, 1, 2, 2), opset=10, mode="linear"),
    case("Upsample", PICTURE, scales(1, 1, 2, 3), opset=9),
]
BOXES = [
    *(
        case(
            "RoiAlign",
            PICTURE,
            ROIS,
            ints(0, 1, 0, 1, 0),
            opset=opset,
            output_height=3,
            output_width=2,
            sampling_ratio=ratio,
            spatial_scale=0.25,
            half=True,
        )
        for opset in (10, 16)
        for ratio in (0, 2)
    ),
    case(
        "RoiAlign",
        PICTURE,
        ROIS,
        ints(0, 1, 0, 1, 0),
        opset=16,
        coordinate_transformation_mode="output_half_pixel",
    ),
    case(
        "RoiAlign",
        PICTURE,
        floats(0, 4),
        ints([]),
        opset=16,
        output_height=2,
        output_width=2,
        note="no boxes",
    ),
    *(
        case(
            "NonMaxSuppression",
            np.abs(floats(2, 30, 4)).cumsum(-1).astype(np.float32),
            floats(2, 3, 30, low=0),
            ints(most),
            np.float32([0.4]),
            np.float32([least]),
            center_point_box=center,
        )
        for most in (4, 30)
        for least in (0.5, 9)
        for center in (0, 1)
    ),
    case("NonMaxSuppression", floats(1, 5, 4), floats(1, 1, 5), note="at most none"),
]
CASES = [
    *UNARY,
    *BINARY,
    *LINEAR,
    *NORMALIZATIONS,
    *REDUCTIONS,
    *SHAPES,
    *INDEXING,
    *POOLING,
    *RESIZE,
    *BOXES,
]


def name_of(case: Case) -> str:
    settings = [
        f"{name}={value}"
        for name, value in case.attributes.items()
        if isinstance(value, int | float | str | list)
    ]
    shapes = ["x".join(map(str, array.shape)) if array is not None else "none" for array in case.inputs]
    return (
        " ".join([case.operator, f"opset{case.opset}", *shapes, *settings, case.note])
        .replace("[", "")
        .replace("]", "")
    )
