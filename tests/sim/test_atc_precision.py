"""The data types of ATC's precision modes on a chain of white, grey and black operators, and what they compute."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from atc_graphs import by_name, dtype_of, floats, graph, lowered, node, reference, run
from cann_sim.atc.errors import AtcError, block
from cann_sim.atc.lowering import Lowered
from cann_sim.atc.precision import Precision
from onnx import TensorProto

NODES = ("shifted", "product", "active", "power", "after", "second", "y")


@cache
def chain() -> onnx.ModelProto:
    """Return grey, white, grey, black, grey, white, grey."""
    return graph(
        [
            node("Add", "x bias", "shifted"),
            node("MatMul", "shifted w", "product"),
            node("Relu", "product", "active"),
            node("Pow", "active two", "power"),
            node("Add", "power bias", "after"),
            node("MatMul", "after w", "second"),
            node("Relu", "second", "y"),
        ],
        {"x": (4, 8)},
        "y",
        bias=floats(8),
        w=floats(8, 8),
        two=2.0,
    )


def types(found: Lowered) -> str:
    """Return a letter for the data type of each of the chain's nodes: half, single, bfloat16."""
    letters = {"float16": "h", "float32": "s", "bfloat16": "b"}
    return "".join(letters[dtype_of(found, name)] for name in NODES)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("force_fp16", "hhhhhhh"),
        ("fp16", "hhhhhhh"),
        ("force_fp32", "sssssss"),
        ("must_keep_origin_dtype", "sssssss"),
        ("origin", "sssssss"),
        ("cube_fp16in_fp32out", "sssssss"),
        ("allow_fp32_to_fp16", "shsssh" + "s"),
        ("allow_mix_precision", "shhsshh"),
        ("allow_mix_precision_fp16", "shhsshh"),
        ("mixed_float16", "shhsshh"),
        ("mixed_bfloat16", "sbbssbb"),
        ("allow_mix_precision_bf16", "sbbssbb"),
    ],
)
def test_each_mode_gives_each_operator_its_type(mode: str, expected: str) -> None:
    found = lowered(chain(), mode)
    assert types(found) == expected
    assert [value.dtype for value in (*found.program.inputs, *found.program.outputs)] == ["float32"] * 2


def test_force_fp16_is_the_default() -> None:
    assert Precision().canonical == "force_fp16"
    with pytest.raises(ValueError, match="no precision mode"):
        Precision(mode="half")


def test_cube_fp16in_fp32out_feeds_the_cube_in_half_and_takes_single(tmp_path: Path) -> None:
    found = lowered(chain(), "cube_fp16in_fp32out")
    finding = by_name(found)["product"]
    assert (finding.inputs, finding.outputs) == (("float16", "float16"), ("float32",))
    feeds = {"x": floats(4, 8)}
    np.testing.assert_allclose(
        run(found, tmp_path, feeds)[0], reference(chain(), feeds)[0], rtol=1e-2, atol=0.2
    )


def test_a_program_in_origin_equals_the_graph_and_in_half_differs_by_its_rounding(tmp_path: Path) -> None:
    feeds = {"x": floats(4, 8)}
    expected = reference(chain(), feeds)[0]
    (exact,) = run(lowered(chain()), tmp_path, feeds)
    (half,) = run(lowered(chain(), "force_fp16"), tmp_path, feeds)
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-4)
    assert 0 < np.abs(half - expected).max() < 5e-3 * np.abs(expected).max()


def test_a_chain_in_half_rounds_after_each_operator_as_numpy_does(tmp_path: Path) -> None:
    model = graph([node("Mul", "x w", "a"), node("Add", "a w", "y")], {"x": (256,)}, "y", w=floats(256))
    x, w = floats(256), onnx.numpy_helper.to_array(model.graph.initializer[0])
    half = np.float16
    expected = (x.astype(half) * w.astype(half) + w.astype(half)).astype(np.float32)
    np.testing.assert_array_equal(run(lowered(model, "force_fp16"), tmp_path, {"x": x})[0], expected)


def test_bfloat16_constants_and_values_round_to_bfloat16(tmp_path: Path) -> None:
    found = lowered(chain(), "mixed_bfloat16")
    assert found.constants["w@bfloat16"].dtype == ml_dtypes.bfloat16
    feeds = {"x": floats(4, 8)}
    np.testing.assert_allclose(run(found, tmp_path, feeds)[0], reference(chain(), feeds)[0], rtol=0.1, atol=3)


