"""What an exported graph computes of shapes and constants is folded; what depends on the input stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from staged_om.folding import fold


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)])


def check(given: onnx.ModelProto, expected: list[str]) -> onnx.ModelProto:
    """Assert that these operators are left, and that they compute the same."""
    x = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    before = ReferenceEvaluator(given).run(None, {"x": x})[0]
    folded = fold(given)
    assert [node.op_type for node in folded.graph.node if node.op_type != "Constant"] == expected
    after = ReferenceEvaluator(folded).run(None, {"x": x})[0]
    assert before.shape == after.shape
    assert np.array_equal(before, after)
    return folded


def test_a_shape_that_is_computed_becomes_a_constant() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"]),
        helper.make_node("Shape", ["relu"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["first"]),
        helper.make_node("Concat", ["first", "rest"], ["size"], axis=0),
        helper.make_node("Reshape", ["relu", "size"], ["flat"]),
        # The shape of what was reshaped is known only after the first one is folded.
        helper.make_node("Shape", ["flat"], ["again"]),
        helper.make_node("Reshape", ["flat", "again"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1])}
    folded = check(model(nodes, weights), ["Relu", "Reshape", "Reshape"])
    assert [one.name for one in folded.graph.initializer] == []


def test_casts_that_do_nothing_go_and_others_stay() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["same"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["same"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["back"], ["y"]),
    ]
    folded = check(model(nodes), ["Cast", "Cast", "Relu"])
    assert folded.graph.node[0].input[0] == "x"


def test_shared_weights_are_used_under_one_name() -> None:
    nodes = [
        helper.make_node("Identity", ["weight"], ["tied"]),
        helper.make_node("Mul", ["x", "tied"], ["once"]),
        helper.make_node("Mul", ["once", "weight"], ["y"]),
    ]
    folded = check(model(nodes, {"weight": np.arange(400, dtype=np.float32)[4:8]}), ["Mul", "Mul"])
    assert [one.name for one in folded.graph.initializer] == ["weight"]


def test_constants_are_computed_once_and_large_weights_are_no_obstacle() -> None:
    weight = np.random.default_rng(1).random((4, 100)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]),
        helper.make_node("Transpose", ["turned"], ["back"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "back"], ["y"]),
    ]
    folded = check(model(nodes, {"weight": weight}), ["MatMul"])
    assert [one.name for one in folded.graph.initializer] == []


@pytest.mark.parametrize("operator", ["Identity", "Cast"])
def test_the_output_keeps_its_name(operator: str) -> None:
    attributes = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"]),
        helper.make_node(operator, ["relu"], ["y"], **attributes),
    ]
    check(model(nodes), ["Relu", operator])
