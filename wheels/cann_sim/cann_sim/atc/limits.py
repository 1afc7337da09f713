"""What ATC's plug-ins refuse in a node's attributes and inputs, by ONNX operator (facts of the public plug-ins)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
from onnx import helper, numpy_helper

Finding = tuple[str, Any, str]


class Node:
    """A node with what the plug-ins ask about it."""

    def __init__(
        self,
        proto: onnx.NodeProto,
        version: int,
        shapes: dict[str, tuple[int, ...]],
        values: dict[str, onnx.TensorProto],
    ) -> None:
        self.proto = proto
        self.version = version
        self.attributes = {
            attribute.name: helper.get_attribute_value(attribute)
            for attribute in proto.attribute
            if attribute.type != onnx.AttributeProto.GRAPH
        }
        self.inputs = [name for name in proto.input if name]
        self._shapes = shapes
        self._values = values

    def text(self, name: str, default: str) -> str:
        """Return a string attribute."""
        value = self.attributes.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def rank(self, index: int) -> int | None:
        """Return the rank of an input, None if the model does not say."""
        shape = self._shapes.get(self.proto.input[index]) if index < len(self.proto.input) else None
        return None if shape is None else len(shape)

    def count(self, index: int) -> int | None:
        """Return the number of elements of a constant input in one dimension, None if it is not constant."""
        if index >= len(self.proto.input) or self.proto.input[index] not in self._values:
            return None
        return int(numpy_helper.to_array(self._values[self.proto.input[index]]).size)


Limit = Callable[[Node], Iterator[Finding]]


def _equal(name: str, expected: int, default: int = 0) -> Limit:
    """Return the limit of an attribute that can have one value only."""

    def limit(node: Node) -> Iterator[Finding]:
        value = node.attributes.get(name, default)
        if value != expected:
            yield name, value, f"only {expected} is supported"

    return limit


def _required(*names: str) -> Limit:
    """Return the limit of attributes that must be there."""

    def limit(node: Node) -> Iterator[Finding]:
        for name in names:
            if name not in node.attributes:
                yield name, "missing", "it is required"

    return limit


def _inputs(least: int, most: int | None = None) -> Limit:
    """Return the limit of the number of inputs."""

    def limit(node: Node) -> Iterator[Finding]:
        found = len(node.inputs)
        if found < least or (most is not None and found > most):
            yield "inputs", found, f"it takes {least}" + (f" to {most}" if most else " or more")

    return limit


def _all(*limits: Limit) -> Limit:
    """Return several limits as one."""

    def limit(node: Node) -> Iterator[Finding]:
        for one in limits:
            yield from one(node)

    return limit


def _even_pads(node: Node) -> Iterator[Finding]:
    pads = node.attributes.get("pads", [])
    if len(pads) % 2:
        yield "pads", list(pads), "it must have an even number of values"


def _convolution(node: Node) -> Iterator[Finding]:
    rank = node.rank(1) or node.rank(0)
    if rank is not None and rank not in (4, 5):
        yield "input", f"{rank} dimensions", "4 or 5 are supported (for a 1-D convolution add a dimension)"
    if rank == 5 and node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        yield "auto_pad", node.text("auto_pad", ""), "with 5 dimensions only NOTSET and VALID are supported"
    yield from _even_pads(node)


def _conv(node: Node) -> Iterator[Finding]:
    yield from _convolution(node)
    names = ("kernel_shape", "pads", "strides", "dilations")
    if not any(name in node.attributes for name in names):
        yield "attributes", "none", f"one of {', '.join(names)} is required"


def _max_pool(node: Node) -> Iterator[Finding]:
    yield from _equal("storage_order", 0)(node)
    if len([name for name in node.proto.output if name]) > 1:
        yield "outputs", "Indices", "the output Indices is not supported"
    yield from _required("kernel_shape")(node)
    if len(node.attributes.get("kernel_shape", [0, 0])) not in (2, 3):
        yield "kernel_shape", list(node.attributes["kernel_shape"]), "2 or 3 dimensions are supported"


def _average_pool(node: Node) -> Iterator[Finding]:
    if len(node.attributes.get("kernel_shape", [0])) not in (1, 2, 3):
        yield "kernel_shape", list(node.attributes["kernel_shape"]), "1 to 3 dimensions are supported"
    if node.text("auto_pad", "NOTSET") == "SAME_LOWER":
        yield "auto_pad", "SAME_LOWER", "it is not supported"


def _resize(node: Node) -> Iterator[Finding]:
    modes = ("nearest", "linear", "cubic") if node.version >= 11 else ("nearest", "linear")
    if node.text("mode", "nearest") not in modes:
        yield "mode", node.text("mode", ""), f"it must be one of {', '.join(modes)}"
    if node.version >= 11 and len(node.proto.input) < 3:
        yield "inputs", len(node.proto.input), "3 or 4 are needed: roi and scales may be empty"
    yield from _equal("antialias", 0)(node)
    if "axes" in node.attributes:
        yield "axes", list(node.attributes["axes"]), "it is not supported"
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        yield "keep_aspect_ratio_policy", policy, "only stretch is supported"


def _clip(node: Node) -> Iterator[Finding]:
    if len(node.inputs) < 2 and not {"min", "max"} & set(node.attributes):
        yield "min, max", "missing", "one of them is required"


def _split(node: Node) -> Iterator[Finding]:
    parts = node.attributes.get("num_outputs")
    if node.version >= 18 and parts is not None and parts != len(node.proto.output):
        yield "num_outputs", parts, f"the node has {len(node.proto.output)} outputs"


def _slice(node: Node) -> Iterator[Finding]:
    if len(node.inputs) < 3 and not {"starts", "ends"} <= set(node.attributes):
        yield "starts, ends", "missing", "both are required"


def _pad(node: Node) -> Iterator[Finding]:
    yield from _even_pads(node)
    if (node.count(1) or 0) % 2:
        yield "pads", f"{node.count(1)} values", "it must have an even number of values"


def _unsqueeze(node: Node) -> Iterator[Finding]:
    if "axes" not in node.attributes and len(node.inputs) < 2:
        yield "axes", "missing", "it is required"


def _upsample(node: Node) -> Iterator[Finding]:
    if node.text("mode", "nearest") not in ("nearest", "linear"):
        yield "mode", node.text("mode", ""), "it must be nearest or linear"


def _depth_to_space(node: Node) -> Iterator[Finding]:
    if node.attributes.get("blocksize", 0) < 2:
        yield "blocksize", node.attributes.get("blocksize", "missing"), "it must be 2 or more"


def _lrn(node: Node) -> Iterator[Finding]:
    if node.attributes.get("size", 1) % 2 == 0:
        yield "size", node.attributes["size"], "it must be odd"


def _lp_pool(node: Node) -> Iterator[Finding]:
    yield from _equal("ceil_mode", 0)(node)
    if any(value != 1 for value in node.attributes.get("dilations", [])):
        yield "dilations", list(node.attributes["dilations"]), "they are not supported"


def _scatter_nd(node: Node) -> Iterator[Finding]:
    if node.text("reduction", "none") not in ("none", "add"):
        yield "reduction", node.text("reduction", ""), "only none and add are supported"


def _top_k(node: Node) -> Iterator[Finding]:
    yield from (_required("k") if node.version < 10 else _inputs(2, 2))(node)


def _flash_attention(node: Node) -> Iterator[Finding]:
    yield from _required("head_num", "input_layout")(node)
    if node.text("input_layout", "BSH") not in ("BSH", "SBH"):
        yield "input_layout", node.text("input_layout", ""), "it must be BSH or SBH"


LIMITS: dict[str, Limit] = {
    "ArgMax": _equal("select_last_index", 0),
    "ArgMin": _equal("select_last_index", 0),
    "AveragePool": _average_pool,
    "Clip": _clip,
    "Concat": _required("axis"),
    "Conv": _conv,
    "ConvTranspose": _all(_convolution, _required("kernel_shape")),
    "DepthToSpace": _depth_to_space,
    "Einsum": _required("equation"),
    "GatherND": _equal("batch_dims", 0),
    "LRN": _lrn,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "NonMaxSuppression": _inputs(2, 5),
    "NPUFlashAttention": _flash_attention,
    "NPUFusedAttentionScore": _required("scale"),
    "NPUPromptFlashAttention": _required("num_heads", "input_layout"),
    "OneHot": _inputs(3, 3),
    "Pad": _pad,
    **{f"Reduce{name}": _equal("noop_with_empty_axes", 0) for name in ("L1", "L2", "Max", "Mean", "Min", "Prod")},
    "Resize": _resize,
    "RoiExtractor": _inputs(2),
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "SpaceToDepth": _required("blocksize"),
    "Split": _split,
    "TopK": _top_k,
    "Transpose": _required("perm"),
    "Trilu": _inputs(1, 2),
    "Unsqueeze": _unsqueeze,
    "Upsample": _upsample,
}  # fmt: skip
