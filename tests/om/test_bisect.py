"""The search inside a stage: the first node that breaks, the kind, and how many conversions it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from staged_om import graph as graphs
from staged_om.bisect import Finding, find
from staged_om.graph import Graph, Node
from staged_om.onnx_runner import onnx_stage

LENGTH = 40
GIVEN = {"v0": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)}


def write(folder: Path) -> Graph:
    """Return a chain of additions with a branch: `/side` leaves at a quarter and joins at three quarters."""
    nodes, last = [], "v0"
    for index in range(LENGTH):
        nodes.append(helper.make_node("Add", [last, "one"], [f"v{index + 1}"], name=f"/add_{index}"))
        last = f"v{index + 1}"
        if index == LENGTH // 4:
            nodes.append(helper.make_node("Mul", [last, "two"], ["side"], name="/side"))
        if index == 3 * LENGTH // 4:
            nodes.append(helper.make_node("Add", [last, "side"], ["joined"], name="/join"))
            last = "joined"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in ("v0", last)]
    constants = [
        helper.make_tensor("one", TensorProto.FLOAT, [1], [0.01]),
        helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0]),
    ]
    body = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    file = folder / "chain.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return graphs.read(file)


class Probe:
    """ONNX Runtime's values, and an OM's that are theirs but for one node and what follows it.

    `fault` is the node that gives other numbers; `only_fused` says that it does so only when ATC fuses; `heals_at` is a
    node from which on nothing is to be seen of it, as behind a saturated sigmoid.
    """

    def __init__(
        self, graph: Graph, fault: str = "", *, only_fused: bool = False, heals_at: str = ""
    ) -> None:
        self.graph, self.only_fused = graph, only_fused
        self.bad = {
            node.name for node in graph.nodes if fault in {one.name for one in graph.ancestors(node.name)}
        }
        if heals_at:
            order = [node.name for node in graph.nodes]
            healed = {
                node.name
                for node in graph.nodes
                if heals_at in {one.name for one in graph.ancestors(node.name)} and node.name != order[-1]
            }
            self.bad -= healed
        self.conversions: list[list[str]] = []

    def onnx(self, nodes: Sequence[Node]) -> Mapping[str, np.ndarray]:
        names = [name for node in nodes for name in node.outputs] or list(self.graph.outputs)
        file = graphs.with_outputs(self.graph.file, names, self.graph.file.with_name("probe.onnx"))
        return onnx_stage(file, names)(GIVEN)

    def om(self, nodes: Sequence[Node]) -> Mapping[str, np.ndarray]:
        self.conversions.append([node.name for node in nodes])
        return self._spoilt(self.onnx(nodes), {node.name for node in nodes} & self.bad)

    def outputs(self, *, fusion: bool) -> Mapping[str, np.ndarray]:
        last = self.graph.by_output[self.graph.outputs[0]]
        broken = self.bad & {last} if fusion or not self.only_fused else set()
        return self._spoilt(self.onnx([]), broken)

    def _spoilt(self, values: Mapping[str, np.ndarray], nodes: set[str]) -> Mapping[str, np.ndarray]:
        return {
            name: value * 1.2 if self.graph.by_output[name] in nodes else value
            for name, value in values.items()
        }


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return write(tmp_path)


def test_nothing_is_searched_if_the_outputs_pass(graph: Graph) -> None:
    probe = Probe(graph)
    found = find(graph, probe, precision="fp16")
    assert (found.kind, found.first, probe.conversions) == ("", None, [])
    assert found.describe() == "the stage's outputs keep all thresholds"
    assert [row.is_output for row in found.rows] == [True]


@pytest.mark.parametrize("fault", ["/add_0", "/add_17", "/side", "/join", f"/add_{LENGTH - 1}"])
def test_the_interval_search_finds_the_node_in_few_conversions(graph: Graph, fault: str) -> None:
    probe = Probe(graph, fault)
    found = find(graph, probe, precision="fp16")
    assert found.first is not None
    assert found.first.name == fault
    assert fault in found.describe()
    assert "RelativeEuclideanDistance 0.2 (must be < 0.05)" in found.describe()
    assert len(probe.conversions) <= 12  # of 42 nodes
    assert all(len(nodes) == 1 for nodes in probe.conversions)


def test_the_search_goes_on_in_what_feeds_a_node_if_a_fault_is_hidden_in_between(graph: Graph) -> None:
    """What follows /add_20 hides the fault of /add_5; only the last node shows it again."""
    found = find(graph, Probe(graph, "/add_5", heals_at="/add_20"), precision="fp16")
    assert found.first is not None
    producers = [graph.by_name[name] for name in found.first.producers]
    # By halving it can be either end of a broken stretch; it is always a node that all its feeders pass before.
    assert found.first.name in ("/add_5", f"/add_{LENGTH - 1}", "/join", "/side")
    assert producers


def test_chunks_give_the_whole_table(graph: Graph) -> None:
    probe = Probe(graph, "/side")
    found = find(graph, probe, precision="fp16", chunk=10)
    assert found.first is not None
    assert found.first.name == "/side"
    assert [len(nodes) for nodes in probe.conversions] == [10, 10, 10, 10, 2]
    assert [row.node for row in found.rows if not row.is_output] == [node.name for node in graph.nodes]
    assert found.conversions == 6  # with the one without fusion


@pytest.mark.parametrize(
    ("only_fused", "precision", "kind"),
    [
        (True, "fp16", "fusion"),
        (True, "origin", "fusion"),
        (False, "fp16", "precision"),
        (False, "mixed_float16", "precision"),
        (False, "origin", "kernel"),
    ],
)
def test_a_conversion_without_fusion_tells_the_kind(
    graph: Graph, only_fused: bool, precision: str, kind: str
) -> None:
    found = find(graph, Probe(graph, "/add_9", only_fused=only_fused), precision=precision)
    assert found.kind == kind
    assert found.facts()["kind"] == kind


def test_what_only_breaks_in_the_whole_conversion_is_said(graph: Graph) -> None:
    """As an output a node cannot be fused, so a fused pattern that breaks shows nothing when it is looked at."""

    class Hidden(Probe):
        def om(self, nodes: Sequence[Node]) -> Mapping[str, np.ndarray]:
            return self.onnx(nodes)

    found = find(graph, Hidden(graph, "/add_9", only_fused=True), precision="fp16")
    assert (found.kind, found.first) == ("fusion", None)
    assert "it is what ATC fuses" in found.describe()


def test_the_facts_name_node_operator_and_conversions(graph: Graph) -> None:
    found = find(graph, Probe(graph, "/side"), precision="fp16")
    facts = found.facts()
    assert (facts["first"], facts["operator"], facts["passes"]) == ("/side", "Mul", False)
    assert facts["conversions"] == found.conversions > 1


def test_passive_operators_and_constants_are_not_looked_at(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="/Shape"),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="/Reshape"),
        helper.make_node("Neg", ["weight"], ["turned"], name="/Neg"),
        helper.make_node("MatMul", ["y", "turned"], ["z"], name="/MatMul"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [2, 3]), ("z", [2, 4]))
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [3, 4], [0.0] * 12)
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])), tmp_path / "g.onnx"
    )
    graph = graphs.read(tmp_path / "g.onnx")
    assert [node.name for node in graph.nodes] == ["/MatMul"]
    assert graph.by_output["z"] == "/MatMul"


def test_an_empty_finding_passes() -> None:
    assert Finding().facts()["passes"]
