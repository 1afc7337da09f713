"""The checks of ATC's ONNX parser: operator sets, registration and names, then what each plug-in refuses.

All nodes are checked before the first error ends the conversion, as the real pre-check does. What a plug-in refuses has
the code E13014 here, with parameter, value and reason; a card's plug-ins write some of these to the log only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from cann_sim.atc.errors import AtcError
from cann_sim.atc.limits import LIMITS, Node
from cann_sim.atc.registry import DEFAULT_DOMAIN, is_registered, known_versions

# Their outputs' shapes depend on values, so that no program of static shapes can hold them.
DATA_DEPENDENT = ("NonZero", "NonMaxSuppression", "Unique", "Compress")


def check_model(model: onnx.ModelProto) -> None:
    """Check what concerns the model as a whole, and name the nodes that have no name.

    Raises
    ------
    AtcError
        E16004 without a graph, E16001 without inputs or outputs, E16005 with more than one operator set.
    """
    if not model.HasField("graph"):
        raise AtcError("E16004")
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    if not any(value.name not in constants for value in graph.input):
        raise AtcError("E16001", value="input")
    if not graph.output:
        raise AtcError("E16001", value="output")
    unnamed = 0
    for node in nodes_of(graph):
        if not node.name:
            node.name = f"{node.op_type}_{unnamed}"
            unnamed += 1
    if len(model.opset_import) != 1 and any(not node.domain for node in nodes_of(graph)):
        found = ", ".join(f"{entry.domain or DEFAULT_DOMAIN} {entry.version}" for entry in model.opset_import)
        raise AtcError("E16005", count=len(model.opset_import), found=found or "none")


def check_nodes(model: onnx.ModelProto) -> list[AtcError]:
    """Return the errors of the pre-check: repeated names (E13009) and operators without a plug-in (E13010)."""
    graph = model.graph
    names = Counter(node.name for node in nodes_of(graph))
    constants = {tensor.name for tensor in graph.initializer}
    names.update(value.name for value in graph.input if value.name not in constants)
    errors = [AtcError("E13009", opname=name) for name, count in names.items() if count > 1]
    versions = opsets(model)
    for node in nodes_of(graph):
        domain = node.domain or DEFAULT_DOMAIN
        if domain not in versions:
            reason = f"The model imports no operator set of {domain}, which the node {node.name} needs."
            errors.append(AtcError("E19999", reason=reason))
        elif not is_registered(domain, node.op_type, versions[domain]):
            listed = known_versions(domain, node.op_type)
            known = f"; the versions {listed} are" if listed else "; no version of it is"
            optype = f"{domain}::{versions[domain]}::{node.op_type}"
            errors.append(AtcError("E13010", opname=node.name, optype=optype, known=known))
    return errors


def check_plugins(model: onnx.ModelProto) -> list[AtcError]:
    """Return what the plug-ins refuse (E13014), by node."""
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim))
    values = {tensor.name: tensor for tensor in graph.initializer}
    values |= {
        node.output[0]: attribute.t
        for node in nodes_of(graph)
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    versions = opsets(model)
    errors = []
    for node in nodes_of(graph):
        limit = LIMITS.get(node.op_type)
        if limit is None:
            continue
        view = Node(node, versions[node.domain or DEFAULT_DOMAIN], shapes, values)
        for parameter, value, reason in limit(view):
            errors.append(
                AtcError("E13014", parameter=parameter, opname=node.name, value=value, reason=reason)
            )
    return errors


def check_static(model: onnx.ModelProto, *, gears: bool) -> None:
    """Refuse nodes whose output's shape depends on values.

    With gears the real tool refuses them, too; without, it makes a model of varying shapes, which cann_sim has not.

    Raises
    ------
    AtcError
        E10055 with gears, SIM001 without.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in nodes_of(model.graph):
        if node.op_type == "Constant":
            constants.update(node.output)
        elif node.op_type in DATA_DEPENDENT and not constants.issuperset(filter(None, node.input)):
            rule = "gears allow only shapes that follow from the inputs' shapes"
            code = "E10055" if gears else "SIM001"
            reason = rule if gears else "models of varying shapes are not simulated"
            raise AtcError(
                code, reason=f"the shape of {node.name} ({node.op_type}) depends on values; {reason}"
            )


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Return the version of each operator set that the model imports, by domain."""
    return {entry.domain or DEFAULT_DOMAIN: entry.version for entry in model.opset_import}


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)
