"""Read an ONNX file as ATC does: external data beside it, inputs that have a value are constants, chosen outputs."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper

from cann_sim.atc.checks import nodes_of
from cann_sim.atc.errors import AtcError

# protobuf cannot read a larger message
MOST_BYTES = 2**31 - 1


def load(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Return the model of a file; without `weights` its external data stay where they are.

    Raises
    ------
    AtcError
        E10041 for a file that is no ONNX, is truncated or lacks external data; E13015 for one above 2 GiB.
    """
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise AtcError("E13015", file=path, size=size, most=MOST_BYTES)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        reason = "it is no ONNX file, or not all of it is there"
        raise AtcError("E10041", parameter=path, reason=reason) from error
    except OSError as error:
        raise AtcError("E13003", file=path, reason=error.strerror) from error
    if weights:
        try:
            external_data_helper.load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
            reason = f"its external data cannot be read: {str(error).splitlines()[0]}"
            raise AtcError("E10041", parameter=path, reason=reason) from error
        for tensor in model.graph.initializer:
            _check_bytes(tensor, path)
    return model


def _check_bytes(tensor: onnx.TensorProto, path: Path) -> None:
    """Check that a weight has the bytes that its shape needs; a file of external data may be cut off."""
    if not tensor.HasField("raw_data"):
        return
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    needed = math.prod(tensor.dims) * dtype.itemsize
    if len(tensor.raw_data) < needed:
        reason = f"the weight {tensor.name} has {len(tensor.raw_data)} bytes; its shape needs {needed}"
        raise AtcError("E10041", parameter=path, reason=reason)


def drop_constant_inputs(graph: onnx.GraphProto) -> None:
    """Remove inputs that have a value: ATC takes them as constants."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) < len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)


def drop_unused_masks(graph: onnx.GraphProto) -> None:
    """Remove the mask of a Dropout that nobody uses: in inference it is not computed."""
    used = {name for node in nodes_of(graph) for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type == "Dropout" and not used.intersection(node.output[1:]):
            del node.output[1:]


def declared_shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return an input's shape with -1 for what the model leaves open, or None without a shape."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)


def choose_outputs(graph: onnx.GraphProto, out_nodes: str) -> None:
    """Make the tensors of --out_nodes the model's outputs: `node:index` or names of tensors, by semicolons.

    Nodes that no output needs any more are removed.

    Raises
    ------
    AtcError
        E11017 for an unknown node, E11016 for an output that it does not have.
    """
    nodes = {node.name: node for node in graph.node}
    tensors = {name for node in graph.node for name in node.output if name}
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    chosen = []
    for part in filter(None, (word.strip() for word in out_nodes.split(";"))):
        name, colon, index = part.rpartition(":")
        if part in tensors:
            chosen.append(part)
        elif colon and index.isdigit() and name in nodes:
            outputs = nodes[name].output
            if int(index) >= len(outputs):
                raise AtcError("E11016", opname=name, index=index, count=len(outputs))
            chosen.append(outputs[int(index)])
        else:
            raise AtcError("E11017", opname=name if colon and index.isdigit() else part)
    kept = [onnx.ValueInfoProto(name=name) for name in chosen]
    for value in kept:
        if value.name in known:
            value.CopyFrom(known[value.name])
    del graph.output[:]
    graph.output.extend(kept)
    needed = set(chosen)
    alive = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            alive.append(node)
    del graph.node[:]
    graph.node.extend(reversed(alive))
