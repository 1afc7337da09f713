"""Find the first node of a stage whose value in the OM is not the ONNX graph's, and tell why.

    python -m staged_om.bisect --om=build/om/<model>/<soc>-<mode> --inputs=package.npz --stage=backbone

Values inside an OM are seen by converting again with `--out_nodes`, which works on real cards, too. Either many nodes
per conversion (`--chunk=50`), which gives the whole table of msprobe's columns, or, by default, an interval search with
one node per conversion: the fewest conversions, and the least change to what ATC fuses, because an output cannot be
fused away. If the stage's own outputs keep the thresholds, nothing is searched: inner differences do not matter then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from staged_om.differences import Difference, Row, measure
from staged_om.graph import Graph, Node

Tensors = Mapping[str, np.ndarray]


class Probe(Protocol):
    """Gives values of a stage for the same inputs."""

    def onnx(self, nodes: Sequence[Node]) -> Tensors:
        """Return the outputs of nodes by their names, as ONNX Runtime computes them."""

    def om(self, nodes: Sequence[Node]) -> Tensors:
        """Return the same of an OM that was converted with these nodes as outputs."""

    def outputs(self, *, fusion: bool) -> Tensors:
        """Return the stage's own outputs of an OM converted as always, or with all fusion passes off."""


@dataclass(kw_only=True)
class Finding:
    """What the search found.

    Attributes
    ----------
    first
        The first node that breaks: its own inputs keep the thresholds. None if the stage's outputs pass, or if only
        the whole conversion breaks.
    kind
        "" where nothing breaks. `fusion`: with all fusion passes off the outputs pass. `precision`: they do not, and
        the mode lowers data types. `kernel`: they do not, and the mode keeps all data types.
    rows
        All differences that were measured, those of the stage's outputs first.
    conversions
        How many conversions the search took.
    """

    first: Node | None = None
    kind: str = ""
    rows: list[Row] = field(default_factory=list)
    conversions: int = 0

    def describe(self) -> str:
        """Return the result as a sentence."""
        if not self.kind:
            return "the stage's outputs keep all thresholds"
        if not self.first:
            return f"the outputs break ({self.kind}), but no node does that is an output itself: it is what ATC fuses"
        row = next(row for row in self.rows if row.node == self.first.name and not row.difference.passed)
        return (
            f"{self.first.operator} {self.first.name} is the first that breaks ({self.kind}): "
            f"{row.difference.explain()}"
        )


KEEP_ALL = ("origin", "must_keep_origin_dtype", "force_fp32")


def find(
    graph: Graph,
    probe: Probe,
    *,
    precision: str,
    chunk: int = 0,
    show: Callable[[str], None] = lambda _: None,
) -> Finding:
    """Return the first node that breaks.

    Parameters
    ----------
    graph, probe
        The stage and its values.
    precision
        The OM's precision mode, which decides between `precision` and `kernel`.
    chunk
        Nodes per conversion; 0 for the interval search.
    show
        Gets a line after each conversion.
    """
    search = _Search(graph, probe, show)
    expected, made = probe.onnx([]), probe.outputs(fusion=True)
    broken = search.compare_outputs(expected, made)
    if not broken and not chunk:
        return search.finding
    if broken:
        plain = probe.outputs(fusion=False)
        search.finding.conversions += 1
        passes = all(measure(plain[name], expected[name]).passed for name in expected)
        search.finding.kind = "fusion" if passes else "kernel" if precision in KEEP_ALL else "precision"
        show(
            f"with fusion off the outputs {'pass: fusion' if passes else 'break as well: ' + search.finding.kind}"
        )
    if chunk:
        search.in_chunks(chunk)
        first = search.first_of_all() if broken else None
    else:
        first = search.by_intervals(broken)
    search.finding.first = first
    return search.finding


class _Search:
    def __init__(self, graph: Graph, probe: Probe, show: Callable[[str], None]) -> None:
        self.graph, self.probe, self.show = graph, probe, show
        self.finding = Finding()
        self.known: dict[str, bool] = {}  # whether a node passes

    def compare_outputs(self, expected: Tensors, made: Tensors) -> list[str]:
        """Add the rows of the stage's outputs; return the names of those that break."""
        broken = []
        for name in self.graph.outputs:
            producer = self.graph.by_name.get(self.graph.by_output.get(name, ""))
            difference = measure(made[name], expected[name])
            self.finding.rows.append(
                Row(
                    operator=producer.operator if producer else "NetOutput",
                    kernel="",
                    om_dtype=made[name].dtype.name,
                    node=name,
                    onnx_dtype=expected[name].dtype.name,
                    index=0,
                    shape=expected[name].shape,
                    is_output=True,
                    difference=difference,
                )
            )
            if not difference.passed:
                broken.append(name)
        return broken

    def look(self, nodes: Sequence[Node]) -> None:
        """Measure nodes in one conversion."""
        expected, made = self.probe.onnx(nodes), self.probe.om(nodes)
        self.finding.conversions += 1
        for node in nodes:
            differences = []
            for index, name in enumerate(node.outputs):
                if name not in made:
                    continue
                difference = measure(made[name], expected[name])
                differences.append(difference)
                self.finding.rows.append(
                    Row(
                        operator=node.operator,
                        kernel="",
                        om_dtype=made[name].dtype.name,
                        node=node.name,
                        onnx_dtype=expected[name].dtype.name,
                        index=index,
                        shape=expected[name].shape,
                        is_output=False,
                        difference=difference,
                    )
                )
            self.known[node.name] = all(one.passed for one in differences)
            self.show(f"{node.operator} {node.name}: {_verdict(differences)}")

    def passes(self, node: Node) -> bool:
        if node.name not in self.known:
            self.look([node])
        return self.known[node.name]

    def in_chunks(self, chunk: int) -> None:
        for start in range(0, len(self.graph.nodes), chunk):
            self.look(self.graph.nodes[start : start + chunk])

    def first_of_all(self) -> Node | None:
        """Return the first node that breaks although all that feed it pass."""
        for node in self.graph.nodes:
            if not self.known[node.name] and all(self.known[one] for one in node.producers):
                return node
        return None

    def by_intervals(self, broken: Sequence[str]) -> Node | None:
        """Return the first node that breaks, by halving the nodes that the first broken output is computed from.

        Halving takes for granted that what follows a broken node is broken. That need not be so (a sigmoid saturates),
        so the node found is only accepted if all that feed it pass; else the search goes on in what feeds them.
        """
        last = self.graph.by_output.get(broken[0])
        if last is None:
            return None
        candidates = self.graph.ancestors(last)
        if self.passes(candidates[-1]):
            return None
        while True:
            low, high = 0, len(candidates) - 1  # candidates[high] breaks
            while low < high:
                middle = (low + high) // 2
                if self.passes(candidates[middle]):
                    low = middle + 1
                else:
                    high = middle
            found = candidates[high]
            feeding = [self.graph.by_name[one] for one in found.producers]
            culprit = next((node for node in feeding if not self.passes(node)), None)
            if culprit is None:
                return found
            candidates = self.graph.ancestors(culprit.name)


def _verdict(differences: Sequence[Difference]) -> str:
    worst = min((one.values.get("CosineSimilarity", math.nan) for one in differences), default=math.nan)
    return f"cosine {worst:.6f}, {'passes' if all(one.passed for one in differences) else 'breaks'}"
