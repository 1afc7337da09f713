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
_SHAPE_LIKE = 64  # elements: what can be a shape


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without nodes whose outputs are known before it runs; inputs and outputs keep their names."""
    while _fold_once(model, _infer(model)):
        pass
    return model


def _infer(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the types and shapes of a model's values by name."""
    # Without the weights, of which only the shapes matter: the inference copies the model, and takes at most 2 GB.
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for one in model.graph.initializer:
        if np.prod(one.dims) <= _SHAPE_LIKE:
            light.graph.initializer.append(one)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info)}


def _fold_once(model: onnx.ModelProto, types: dict[str, Any]) -> bool:
    """Fold what the inferred shapes allow to; return whether that was anything."""
    graph = model.graph
    opset = next(one.version for one in model.opset_import if not one.domain)
    outputs = {value.name for value in graph.output}
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
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in used:
            del graph.initializer[place]
    del graph.node[:]
    graph.node.extend(alive)
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
    if node.domain:
        return None
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
        "Constant",
        [],
        list(node.output),
        name=node.name,
        value=numpy_helper.from_array(np.ascontiguousarray(value)),
    )
