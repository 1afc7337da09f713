"""The fusion passes that decide speed and accuracy: LayerNorm, GELU, and convolutions with what follows them.

Which forms match is what CANN's documents and the public sources of its passes say; where these leave open whether
today's closed library does the same, the site is marked as uncertain. A site that looks like a LayerNorm or a GELU and
does not fuse is reported, too, with the reason: it is what costs time on a card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cann_sim.atc.kernels import Soc
from cann_sim.atc.network import Network, Node

CONV_BATCH_NORM = "ConvBatchnormFusionPass"
LAYER_NORM = "LayerNormFusionPass"
LAYER_NORM_ONNX = "LayerNormONNXFusionPass"
GELU = "GeluFusionPass"
GELU_ONNX = "GeluONNXFusionPass"
CONV_RELU = "TbeConvCommonRules0FusionPass"
# Fusions of kernels in the unified buffer: fusion_result.json lists them apart; they change no value.
UB_PASSES = frozenset((CONV_RELU,))
ALL = "ALL"

OPEN = "whether the closed library of this SoC has this pass in this form is not public"


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place that computes a LayerNorm or a GELU.

    Attributes
    ----------
    kind
        `LayerNorm` or `Gelu`.
    name
        Its last node.
    nodes
        Names of all of its nodes.
    fused_by
        The pass that makes one kernel of it; `LayerNormalization` if the graph has it as one node; "" if it stays in
        pieces.
    reason
        Why it stays in pieces.
    uncertain
        Whether the public sources leave open if a card does the same.
    """

    kind: str
    name: str
    nodes: tuple[str, ...]
    fused_by: str = ""
    reason: str = ""
    uncertain: bool = False


def fuse(network: Network, soc: Soc, off: frozenset[str]) -> tuple[Site, ...]:
    """Fuse what the passes of a SoC fuse, except for those `off`, and return the sites in the graph's order."""
    sites = [
        Site(kind="LayerNorm", name=node.name, nodes=(node.name,), fused_by="LayerNormalization")
        for node in network.nodes
        if node.operator == "LayerNormalization"
    ]
    if not off & {ALL, CONV_BATCH_NORM}:
        _fold_batch_norms(network)
    order = {name: index for index, node in enumerate(network.nodes) for name in (node.name, *node.outputs)}
    sites += _layer_norms(network, soc, off)
    sites += _gelus(network, soc, off)
    if not off & {ALL, CONV_RELU}:
        _name_relus(network)
    network.drop_unused()
    return tuple(sorted(sites, key=lambda site: order[site.name]))


class _View:
    """What matching asks of a network: who makes a value, who takes it, which number a constant is."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.makers = network.producers()
        self.takers = network.consumers()
        self.outputs = frozenset(network.outputs)

    def made(self, name: str, *operators: str) -> Node | None:
        """Return the node that makes a value if it is one of the operators."""
        node = self.makers.get(name)
        return node if node is not None and node.operator in operators else None

    def number(self, name: str) -> float | None:
        """Return the number of a constant with one element, else None."""
        value = self.network.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def inside(self, node: Node, nodes: list[Node]) -> bool:
        """Return whether only `nodes` take what `node` makes."""
        return not self.outputs.intersection(node.outputs) and all(
            taker in nodes for name in node.outputs for taker in self.takers.get(name, ())
        )

    def only_taker(self, node: Node, *operators: str) -> Node | None:
        """Return the one node that takes what `node` makes if it is one of the operators."""
        takers = self.takers.get(node.outputs[0], ())
        if len(takers) != 1 or node.outputs[0] in self.outputs or takers[0].operator not in operators:
            return None
        return takers[0]

    def other(self, node: Node, name: str) -> str:
        """Return the input of a node with two that is not `name`."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]

    def scaled(self, node: Node | None, number: float, tolerance: float = 1e-4) -> str | None:
        """Return what a node multiplies by (or adds to) this number, else None."""
        if node is None or len(node.inputs) != 2:
            return None
        for value, factor in (node.inputs, node.inputs[::-1]):
            found = self.number(factor)
            if found is not None and abs(found - number) <= tolerance:
                return value
        return None


# ---- LayerNorm ----


@dataclass
class _LayerNorm:
    """The parts of a decomposed LayerNorm: (x - mean) / sqrt(mean of squares + epsilon), then scale and shift."""

    x: str
    nodes: list[Node]
    last: Node
    in_order: bool
    square: Node
    epsilon: str
    axes: tuple[int, ...]
    keepdims: bool
    with_cast: bool
    scale: str = ""
    shift: str = ""


