"""The graph on which lowering works: nodes, static values and constants, without protobuf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(eq=False)
class Node:
    """A node of the graph; `passes` are the fusions that made it, `replaced` the nodes that it computes, too."""

    name: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    passes: list[str] = field(default_factory=list)
    replaced: list[Node] = field(default_factory=list)
    uncertain: str = ""


@dataclass
class Network:
    """A graph whose shapes are static.

    Attributes
    ----------
    dtypes, shapes
        Of every value, constants included; data types by numpy's name, as the ONNX graph has them.
    constants
        Initializers and what was folded. Arrays are views of the model's bytes where numpy allows it.
    folded
        Nodes whose outputs became constants or are never used.
    """

    opset: int
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    dtypes: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]
    folded: list[Node] = field(default_factory=list)

    def producers(self) -> dict[str, Node]:
        """Return the node of each value that has one."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that take each value; a node that takes it twice is there twice."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    found.setdefault(name, []).append(node)
        return found

    def replace(self, gone: Iterable[Node], node: Node) -> None:
        """Put `node` where the last of the nodes `gone` was, and note what it stands for."""
        gone = set(gone)
        place = max(index for index, other in enumerate(self.nodes) if other in gone)
        node.replaced += [
            other for each in gone for other in (each, *each.replaced) if other.name != node.name
        ]
        self.nodes[place] = node
        self.nodes = [other for other in self.nodes if other not in gone]

    def drop_unused(self) -> None:
        """Remove nodes and constants that no output needs."""
        needed = set(self.outputs)
        alive = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                alive.append(node)
            else:
                self.folded.append(node)
        self.nodes = alive[::-1]
        for name in [name for name in self.constants if name not in needed]:
            del self.constants[name]


def attribute_values(attributes: Iterable[onnx.AttributeProto]) -> dict[str, Any]:
    """Return attributes as Python values: numbers, texts and lists of them, arrays for tensors.

    >>> attribute_values([helper.make_attribute("axes", [1, -1]), helper.make_attribute("mode", "linear")])
    {'axes': [1, -1], 'mode': 'linear'}
    """
    result: dict[str, Any] = {}
    for attribute in attributes:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif attribute.type == onnx.AttributeProto.STRINGS:
            value = [text.decode() for text in value]
        elif isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        elif attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
            value = list(value)
        result[attribute.name] = value
    return result


def node_proto(node: Node, attributes: Mapping[str, Any] | None = None) -> onnx.NodeProto:
    """Return a node as ONNX has it."""
    chosen = node.attributes if attributes is None else attributes
    plain = {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in chosen.items()
    }
    return helper.make_node(
        node.operator, node.inputs, node.outputs, name=node.name, domain=node.domain, **plain
    )
