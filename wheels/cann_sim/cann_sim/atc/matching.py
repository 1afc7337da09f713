"""How fusion passes look at a graph, and what they find there."""

from __future__ import annotations

from dataclasses import dataclass

from cann_sim.atc.network import Network, Node

ALL = "ALL"  # every pass, as a switch file says it
OPEN = "whether the closed library of this SoC has this pass in this form is not public"
# The SoCs that the passes of LayerNorm and GELU are documented for.
WITH_PASSES = ("910B", "910_93")


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


class View:
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