def test_a_grey_operator_between_half_and_single_is_single_and_names_who_started_it() -> None:
    """One value in float32 makes what follows float32: cos and sin of a rotation do so to an attention."""
    model = graph(
        [
            node("MatMul", "x w", "half"),
            node("Pow", "half two", "black"),
            node("Mul", "half black", "mixed"),
            node("Sigmoid", "mixed", "grey"),
            node("MatMul", "grey w", "white"),
            node("Sigmoid", "white", "y"),
        ],
        {"x": (4, 8)},
        "y",
        w=floats(8, 8),
        two=2.0,
    )
    found = by_name(lowered(model, "allow_mix_precision"))
    assert {name: found[name].outputs[0] for name in ("half", "black", "mixed", "grey", "white", "y")} == {
        "half": "float16", "black": "float32", "mixed": "float32", "grey": "float32", "white": "float16",
        "y": "float16",
    }  # fmt: skip
    assert [found[name].started_by for name in ("half", "black", "mixed", "grey", "white")] == [
        "", "black", "black", "black", "",
    ]  # fmt: skip
    assert "black list" in found["black"].reason


def test_an_island_at_the_input_is_named_after_it() -> None:
    found = by_name(lowered(chain(), "allow_mix_precision"))
    assert found["shifted"].started_by == "x"


def test_views_carry_the_type_through() -> None:
    model = graph(
        [
            node("MatMul", "x w", "p"),
            node("Reshape", "p shape", "r"),
            node("Transpose", "r", "y", perm=[1, 0]),
        ],
        {"x": (4, 8)},
        "y",
        w=floats(8, 8),
        shape=np.array([8, 4]),
    )
    found = lowered(model, "allow_mix_precision")
    assert [dtype_of(found, name) for name in "pry"] == ["float16"] * 3
    assert by_name(found)["r"].engine == "Host"


def test_each_value_is_cast_once_and_never_up_and_down_again() -> None:
    model = graph(
        [
            node("MatMul", "x w", "a"),
            node("MatMul", "x w", "b"),
            node("Cast", "a", "wide", to=TensorProto.FLOAT),
            node("MatMul", "wide b", "y"),
        ],
        {"x": (8, 8)},
        "y",
        w=floats(8, 8),
    )
    program = lowered(model, "allow_mix_precision").program
    casts = [operation for operation in program.operations if operation.operator == "Cast"]
    assert [operation.inputs[0] for operation in casts if operation.outputs[0] != "wide"] == [
        "x",
        "y@float16",
    ]
    (last,) = [operation for operation in program.operations if operation.name == "y"]
    assert last.inputs == ("a", "b"), "the cast up and down again is left out"


@pytest.mark.parametrize("kept", ["product", "OpType::MatMulV2", "OpType::MatMul"])
def test_keep_dtype_takes_names_and_types(kept: str) -> None:
    found = lowered(chain(), "force_fp16", keep_dtype=frozenset((kept,)))
    assert dtype_of(found, "product") == "float32"
    assert by_name(found)["product"].started_by == "product"
    assert dtype_of(found, "second") == ("float16" if kept == "product" else "float32")
    assert dtype_of(found, "active") == "float16"


def test_customize_dtypes_wins_over_keep_dtype_and_the_mode() -> None:
    custom = {"product": (("float16", "float16"), ("float16",)), "OpType::Pow": (("float32",), ("float32",))}
    found = lowered(chain(), "force_fp16", keep_dtype=frozenset(("product",)), customize_dtypes=custom)
    assert dtype_of(found, "product") == "float16"
    assert dtype_of(found, "power") == "float32"


def test_customize_dtypes_that_no_kernel_has_are_refused() -> None:
    custom = {"product": (("int32", "int32"), ("int32",))}
    with pytest.raises(AtcError, match="product") as caught:
        lowered(chain(), customize_dtypes=custom)
    assert caught.value.code == "EZ3002"


@pytest.mark.parametrize(
    ("mixlist", "expected"),
    [
        ({"black-list": {"to-remove": ("Pow",)}}, "shhhhhh"),
        ({"black-list": {"to-remove": ("Pow",)}, "white-list": {"to-add": ("Pow",)}}, "shhhhhh"),
        ({"white-list": {"to-remove": ("MatMulV2",)}}, "sssssss"),
        ({"black-list": {"to-add": ("Relu",)}}, "shsssh" + "s"),
        ({"white-list": {"to-add": ("Add",)}}, "hhhshhh"),
    ],
)
def test_modify_mixlist_moves_operators_between_the_lists(
    mixlist: dict[str, dict[str, tuple[str, ...]]], expected: str
) -> None:
    assert types(lowered(chain(), "allow_mix_precision", mixlist=mixlist)) == expected


