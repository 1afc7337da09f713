"""From protobuf to a network: shapes of every value, and what follows from constants computed once, here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cann_sim.atc.errors import AtcError
from cann_sim.atc.network import Array, Network, Node, attribute_values, node_proto
from cann_sim.atc.shapes import dtype_name, infer

# What a folded node may make larger than its inputs: an Expand of a number to a whole feature map stays a node.
_LARGEST = 1 << 22
_NEVER = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def read(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """Return the network of a model for the given shapes of its inputs, its constant parts folded.

    Raises
    ------
    AtcError
        E14001 for inputs that do not fit a node or shapes that do not fit the graph's, SIM001 for shapes that depend on
        data and operators that are not simulated.
    """
    graph = model.graph
    versions = {entry.domain: entry.version for entry in model.opset_import}
    network = Network(
        opset=versions.get("", versions.get("ai.onnx", 0)),
        inputs=[], outputs=[value.name for value in graph.output], nodes=[], dtypes={}, shapes={}, constants={},
    )  # fmt: skip
    for tensor in graph.initializer:
        _constant(network, tensor.name, numpy_helper.to_array(tensor))
    for value in graph.input:
        if value.name in network.constants:
            continue
        if value.name not in shapes:
            raise AtcError("E13025", reason=f"{value.name} has no shape")
        network.inputs.append(value.name)
        network.dtypes[value.name] = dtype_name(value.type.tensor_type.elem_type)
        network.shapes[value.name] = tuple(shapes[value.name])
    for index, proto in enumerate(graph.node):
        node = Node(
            name=proto.name or f"{proto.op_type}_{index}", operator=proto.op_type, inputs=list(proto.input),
            outputs=list(proto.output), attributes=attribute_values(proto.attribute),
            domain="" if proto.domain == "ai.onnx" else proto.domain,
        )  # fmt: skip
        _add(network, node)
    for name in network.outputs:
        if name not in network.shapes:
            raise AtcError("E16001", value=f"node for its output {name}")
    network.drop_unused()
    return network


def _add(network: Network, node: Node) -> None:
    """Add a node: its value if it is constant, else itself with the shapes of its outputs."""
    if node.operator == "Constant":
        _constant(network, node.outputs[0], _constant_value(node))
        network.folded.append(node)
        return
    for name in node.inputs:
        if name and name not in network.shapes:
            reason = f"nothing gives its input {name} a shape"
            raise AtcError(
                "E14001", opname=node.name, optype=node.operator, value="this input", reason=reason
            )
    values = _fold(network, node)
    if values is not None:
        for name, value in zip(node.outputs, values, strict=False):
            if name:
                _constant(network, name, np.asarray(value))
        network.folded.append(node)
        return
    for name, (dtype, shape) in zip(node.outputs, infer(network, node), strict=True):
        if dtype:
            network.dtypes[name], network.shapes[name] = dtype, shape
    network.nodes.append(node)


def _constant(network: Network, name: str, value: Array) -> None:
    network.constants[name] = value
    network.dtypes[name], network.shapes[name] = value.dtype.name, value.shape


def _constant_value(node: Node) -> Array:
    """Return the value of a Constant, whichever attribute has it."""
    ((kind, value),) = node.attributes.items()
    dtype = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    return value if kind == "value" else np.asarray(value, dtype[kind])


def _fold(network: Network, node: Node) -> list[Array] | None:
    """Return the outputs of a node whose inputs are constant, or which tells a shape; else None."""
    if node.operator == "Shape":
        shape = network.shapes[node.inputs[0]]
        start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
        return [np.asarray(shape[start:end], np.int64)]
    if node.operator == "Size":
        return [np.asarray(int(np.prod(network.shapes[node.inputs[0]], dtype=np.int64)), np.int64)]
    if node.domain or node.operator in _NEVER:
        return None
    names = [name for name in node.inputs if name]
    if not all(name in network.constants for name in names) or any(
        isinstance(value, onnx.GraphProto) for value in node.attributes.values()
    ):
        return None
    values = [network.constants[name] for name in names]
    quick = _QUICK.get(node.operator)
    if quick is not None:
        return [quick(network, node, values)]
    if _largest_output(network, node) > max(_LARGEST, *(value.size for value in values), 0):
        return None
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
              for name, value in zip(names, values, strict=True)]  # fmt: skip
    kept = [name for name in node.outputs if name]
    outputs = [helper.make_empty_tensor_value_info(name) for name in kept]
    unique = {value.name: value for value in inputs}
    graph = helper.make_graph([node_proto(node)], "folded", list(unique.values()), outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", network.opset)])
    try:
        results = ReferenceEvaluator(model).run(None, dict(zip(names, values, strict=True)))
    except (ValueError, TypeError, RuntimeError, IndexError, NotImplementedError):
        return None  # stricter than the kernels: the node stays
    found = dict(zip(kept, results, strict=True))
    return [np.asarray(found[name]) if name else np.zeros(0) for name in node.outputs]


def _largest_output(network: Network, node: Node) -> int:
    if node.operator not in ("Expand", "ConstantOfShape", "Tile", "Range"):
        return 0
    return max(int(np.prod(shape, dtype=np.int64)) for _, shape in infer(network, node))


def _reshape(network: Network, node: Node, values: list[Array]) -> Array:
    return values[0].reshape(infer(network, node)[0][1])


def _transpose(network: Network, node: Node, values: list[Array]) -> Array:
    return np.transpose(values[0], node.attributes.get("perm"))


def _concat(network: Network, node: Node, values: list[Array]) -> Array:
    return np.concatenate(values, axis=node.attributes["axis"])


def _gather(network: Network, node: Node, values: list[Array]) -> Array:
    return np.take(values[0], values[1], axis=node.attributes.get("axis", 0))


def _identity(network: Network, node: Node, values: list[Array]) -> Array:
    return values[0]


# What graphs of shapes consist of, without the reference evaluator's millisecond per node; views of weights stay views.
_QUICK = {
    "Reshape": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape, "Flatten": _reshape, "Identity": _identity,
    "Transpose": _transpose, "Concat": _concat, "Gather": _gather,
}  # fmt: skip
