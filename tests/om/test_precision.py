"""The search for the operators that must stay float32: known smallest sets are found, and nothing is measured twice."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from staged_om import graph as graphs
from staged_om.memory import Memory
from staged_om.precision import (
    RESULT,
    SWEEP,
    Group,
    NotReachable,
    NotWithin,
    cost,
    keep_file,
    run,
    search,
    split,
    time_left,
    union,
    whole_stages,
)

# What each operator loses in float16, by stage and name: two are harmful, one a little.
LOSSES = {
    ("backbone", "/blocks.0/attn/MatMul"): 0.0001,
    ("backbone", "/blocks.0/attn/Softmax"): 0.0300,
    ("backbone", "/blocks.0/mlp/Gelu"): 0.0002,
    ("backbone", "/blocks.1/attn/MatMul"): 0.0001,
    ("backbone", "/blocks.1/attn/Softmax"): 0.0003,
    ("backbone", "/blocks.1/mlp/Gelu"): 0.0100,
    ("rpn", "/conv/Conv"): 0.0004,
    ("roi", "/RoiAlign"): 0.0500,
    ("roi", "/fc/Gemm"): 0.0001,
}

OPERATORS = {
    "MatMul": "Relu",
    "Softmax": "Softmax",
    "Gelu": "Sigmoid",
    "Conv": "Tanh",
    "RoiAlign": "Abs",
    "Gemm": "Neg",
}


def model(names: list[str], path: Path) -> graphs.Graph:
    """Return a chain of elementwise nodes with these names: of other types than the names say, but as many."""
    nodes = [
        helper.make_node(OPERATORS[name.rpartition("/")[2]], [f"v{index}"], [f"v{index + 1}"], name=name)
        for index, name in enumerate(names)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("v0", f"v{len(names)}")
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:])), path)
    return graphs.read(path)


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, graphs.Graph]:
    names: dict[str, list[str]] = {}
    for stage, name in LOSSES:
        names.setdefault(stage, []).append(name)
    return {stage: model(found, tmp_path / f"{stage}.onnx") for stage, found in names.items()}


class Meter:
    """Adds up the losses of what is float16."""

    def __init__(self, losses: Mapping[tuple[str, str], float]) -> None:
        self.losses = losses
        self.asked: list[frozenset[tuple[str, str]]] = []

    def __call__(self, choice: Mapping[str, frozenset[str]]) -> float:
        kept = frozenset((stage, name) for stage, names in choice.items() for name in names)
        self.asked.append(kept)
        return sum(value for key, value in self.losses.items() if key not in kept)


def find(stages: dict[str, graphs.Graph], meter: Meter, bound: float) -> set[tuple[str, str]]:
    found = search(
        whole_stages(stages, {}), meter, lambda group: split(stages[group.stage], group), bound=bound
    )
    assert found.loss <= bound
    return {(stage, name) for stage, names in found.choice.items() for name in names}


@pytest.mark.parametrize(
    ("bound", "kept"),
    [
        (1.0, 0),
        (0.05, 1),  # the rest loses 0.0412
        (0.02, 2),
        (0.002, 3),  # the rest loses 0.0012
        (0.0008, 4),
        (0.0, 9),
    ],
)
def test_the_smallest_set_is_found_for_any_bound(
    stages: dict[str, graphs.Graph], bound: float, kept: int
) -> None:
    best = {key for key, _ in sorted(LOSSES.items(), key=lambda item: -item[1])[:kept]}
    assert find(stages, Meter(LOSSES), bound) == best


def test_the_result_cannot_be_made_smaller_where_losses_do_not_add_up(
    stages: dict[str, graphs.Graph],
) -> None:
    """Two operators harm only together: keeping either of them is enough."""
    pair = {("backbone", "/blocks.0/attn/Softmax"), ("roi", "/fc/Gemm")}

    def loss(choice: Mapping[str, frozenset[str]]) -> float:
        return 0.0 if any(name in choice.get(stage, ()) for stage, name in pair) else 0.1

    found = search(
        whole_stages(stages, {}), loss, lambda group: split(stages[group.stage], group), bound=0.002
    )
    kept = {(stage, name) for stage, names in found.choice.items() for name in names}
    assert len(kept) == 1
    assert kept < pair


def test_the_search_is_deterministic(stages: dict[str, graphs.Graph]) -> None:
    first, second = Meter(LOSSES), Meter(LOSSES)
    find(stages, first, 0.002)
    find(stages, second, 0.002)
    assert first.asked == second.asked


def test_it_takes_fewer_measurements_than_there_are_sets(stages: dict[str, graphs.Graph]) -> None:
    meter = Meter(LOSSES)
    find(stages, meter, 0.002)
    assert len(set(meter.asked)) < 40  # of 512


def test_a_bound_that_even_float32_does_not_keep_is_said(stages: dict[str, graphs.Graph]) -> None:
    with pytest.raises(NotReachable) as caught:
        search(whole_stages(stages, {}), lambda _: 0.01, lambda group: [group], bound=0.002)
    assert caught.value.loss == 0.01


def test_a_loss_that_float32_has_too_splits_no_group(stages: dict[str, graphs.Graph]) -> None:
    """The OM's kernels differ from ONNX Runtime's in every mode: that is no group's fault."""
    exact, meter = Meter(LOSSES), Meter(LOSSES)
    found = find(stages, exact, 0.01)
    shifted = search(
        whole_stages(stages, {}),
        lambda choice: meter(choice) + 0.005,
        lambda group: split(stages[group.stage], group),
        bound=0.015,
    )
    assert meter.asked == exact.asked
    assert {(stage, name) for stage, names in shifted.choice.items() for name in names} == found