def _layer_norms(network: Network, soc: Soc, off: frozenset[str]) -> list[Site]:
    sites = []
    view = _View(network)
    for division in list(network.nodes):
        if division.operator != "Div":
            continue
        found = _decomposed(view, division)
        if found is None:
            continue
        name, reason, uncertain = _layer_norm_pass(view, found, soc, off)
        nodes = tuple(node.name for node in found.nodes)
        sites.append(
            Site(
                kind="LayerNorm",
                name=found.last.name,
                nodes=nodes,
                fused_by=name,
                reason=reason,
                uncertain=uncertain,
            )
        )
        if name:
            fused = Node(
                name=found.last.name, operator="LayerNormalization", inputs=[found.x, found.scale, found.shift],
                outputs=list(found.last.outputs),
                attributes={
                    "axis": min(found.axes) - len(network.shapes[found.x]), "epsilon": view.number(found.epsilon),
                },
                passes=[name], uncertain=OPEN if uncertain else "",
            )  # fmt: skip
            network.replace(found.nodes, fused)
            view = _View(network)
    return sites


def _decomposed(view: _View, division: Node) -> _LayerNorm | None:
    """Return the LayerNorm whose division this is; whether a pass takes it is another question."""
    deviation, root = view.made(division.inputs[0], "Sub"), view.made(division.inputs[1], "Sqrt")
    casts = []
    if deviation is None and (cast := view.made(division.inputs[0], "Cast")):
        casts, deviation = [cast], view.made(cast.inputs[0], "Sub")
    added = view.made(root.inputs[0], "Add") if root else None
    if deviation is None or root is None or added is None:
        return None
    epsilon = next((name for name in added.inputs if view.number(name) is not None), "")
    variance = view.made(view.other(added, epsilon), "ReduceMean") if epsilon else None
    square = view.made(variance.inputs[0], "Pow", "Mul") if variance else None
    if variance is None or square is None:
        return None
    squared = square.inputs[0]
    if (square.operator == "Pow" and view.number(square.inputs[1]) != 2) or (
        square.operator == "Mul" and square.inputs[1] != squared
    ):
        return None
    if (cast := view.made(squared, "Cast")) is not None:
        casts += [cast] if cast not in casts else []
        squared = cast.inputs[0]
    again = view.made(squared, "Sub")
    if again is None or again.inputs != deviation.inputs:
        return None
    means = [view.made(name, "ReduceMean") for name in deviation.inputs]
    x, mean, in_order = (
        (deviation.inputs[0], means[1], True)
        if means[1] is not None
        else (deviation.inputs[1], means[0], False)
    )
    if mean is None or mean.inputs[0] != x:
        return None
    rank = len(view.network.shapes[x])
    axes = _axes(view.network, mean, rank)
    found = _LayerNorm(
        x=x, last=division, in_order=in_order, square=square, epsilon=epsilon, axes=axes,
        keepdims=all(node.attributes.get("keepdims", 1) for node in (mean, variance)), with_cast=bool(casts),
        nodes=list(dict.fromkeys((mean, deviation, again, *casts, square, variance, added, root, division))),
    )  # fmt: skip
    if axes != _axes(view.network, variance, rank):
        return None
    _scale_and_shift(view, found)
    return found


def _scale_and_shift(view: _View, found: _LayerNorm) -> None:
    """Add the multiplication and addition with constants that follow the division."""
    node = found.last
    cast = view.only_taker(node, "Cast")
    scaled = view.only_taker(cast or node, "Mul")
    if scaled is None:
        return
    scale = view.other(scaled, (cast or node).outputs[0])
    shifted = view.only_taker(scaled, "Add")
    shift = view.other(shifted, scaled.outputs[0]) if shifted is not None else ""
    if shifted is None or scale not in view.network.constants or shift not in view.network.constants:
        return
    found.nodes += [*([cast] if cast else []), scaled, shifted]
    found.with_cast |= cast is not None
    found.scale, found.shift, found.last = scale, shift, shifted


def _axes(network: Network, node: Node, rank: int) -> tuple[int, ...]:
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in network.constants:
        axes = network.constants[node.inputs[1]].reshape(-1).tolist()
    if axes is None:
        axes = range(rank)
    return tuple(sorted(axis % rank for axis in axes))