def test_inputs_and_outputs_can_be_half(tmp_path: Path) -> None:
    found = lowered(chain(), "force_fp16", fp16_inputs=frozenset("x"), output_type="float16")
    assert [value.dtype for value in (*found.program.inputs, *found.program.outputs)] == ["float16"] * 2
    assert [value.name for value in found.program.outputs] == ["y"]
    assert not [operation for operation in found.program.operations if operation.operator == "Cast"]
    named = lowered(chain(), "force_fp16", output_type={"y:0": "float16"})
    assert named.program.outputs[0].dtype == "float16"
    feeds = {"x": floats(4, 8)}
    assert run(found, tmp_path, feeds)[0].dtype == np.float16


def test_features_and_rois_of_roi_align_have_one_type() -> None:
    """In force_fp16 a box beyond 1,024 pixels is rounded to whole pixels, and to 2 beyond 2,048."""
    model = graph(
        [node("RoiAlign", "features rois index", "y", output_height=7, output_width=7)],
        {"features": (1, 4, 16, 16), "rois": (3, 4)},
        "y",
        index=np.zeros(3, np.int64),
    )
    assert by_name(lowered(model, "force_fp16"))["y"].inputs[:2] == ("float16", "float16")
    kept = by_name(lowered(model, "force_fp16", keep_dtype=frozenset("y")))["y"]
    assert kept.inputs[:2] == ("float32", "float32")


def test_parameters_that_a_kernel_takes_in_single_stay_single(tmp_path: Path) -> None:
    """BNInfer has its scale, shift, mean and variance in float32 beside half features."""
    constants = {name: np.abs(floats(4)) + 0.5 for name in ("scale", "shift", "mean", "variance")}
    model = graph(
        [node("BatchNormalization", "x scale shift mean variance", "y")],
        {"x": (1, 4, 3, 3)},
        "y",
        **constants,
    )
    found = lowered(model, "force_fp16")
    assert by_name(found)["y"].inputs == ("float16",) + ("float32",) * 4
    feeds = {"x": floats(1, 4, 3, 3)}
    np.testing.assert_allclose(
        run(found, tmp_path, feeds)[0], reference(model, feeds)[0], rtol=1e-2, atol=1e-2
    )


def convolution() -> onnx.ModelProto:
    return graph(
        [node("Conv", "x w", "c"), node("Relu", "c", "y")], {"x": (1, 3, 4, 4)}, "y", w=floats(2, 3, 1, 1)
    )


def test_convolutions_of_310p_are_half_in_every_mode_and_refused_in_origin() -> None:
    for mode in ("force_fp16", "force_fp32", "allow_mix_precision", "allow_fp32_to_fp16"):
        assert dtype_of(lowered(convolution(), mode, "310P"), "c") == "float16", mode
    with pytest.raises(AtcError, match="Conv2D") as caught:
        lowered(convolution(), "origin", "310P")
    assert caught.value.code == "EZ3003"
    assert "force_fp16 takes" in block(caught.value)
    assert dtype_of(lowered(convolution(), "origin", "910B"), "c") == "float32"


@pytest.mark.parametrize("soc", ["310P", "910A"])
def test_bfloat16_is_refused_where_there_is_none(soc: str) -> None:
    with pytest.raises(AtcError, match="bfloat16") as caught:
        lowered(chain(), "mixed_bfloat16", soc)
    assert caught.value.code == "E10001"
    assert types(lowered(chain(), "mixed_bfloat16", "910_93")) == "sbbssbb"


@pytest.mark.parametrize(
    ("soc", "largest"), [("910B", np.inf), ("910_93", np.inf), ("310P", 65504), ("910A", 65504)]
)
def test_large_constants_become_in_half_what_values_become_on_the_soc(soc: str, largest: float) -> None:
    model = graph([node("Mul", "x c", "y")], {"x": (3,)}, "y", c=np.array([1e5, -1e5, 1.0001], np.float32))
    constant = lowered(model, "force_fp16", soc).constants["c@float16"]
    np.testing.assert_array_equal(constant, np.array([largest, -largest, 1.0], np.float16))