@pytest.mark.parametrize(
    ("loss", "advice", "found"),
    [(0.00104, {"BOUND": "0.0011"}, "0.0010"), (math.inf, {}, "atc refuses float32 there")],
)
def test_where_no_set_is_enough_the_smallest_bound_is_named(
    stages: dict[str, graphs.Graph], tmp_path: Path, loss: float, advice: dict[str, str], found: str
) -> None:
    known = [types.SimpleNamespace(name=name, keep_fp32=()) for name in stages]
    evaluator: Any = types.SimpleNamespace(
        meta=types.SimpleNamespace(stages=known),
        inputs=types.SimpleNamespace(names=("a.jpg", "b.jpg")),
        reference={"bbox": 0.5},
        seconds=[],
        measure=lambda *_: {"AP": {"bbox": 0.5}, "loss": loss},
    )
    with pytest.raises(NotWithin) as caught:
        run(evaluator, stages, "fp16", 0.0002, tmp_path)
    assert (caught.value.advice, caught.value.found) == (advice, found)
    content = json.loads((tmp_path / RESULT).read_text())
    assert (content["pictures"], len(content["modes"])) == (2, len(SWEEP))


def test_of_equally_harmful_groups_the_dearer_one_is_freed() -> None:
    groups = [
        Group(stage="a", name=name, nodes=frozenset({name}), weight=(weight, 0))
        for name, weight in (("x", 1), ("y", 100), ("z", 10))
    ]

    def loss(choice: Mapping[str, frozenset[str]]) -> float:
        return 0.001 * (3 - len(choice.get("a", ())))

    found = search(groups, loss, lambda group: [group], bound=0.002)
    assert [group.name for group in found.groups] == ["x"]


def test_nodes_that_are_always_kept_are_not_searched(stages: dict[str, graphs.Graph]) -> None:
    groups = whole_stages(stages, {"roi": ["/RoiAlign"]})
    assert union(groups)["roi"] == {"/fc/Gemm"}


def test_a_stage_splits_into_modules_and_a_module_into_operators(stages: dict[str, graphs.Graph]) -> None:
    backbone = next(group for group in whole_stages(stages, {}) if group.stage == "backbone")
    blocks = split(stages["backbone"], backbone)
    assert [group.name for group in blocks] == ["/blocks.0", "/blocks.1"]
    parts = split(stages["backbone"], blocks[0])
    assert [group.name for group in parts] == ["/blocks.0/attn", "/blocks.0/mlp"]
    operators = split(stages["backbone"], parts[0])
    assert [group.name for group in operators] == ["/blocks.0/attn Relu", "/blocks.0/attn Softmax"]
    assert split(stages["backbone"], operators[0]) == operators[:1]


# -- remembering --


