"""What the searches need to know of a stage's ONNX graph: its nodes in order, who feeds whom, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Operators that only name, move or describe data: they break nothing, and ATC folds most of them away.
_PASSIVE = {
    "Constant",
    "Identity",
    "Shape",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "ConstantOfShape",
    "Dropout",
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that computes something from the graph's inputs.

    Attributes
    ----------
    name, operator
        Its name and ONNX operator.
    outputs
        The names of its outputs.
    producers
        The nodes (by name) that its inputs come from, through passive ones as well.
    multiply_adds
        Of convolutions and matrix products; 0 for others.
    elements
        Of its activations: inputs that are no constants, and outputs.
    """

    name: str
    operator: str
    outputs: tuple[str, ...]
    producers: tuple[str, ...]
    multiply_adds: int
    elements: int

    @property
    def module(self) -> str:
        """The path of the PyTorch module that it comes from, as torch's exporter names nodes; "" for none.

        >>> Node(name="/blocks.0/attn/MatMul_1", operator="MatMul", outputs=(), producers=(), multiply_adds=0,
        ...      elements=0).module
        '/blocks.0/attn'
        """
        return self.name.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An ONNX file: its nodes in an order in which they can run, and by output the node that gives it."""

    file: Path
    nodes: tuple[Node, ...]
    by_output: dict[str, str]
    outputs: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    def ancestors(self, name: str) -> list[Node]:
        """Return the nodes that a node is computed from, and itself, in the graph's order."""
        known, todo, found = self.by_name, [name], {name}
        while todo:
            for producer in known[todo.pop()].producers:
                if producer not in found:
                    found.add(producer)
                    todo.append(producer)
        return [node for node in self.nodes if node.name in found]


def read(file: Path) -> Graph:
    """Return the graph of an ONNX file; nodes without a name, which ATC would name itself, count as passive."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(file), load_external_data=False))
    graph = model.graph
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    constants = {one.name: tuple(one.dims) for one in graph.initializer}
    # What each value comes from: nodes for the values of passive ones, nothing for constants.
    sources: dict[str, tuple[str, ...]] = dict.fromkeys(constants, ())
    computed = {one.name for one in graph.input} - constants.keys()
    by_output: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.node:
        given = [one for one in node.input if one in computed]
        if not given or node.op_type == "Shape":  # a constant, shapes being static
            for one in node.output:
                constants[one] = shapes.get(one, ())
                sources[one] = ()
            continue
        computed |= set(node.output)
        before = tuple(dict.fromkeys(source for one in given for source in sources.get(one, ())))
        if node.op_type in _PASSIVE or not node.name:
            for one in node.output:
                sources[one] = before
                if len(before) == 1:
                    by_output[one] = before[0]
            continue
        nodes.append(
            Node(
                name=node.name,
                operator=node.op_type,
                outputs=tuple(node.output),
                producers=before,
                multiply_adds=_multiply_adds(node, shapes | constants),
                elements=sum(_count(shapes.get(one, ())) for one in (*given, *node.output)),
            )
        )
        for one in node.output:
            sources[one] = (node.name,)
            by_output[one] = node.name
    return Graph(
        file=file, nodes=tuple(nodes), by_output=by_output, outputs=tuple(one.name for one in graph.output)
    )


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _multiply_adds(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the multiply-adds of a convolution or matrix product, 0 for anything else or an unknown shape."""
    needed = [*node.input[:2], node.output[0]]
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm") or not all(
        one in shapes for one in needed
    ):
        return 0
    given, weight, made = (shapes[one] for one in needed)
    if node.op_type == "Conv":
        return _count(made) * _count(weight[1:])
    if node.op_type == "ConvTranspose":
        return _count(given) * _count(weight[1:])
    turned = any(one.name == "transA" and one.i for one in node.attribute)
    return _count(made) * (given[-2] if turned else given[-1])


def with_outputs(file: Path, names: Sequence[str], target: Path) -> Path:
    """Write a copy of an ONNX file whose outputs are these values instead, and return it."""
    import onnx

    model = onnx.load(str(file))
    known = {
        value.name: value
        for value in (
            *onnx.shape_inference.infer_shapes(model).graph.value_info,
            *model.graph.output,
        )
    }
    del model.graph.output[:]
    model.graph.output.extend(
        known.get(one) or onnx.helper.make_empty_tensor_value_info(one) for one in names
    )
    large = file.with_suffix(".onnx.data").is_file()
    onnx.save(model, str(target), save_as_external_data=large)
    return target
