"""The passes that make one kernel of a GELU in pieces, and the forms that they take."""

from __future__ import annotations

import math

from cann_sim.atc.kernels import Soc
from cann_sim.atc.matching import ALL, OPEN, WITH_PASSES, Site, View
from cann_sim.atc.network import Network, Node

GELU = "GeluFusionPass"
GELU_ONNX = "GeluONNXFusionPass"


def fuse_gelus(network: Network, soc: Soc, off: frozenset[str]) -> list[Site]:
    """Fuse the GELUs that a pass of the SoC takes, and return all of them."""
    sites = []
    view = View(network)
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
        elif not reason and soc.family not in WITH_PASSES:
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
            view = View(network)
    return sites


def _erf_form(view: View, erf: Node) -> tuple[str, list[Node], str] | None:
    """Return input, nodes and objection of x / sqrt(2) -> Erf -> + 1 -> * x -> * 0.5; None if it is no GELU."""
    before = view.made(erf.inputs[0], "Div", "Mul")
    after = view.only_taker(erf, "Add")
    if before is None or after is None or view.scaled(after, 1) != erf.outputs[0]:
        return None
    if before.operator == "Mul":
        x = view.scaled(before, math.sqrt(0.5))
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


def _tanh_form(view: View, tanh: Node) -> tuple[str, list[Node], str] | None:
    """Return input, nodes and objection of tanh(0.79788 (x + 0.044715 x^3)) and what follows; None if it is no GELU."""
    outer = view.made(tanh.inputs[0], "Mul")
    sum_name = view.scaled(outer, math.sqrt(2 / math.pi))
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
