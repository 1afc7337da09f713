"""Fold what an exported graph computes of shapes and constants: ATC gets static shapes and no casts that do nothing.

A cast from float32 to float32, which `Tensor.float()` leaves, is no trifle: in float16 precision modes it would stay,
and what follows it be computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

_MOVED = ("Identity", "Cast")


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without nodes whose outputs are known before it runs; inputs and outputs keep their names."""
    while True:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if not _fold_once(model):
            # They are inferred again by whoever reads the file.
            del model.graph.value_info[:]
            return model


def _fold_once(model: onnx.ModelProto) -> bool:
    """Fold what the inferred shapes allow to; return whether that was anything."""
    graph = model.graph
    opset = model.opset_import[0].version
    outputs = {value.name for value in graph.output}
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info)}
    weights = {one.name: one for one in graph.initializer}
    known: dict[str, npt.NDArray[Any]] = {}
    renamed: dict[str, str] = {}
    kept, changed = [], False
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        (output, *others) = node.output
        if others or output in outputs:
            kept.append(node)
            continue
        if node.op_type in _MOVED and _does_nothing(node, types, weights):
            renamed[output] = node.input[0]
            changed = True
            continue
        value = _value(node, types, weights, known, opset)
        if value is None:
            kept.append(node)
            continue
        known[output] = value
        if node.op_type == "Constant":
            kept.append(node)
        else:
            kept.append(_constant(node, value))
            changed = True
    used = {name for node in kept for name in node.input} | outputs
    alive = [node for node in kept if used.intersection(node.output)]
    changed |= len(alive) < len(kept)
    left = [one for one in graph.initializer if one.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(alive)
    graph.initializer.extend(left)
    return changed


def _does_nothing(node: onnx.NodeProto, types: dict[str, Any], weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type == "Identity":
        return True
    name = node.input[0]
    kind = weights[name].data_type if name in weights else getattr(types.get(name), "elem_type", 0)
    return bool(kind == next(one.i for one in node.attribute if one.name == "to"))


def _value(
    node: onnx.NodeProto,
    types: dict[str, Any],
    weights: dict[str, onnx.TensorProto],
    known: dict[str, npt.NDArray[Any]],
    opset: int,
) -> npt.NDArray[Any] | None:
    """Return a node's output where it is known."""
    if node.op_type == "Shape" and not node.attribute and node.input[0] in types:
        sizes = types[node.input[0]].shape.dim
        if types[node.input[0]].HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            return np.array([size.dim_value for size in sizes], np.int64)
    given = {}
    for name in node.input:
        if name in known:
            given[name] = known[name]
        elif name in weights:
            given[name] = numpy_helper.to_array(weights[name])
        elif name:
            return None
    (value,) = ReferenceEvaluator(node, opsets={"": opset}).run(None, given)
    return np.asarray(value)


def _constant(node: onnx.NodeProto, value: npt.NDArray[Any]) -> onnx.NodeProto:
    return onnx.helper.make_node(
        "Constant", [], list(node.output), name=node.name, value=numpy_helper.from_array(np.ascontiguousarray(value))
    )