def _layer_norm_pass(view: _View, found: _LayerNorm, soc: Soc, off: frozenset[str]) -> tuple[str, str, bool]:
    """Return the pass that takes a LayerNorm (or ""), why none does, and whether that is uncertain."""
    network = view.network
    shape = network.shapes[found.x]
    rank = len(shape)
    sizes = tuple(shape[axis] for axis in found.axes)
    if found.axes != tuple(range(rank - len(found.axes), rank)):
        axes = ", ".join(map(str, found.axes))
        return "", f"it normalises over axis {axes} of {rank}, and not over the last", False
    if not found.in_order:
        return (
            "",
            "it subtracts the value from its mean; the passes want the mean subtracted from the value",
            False,
        )
    if not found.scale:
        return "", "scale and shift are missing or no constants", False
    if any(not view.inside(node, found.nodes) for node in found.nodes if node is not found.last):
        return "", "another node takes a value from its middle", False
    if network.dtypes[found.x] not in ("float32", "float16"):
        return "", f"the passes take float32 and float16, not {network.dtypes[found.x]}", False
    if any(_rows(network.shapes[name]) != sizes for name in (found.scale, found.shift)):
        return "", "scale and shift have another shape than what is normalised", False
    if soc.family not in ("910B", "910_93"):
        reason = f"{soc.family} has no such pass (a field report saw parts of it on AI CPU there): export with opset 17"
        return "", reason, True
    epsilon = network.constants[found.epsilon]
    newer = soc.family == "910_93"
    narrow = (
        len(found.axes) == 1
        and found.keepdims
        and epsilon.ndim == 1
        and sizes != (1,)
        and not found.with_cast
    )
    if narrow and not off & {ALL, LAYER_NORM}:
        return LAYER_NORM, "", newer
    if found.square.operator != "Pow":
        return "", "its square is a multiplication; the pass wants Pow", False
    if not found.keepdims:
        return "", "its means drop the dimension", False
    if not epsilon.reshape(-1)[0] < 0.1:
        return "", f"its epsilon is {float(epsilon.reshape(-1)[0]):g}; the pass wants less than 0.1", False
    if epsilon.ndim > 1:
        return "", "its epsilon has more than one dimension", False
    if off & {ALL, LAYER_NORM_ONNX}:
        return "", "--fusion_switch_file has the pass off", False
    return LAYER_NORM_ONNX, "", True


