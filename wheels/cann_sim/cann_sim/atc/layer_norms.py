"""The passes that make one kernel of a decomposed LayerNorm, and the forms that they take."""

from __future__ import annotations

from dataclasses import dataclass

from cann_sim.atc.kernels import Soc
from cann_sim.atc.matching import ALL, OPEN, WITH_PASSES, Site, View
from cann_sim.atc.network import Network, Node

LAYER_NORM = "LayerNormFusionPass"
LAYER_NORM_ONNX = "LayerNormONNXFusionPass"


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


def fuse_layer_norms(network: Network, soc: Soc, off: frozenset[str]) -> list[Site]:
    """Fuse the LayerNorms that a pass of the SoC takes, and return all of them."""
    sites = []
    view = View(network)
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
            view = View(network)
    return sites


def _decomposed(view: View, division: Node) -> _LayerNorm | None:
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


def _scale_and_shift(view: View, found: _LayerNorm) -> None:
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


def _layer_norm_pass(view: View, found: _LayerNorm, soc: Soc, off: frozenset[str]) -> tuple[str, str, bool]:
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
    if soc.family not in WITH_PASSES:
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
