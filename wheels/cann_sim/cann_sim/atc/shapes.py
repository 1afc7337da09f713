"""Static shapes and data types of a node's outputs: ONNX's inference, and what it lacks for ATC's own operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper, shape_inference

from cann_sim.atc.errors import AtcError
from cann_sim.atc.network import Network, Node, node_proto
from cann_sim.atc.om_programs import numpy_dtype

Shape = tuple[int, ...]
Types = list[tuple[str, Shape]]

# Shapes follow from values of at most so many elements: axes, sizes, pads. Weights are never looked at.
_SMALL = 1024


def infer(network: Network, node: Node) -> Types:
    """Return data type and shape of each output of a node (("", ()) for one that is left out).

    Raises
    ------
    AtcError
        E14001 for inputs that do not fit, SIM001 for shapes that depend on data and operators that are not simulated.
    """
    special = _SPECIAL.get(node.operator)
    if special is not None:
        return special(network, node)
    schema = _schema(node, network.opset)
    types = {name: _type(network.dtypes[name], network.shapes[name]) for name in node.inputs if name}
    data = {
        name: numpy_helper.from_array(np.ascontiguousarray(network.constants[name]), name)
        for name in node.inputs
        if name in network.constants and network.constants[name].size <= _SMALL
    }
    imports = [helper.make_opsetid("", network.opset)]
    try:
        found = shape_inference.infer_node_outputs(
            schema, node_proto(node), types, data, opset_imports=imports
        )
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise _unfit(node, str(error).strip().splitlines()[-1]) from error
    # ONNX infers nothing for some outputs that nobody uses, such as a Dropout's mask
    return [
        _static(node, found[name]) if name and (not index or _is_static(found.get(name))) else ("", ())
        for index, name in enumerate(node.outputs)
    ]


@cache
def _known(operator: str, opset: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(operator, opset, "")
    except defs.SchemaError:
        return None


def _schema(node: Node, opset: int) -> defs.OpSchema:
    schema = _known(node.operator, opset) if not node.domain else None
    if schema is None:
        raise AtcError("SIM001", reason=f"cann_sim does not compute {node.operator} (the node {node.name})")
    return schema


def _type(dtype: str, shape: Shape) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype)), shape)


def _static(node: Node, found: onnx.TypeProto) -> tuple[str, Shape]:
    tensor = found.tensor_type
    if not _is_static(found):
        what = f"the shape of {node.name} ({node.operator}) depends on values"
        raise AtcError("SIM001", reason=f"{what}; models of varying shapes are not simulated")
    return dtype_name(tensor.elem_type), tuple(dim.dim_value for dim in tensor.shape.dim)


def _is_static(found: onnx.TypeProto | None) -> bool:
    if found is None or not found.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") for dim in found.tensor_type.shape.dim)


@cache
def dtype_name(number: int) -> str:
    """Return numpy's name of an ONNX data type.

    >>> dtype_name(onnx.TensorProto.FLOAT)
    'float32'
    """
    return str(np.dtype(helper.tensor_dtype_to_np_dtype(number)).name)


def _unfit(node: Node, reason: str) -> AtcError:
    return AtcError("E14001", opname=node.name, optype=node.operator, value="these inputs", reason=reason)


# ---- operators whose shape ONNX does not infer ----


def _same(network: Network, node: Node) -> Types:
    return [(network.dtypes[node.inputs[0]], network.shapes[node.inputs[0]])]


def _roi_extractor(network: Network, node: Node) -> Types:
    """Return rois [N, 5] and features [B, C, H, W] of each level -> [N, C, pooled_height, pooled_width]."""
    shapes = [network.shapes[name] for name in node.inputs if name]
    rois = next((shape for shape in reversed(shapes) if len(shape) == 2), None)
    if rois is None or rois[1] != 5 or len(shapes[0]) != 4:
        raise _unfit(node, "it takes features [B, C, H, W] of each level, then rois [N, 5]")
    height, width = (int(node.attributes.get(name, 7)) for name in ("pooled_height", "pooled_width"))
    return [(network.dtypes[node.inputs[0]], (rois[0], shapes[0][1], height, width))]


def _flash_attention(network: Network, node: Node) -> Types:
    return [(network.dtypes[node.inputs[0]], network.shapes[node.inputs[0]])] + [("", ())] * (
        len(node.outputs) - 1
    )


def _non_max_suppression(network: Network, node: Node) -> Types:
    """Return room for the most boxes [B * C * most, 3]; rows without a box are -1, as the kernel leaves them."""
    most = network.constants.get(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.int64)
    if most is None:
        raise AtcError("SIM001", reason=f"the shape of {node.name} (NonMaxSuppression) depends on values")
    scores = network.shapes[node.inputs[1]]
    room = scores[0] * scores[1] * min(int(np.ravel(most)[0]) if most.size else 0, scores[2])
    return [("int64", (room, 3))]


_SPECIAL: dict[str, Callable[[Network, Node], Types]] = {
    "RoiExtractor": _roi_extractor,
    "NPUFlashAttention": _flash_attention,
    "NPUFastGelu": _same,
    "NPUFormatCast": _same,
    "NonMaxSuppression": _non_max_suppression,
}