def _rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the ones in front of it.

    >>> _rows((1, 1, 768))
    (768,)
    """
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


# ---- GELU ----


def _gelus(network: Network, soc: Soc, off: frozenset[str]) -> list[Site]:
    sites = []
    view = _View(network)
    for node in list(network.nodes):
        found: tuple[str, list[Node], str] | None = None
        if node.operator == "Erf":
            found = _erf_form(view, node)
        elif node.operator == "Tanh":
            found = _tanh_form(view, node)
        if found is None:
            continue
        x, nodes, reason = found
        name = GELU_ONNX if node.operator == "Erf" else GELU
        if not reason and any(not view.inside(each, nodes) for each in nodes[:-1]):
            reason = "another node takes a value from its middle"
        elif not reason and soc.family not in ("910B", "910_93"):
            reason = f"the pass is documented for A2, not for {soc.family}"
        elif not reason and off & {ALL, name}:
            reason = "--fusion_switch_file has the pass off"
        uncertain = (not reason and name == GELU_ONNX) or soc.family != "910B"
        sites.append(
            Site(
                kind="Gelu",
                name=nodes[-1].name,
                nodes=tuple(each.name for each in nodes),
                fused_by="" if reason else name,
                reason=reason,
                uncertain=uncertain,
            )
        )
        if not reason:
            fused = Node(
                name=nodes[-1].name, operator="Gelu", inputs=[x], outputs=list(nodes[-1].outputs),
                attributes={"approximate": "tanh"}, passes=[name], uncertain=OPEN if uncertain else "",
            )  # fmt: skip
            network.replace(nodes, fused)
            view = _View(network)
    return sites


def _erf_form(view: _View, erf: Node) -> tuple[str, list[Node], str] | None:
    """Return input, nodes and objection of x / sqrt(2) -> Erf -> + 1 -> * x -> * 0.5; None if it is no GELU."""
    before = view.made(erf.inputs[0], "Div", "Mul")
    after = view.only_taker(erf, "Add")
    if before is None or after is None or view.scaled(after, 1) != erf.outputs[0]:
        return None
    if before.operator == "Mul":
        x = view.scaled(before, 2**-0.5)
        objection = "it multiplies by 1 / sqrt(2); the pass wants a division by sqrt(2)"
    else:
        divisor = view.number(before.inputs[1])
        x = before.inputs[0] if divisor is not None else None
        objection = (
            "" if divisor is not None and abs(divisor - 1.41421) < 1e-4 else f"it divides by {divisor}"
        )
    product = view.only_taker(after, "Mul")
    if x is None or product is None:
        return None
    nodes = [before, erf, after, product]
    other = view.other(product, after.outputs[0])
    if other != x:
        half = view.made(other, "Mul")
        if half is not None and view.scaled(half, 0.5) == x:
            return (
                x,
                [before, half, erf, after, product],
                "it halves x before the product; the pass wants that last",
            )
        return x, nodes, "it multiplies by another value than x"
    half = view.only_taker(product, "Mul")
    if half is None or view.scaled(half, 0.5) is None:
        return x, nodes, objection or "it does not end in a multiplication by 0.5"
    return x, [*nodes, half], objection


def _tanh_form(view: _View, tanh: Node) -> tuple[str, list[Node], str] | None:
    """Return input, nodes and objection of tanh(0.79788 (x + 0.044715 x^3)) and what follows; None if it is no GELU."""
    outer = view.made(tanh.inputs[0], "Mul")
    sum_name = view.scaled(outer, (2 / np.pi) ** 0.5)
    added = view.made(sum_name, "Add") if sum_name else None
    if outer is None or added is None:
        return None
    for x, cubic in (added.inputs, added.inputs[::-1]):
        inner = view.made(cubic, "Mul")
        cube_name = view.scaled(inner, 0.044715)
        cube = view.made(cube_name, "Pow", "Mul") if cube_name else None
        if inner is None or cube is None or x not in cube.inputs:
            continue
        nodes = [cube, inner, added, outer, tanh]
        objection = ""
        if cube.operator == "Mul":
            objection = "its cube is a multiplication; the pass wants Pow (PyTorch's exporter multiplies)"
        elif view.number(cube.inputs[1]) != 3:
            continue
        one = view.only_taker(tanh, "Add")
        product = view.only_taker(one, "Mul") if one is not None and view.scaled(one, 1) else None
        if one is None or product is None:
            return x, nodes, objection or "1 + tanh is missing"
        nodes += [one, product]
        other = view.other(product, one.outputs[0])
        if other == x:
            half = view.only_taker(product, "Mul")
            if half is None or view.scaled(half, 0.5) is None:
                return x, nodes, objection or "it does not end in a multiplication by 0.5"
            return x, [*nodes, half], objection
        half = view.made(other, "Mul")
        if half is not None and view.scaled(half, 0.5) == x:
            return x, [half, *nodes], objection
        return x, nodes, objection or "it multiplies by another value than x"
    return None


# ---- convolutions ----


def _fold_batch_norms(network: Network) -> None:
    """Fold a BatchNormalization with constants into the convolution before it."""
    view = _View(network)
    for norm in list(network.nodes):
        if norm.operator != "BatchNormalization" or len([name for name in norm.outputs if name]) != 1:
            continue
        conv = view.made(norm.inputs[0], "Conv")
        names = [*norm.inputs[1:5], *(conv.inputs[1:] if conv else ())]
        if (
            conv is None
            or not view.inside(conv, [norm])
            or any(name not in network.constants for name in names)
        ):
            continue
        scale, shift, mean, variance = (
            network.constants[name].astype(np.float64) for name in norm.inputs[1:5]
        )
        factor = scale / np.sqrt(variance + norm.attributes.get("epsilon", 1e-5))
        weight = network.constants[conv.inputs[1]]
        bias = (
            network.constants[conv.inputs[2]]
            if len(conv.inputs) > 2 and conv.inputs[2]
            else np.zeros(len(scale))
        )
        folded = {
            f"{norm.name}@weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)).astype(weight.dtype),
            f"{norm.name}@bias": ((bias - mean) * factor + shift).astype(weight.dtype),
        }
        for name, value in folded.items():
            network.constants[name] = value
            network.dtypes[name], network.shapes[name] = value.dtype.name, value.shape
        fused = Node(
            name=norm.name, operator="Conv", inputs=[conv.inputs[0], *folded], outputs=list(norm.outputs),
            attributes=conv.attributes, passes=[CONV_BATCH_NORM],
        )  # fmt: skip
        network.replace([conv, norm], fused)
        view = _View(network)


def _name_relus(network: Network) -> None:
    """Note which Relu runs within the kernel of the convolution before it: no value changes."""
    view = _View(network)
    for node in network.nodes:
        conv = view.made(node.inputs[0], "Conv") if node.operator == "Relu" else None
        if conv is not None and view.inside(conv, [node]):
            node.passes.append(CONV_RELU)
            node.uncertain = f"it runs within the kernel of {conv.name}"
