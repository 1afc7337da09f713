"""The forecast: what a graph will become, where float16 overflows by real values, and how that compares to a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from atc_graphs import floats, gelu, graph, layer_norm, lowered, node
from cann_sim.atc import activations
from cann_sim.atc.activations import collect
from cann_sim.atc.forecast import Comparison, Forecast, compare, forecast, main, text
from cann_sim.atc.kernels import Soc
from cann_sim.atc.precision import Precision
from onnx import numpy_helper

A2 = Soc(name="Ascend910B3", family="910B")


def made(model: onnx.ModelProto, mode: str = "force_fp16", soc: Soc = A2, **options: Any) -> Forecast:
    return forecast(model, "stage", soc=soc, precision=Precision(mode=mode), **options)


def squares() -> onnx.ModelProto:
    """Return a graph whose square overflows float16 from 256 on, as the one in a decomposed LayerNorm."""
    return graph([node("Mul", "x x", "square"), node("Sqrt", "square", "y")], {"x": (4,)}, "y")


def test_the_ranges_are_those_of_all_inputs_together(tmp_path: Path) -> None:
    onnx.save(squares(), tmp_path / "stage.onnx")
    feeds = [{"x": np.array(numbers, np.float32)} for numbers in ([1, 2, 3, 4], [-300, 0, 0, 0])]
    assert collect(tmp_path / "stage.onnx", feeds) == {"x": (-300, 4), "square": (0, 90000), "y": (0, 300)}


def test_the_ranges_of_a_graph_with_external_weights_are_found(tmp_path: Path) -> None:
    weights = np.full((64, 64), 2, np.float32)
    model = graph([node("MatMul", "x w", "y")], {"x": (1, 64)}, "y", w=weights)
    onnx.save(
        model, tmp_path / "stage.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    ranges = collect(tmp_path / "stage.onnx", [{"x": np.ones((1, 64), np.float32)}])
    assert ranges["y"] == (128, 128)


def test_a_value_that_is_no_number_has_an_infinite_range(tmp_path: Path) -> None:
    onnx.save(graph([node("Sqrt", "x", "y")], {"x": (2,)}, "y"), tmp_path / "stage.onnx")
    ranges = collect(tmp_path / "stage.onnx", [{"x": np.array([-1, 4], np.float32)}])
    assert np.isinf(ranges["y"]).any()


def test_no_inputs_and_operators_of_atc_alone_are_errors(tmp_path: Path) -> None:
    onnx.save(squares(), tmp_path / "stage.onnx")
    with pytest.raises(ValueError, match="no inputs are given"):
        collect(tmp_path / "stage.onnx", [])
    onnx.save(graph([node("NPUFastGelu", "x", "y")], {"x": (2,)}, "y"), tmp_path / "own.onnx")
    with pytest.raises(ValueError, match="cannot run"):
        collect(tmp_path / "own.onnx", [{"x": floats(2)}])


@pytest.mark.parametrize(
    ("soc", "becomes"), [(A2, "infinite"), (Soc(name="Ascend310P3", family="310P"), "65504")]
)
def test_values_beyond_half_are_named_with_what_they_become(soc: Soc, becomes: str) -> None:
    ranges = {"x": (-300.0, 4.0), "square": (0.0, 90000.0), "y": (0.0, 300.0)}
    found = made(squares(), soc=soc, ranges=ranges).overflows
    assert [(each.node, each.value, each.becomes) for each in found] == [("square", "square", becomes)]
    assert made(squares(), "origin", soc, ranges=ranges).overflows == ()


def test_values_near_the_end_of_half_are_named_as_close() -> None:
    found = made(squares(), ranges={"square": (0.0, 40000.0), "y": (0.0, 200.0)}).overflows
    assert [(each.value, each.becomes) for each in found] == [("square", "close")]
    assert made(squares(), ranges={"square": (0.0, 32000.0)}).overflows == ()


def test_constants_that_half_cannot_hold_are_named_without_activations() -> None:
    """A mask of -1e9 becomes minus infinity, and an epsilon of 1e-8 becomes 0."""
    model = graph(
        [node("Add", "x mask", "masked"), node("Add", "masked epsilon", "y")],
        {"x": (4,)},
        "y",
        mask=np.array([0, 0, -1e9, 0], np.float32),
        epsilon=1e-8,
    )
    found = made(model)
    assert {(each.value, each.becomes) for each in found.overflows} == {
        ("mask", "infinite"),
        ("epsilon", "zero"),
    }
    assert not found.activations_known
    assert made(model, "origin").overflows == ()
    cut = made(model, soc=Soc(name="Ascend310P3", family="310P")).overflows
    assert {(each.value, each.becomes) for each in cut} == {("mask", "65504"), ("epsilon", "zero")}


def test_islands_are_named_after_their_start_and_the_largest_comes_first() -> None:
    model = graph(
        [
            node("MatMul", "x w", "a"),
            node("Pow", "a two", "black"),
            node("Add", "black w", "b"),
            node("Sigmoid", "b", "c"),
            node("MatMul", "c w", "d"),
            node("ReduceMean", "d", "y", axes=[1]),
        ],
        {"x": (4, 4)},
        "y",
        w=floats(4, 4),
        two=2.0,
    )
    first, second = made(model, "allow_mix_precision").islands
    assert (first.start, first.nodes) == ("black", ("black", "b", "c"))
    assert "black list" in first.reason
    assert second.nodes == ("y",)
    assert made(model, "force_fp16").islands == ()


def test_a_decomposed_layer_norm_over_channels_is_reported_with_its_reason() -> None:
    found = text(made(layer_norm(axes=[1])))
    assert "LayerNorm  0 of 1 are one kernel" in found
    assert "1 in pieces, first y: it normalises over axis 1 of 3" in found


def test_uncertain_fusions_are_said_to_be() -> None:
    assert "1 of 1 are one kernel (1 by GeluONNXFusionPass, not certain" in text(made(gelu()))


def test_nodes_on_ai_cpu_are_named_with_their_kernel() -> None:
    model = graph(
        [node("ScatterND", "x places updates", "y")],
        {"x": (4, 3), "updates": (1, 3)},
        "y",
        places=np.array([[0]]),
    )
    found = made(model)
    assert [(name, kernel) for name, kernel, _ in found.ai_cpu] == [("y", "TensorScatterUpdate")]
    assert "y (TensorScatterUpdate)" in text(found)


def test_boxes_in_half_are_a_line_of_their_own() -> None:
    model = graph(
        [node("RoiAlign", "features rois index", "pooled")],
        {"features": (1, 4, 16, 16), "rois": (3, 4)},
        "pooled",
        index=np.zeros(3, np.int64),
    )
    assert made(model).boxes == ("pooled",)
    assert "pooled takes its boxes in float16" in text(made(model))
    assert made(model, "origin").boxes == ()


def result(**times: int) -> Any:
    """Return a fusion_result.json as ATC writes it."""
    passes = {name: {"match_times": str(count), "effect_times": str(count)} for name, count in times.items()}
    return {"session_and_graph_id_0_0": {"graph_fusion": passes, "ub_fusion": {}}}


def test_a_cards_fusions_stand_beside_the_forecast_and_differences_come_first() -> None:
    forecasts = [made(gelu()), made(layer_norm())]
    found = compare(forecasts, result(GeluONNXFusionPass=1, ConstToAttrPass=7))
    assert found == (
        Comparison(name="LayerNormONNXFusionPass", forecast=1, real=0, simulated=True),
        Comparison(name="GeluONNXFusionPass", forecast=1, real=1, simulated=True),
        Comparison(name="ConstToAttrPass", forecast=0, real=7, simulated=False),
    )


@pytest.mark.parametrize("content", [{"graph": 1}, [{"graph_fusion": {"X": 1}}], 3])
def test_another_json_is_no_fusion_result(content: Any) -> None:
    with pytest.raises(ValueError, match="fusion_result"):
        compare([], content)


def test_the_command_prints_stages_with_activations_and_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, model in (("squares", squares()), ("gelu", gelu())):
        onnx.save(model, tmp_path / f"{name}.onnx")
    np.savez(tmp_path / "picture.npz", x=np.array([1, 2, 3, 300], np.float32))
    files = [str(tmp_path / "squares.onnx"), str(tmp_path / "picture.npz")]
    assert activations.main([*files, f"--output={tmp_path / 'ranges.json'}"]) == 0
    (tmp_path / "fusion_result.json").write_text(json.dumps(result(GeluONNXFusionPass=0)))
    stages = [str(tmp_path / f"{name}.onnx") for name in ("squares", "gelu")]
    options = [f"--activations={tmp_path / 'ranges.json'}", f"--compare={tmp_path / 'fusion_result.json'}"]
    assert main([*stages, *options]) == 0
    shown = capsys.readouterr().out
    assert "square (square) reaches 9e+04: becomes infinite" in shown
    assert "GeluONNXFusionPass                              1     0  differs" in shown
    assert main([*stages, *options, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in content["stages"]] == ["squares", "gelu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--soc=Ascend123"], "E10001"),
        (["--precision-mode=half"], "no precision mode"),
        (["--activations=missing.json"], "missing.json"),
    ],
)
def test_the_command_says_why_it_makes_no_forecast(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(squares(), tmp_path / "squares.onnx")
    assert main([str(tmp_path / "squares.onnx"), *options]) == 1
    assert message in capsys.readouterr().err


def test_a_graph_with_an_open_size_has_no_forecast() -> None:
    model = graph([node("Relu", "x", "y")], {"x": (2, 3)}, "y")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(ValueError, match="input x of stage has no static shape"):
        made(model)


def test_constants_keep_their_originals_for_the_forecast() -> None:
    model = graph([node("MatMul", "x w", "y")], {"x": (2, 4)}, "y", w=floats(4, 4))
    found = lowered(model, "force_fp16")
    np.testing.assert_array_equal(
        found.originals["w@float16"], numpy_helper.to_array(model.graph.initializer[0])
    )