def test_an_interrupted_search_continues_where_it_was(
    tmp_path: Path, stages: dict[str, graphs.Graph]
) -> None:
    file = tmp_path / "measured.jsonl"
    counted = []

    def measured(limit: int) -> list[Group]:
        memory, meter = Memory(file), Meter(LOSSES)

        def loss(choice: Mapping[str, frozenset[str]]) -> float:
            def now() -> dict[str, float]:
                if len(counted) == limit:
                    raise KeyboardInterrupt
                counted.append(choice)
                return {"loss": meter(choice)}

            what = {"keep": {stage: sorted(names) for stage, names in choice.items()}}
            return float(memory.recall(what, now)["loss"])

        return search(
            whole_stages(stages, {}), loss, lambda one: split(stages[one.stage], one), bound=0.002
        ).groups

    whole = measured(1000)
    total = len(counted)
    file.unlink()
    counted.clear()
    with pytest.raises(KeyboardInterrupt):
        measured(7)
    with file.open("a", encoding="utf-8") as opened:
        opened.write('{"digest": "half a li')  # the process was killed while it wrote
    assert measured(1000) == whole
    assert len(counted) == total


def test_a_measurement_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "measured.jsonl")
    assert memory.recall({"mode": "fp16", "keep": []}, lambda: {"loss": 1})["loss"] == 1
    assert memory.recall({"keep": [], "mode": "fp16"}, lambda: {"loss": 2})["loss"] == 1
    assert memory.recall({"mode": "fp16", "keep": ["a"]}, lambda: {"loss": 2})["loss"] == 2
    assert len((tmp_path / "measured.jsonl").read_text().splitlines()) == 2


def test_each_measurement_is_a_line_of_json(tmp_path: Path) -> None:
    Memory(tmp_path / "m").recall({"mode": "fp16"}, lambda: {"AP": {"bbox": 0.5}})
    row = json.loads((tmp_path / "m").read_text())
    assert (row["mode"], row["AP"]) == ("fp16", {"bbox": 0.5})


# -- files and cost --


def test_the_file_for_atc_has_a_node_in_each_line() -> None:
    assert keep_file({"/b/Conv", "/a/Softmax"}) == "/a/Softmax\n/b/Conv\n"


def test_the_time_left_is_that_of_the_remaining_measurements() -> None:
    assert time_left([], 3) == "?"
    assert time_left([1.0, 100.0, 2.0], 90) == "0:03:00"


def test_the_cost_counts_multiply_adds_and_bytes(tmp_path: Path) -> None:
    """A convolution of 3x3 over 4 to 8 channels at 10x10, then a matrix product of 8x100 by 100x6."""
    infos = {
        "picture": [1, 4, 10, 10],
        "made": [1, 8, 100],
        "out": [1, 8, 6],
    }
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in infos.items()
    }
    nodes = [
        helper.make_node("Conv", ["picture", "weight"], ["features"], name="/conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["features", "shape"], ["made"], name="/Reshape"),
        helper.make_node("MatMul", ["made", "matrix"], ["out"], name="/fc/MatMul"),
    ]
    constants = [
        helper.make_tensor("weight", TensorProto.FLOAT, [8, 4, 3, 3], [0.0] * 288),
        helper.make_tensor("shape", TensorProto.INT64, [3], [1, 8, 100]),
        helper.make_tensor("matrix", TensorProto.FLOAT, [100, 6], [0.0] * 600),
    ]
    body = helper.make_graph(nodes, "g", [values["picture"]], [values["out"]], constants)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "a.onnx")
    graph = graphs.read(tmp_path / "a.onnx")
    assert [node.name for node in graph.nodes] == ["/conv/Conv", "/fc/MatMul"]
    assert [node.multiply_adds for node in graph.nodes] == [800 * 36, 48 * 100]
    assert graph.by_name["/fc/MatMul"].producers == ("/conv/Conv",)  # through the Reshape
    found = cost({"a": graph}, {"a": frozenset({"/fc/MatMul"})})
    assert (found.nodes, found.of) == (1, 2)
    assert found.multiply_adds == pytest.approx(4800 / (28800 + 4800))
    assert found.bytes == pytest.approx((800 + 48) / (400 + 800 + 800 + 48))
    assert found.compute == pytest.approx(1 + 3 * found.multiply_adds)
    assert found.memory == pytest.approx(1 + found.bytes)
