"""ATC's lowering: shapes, folding and fusion, each pattern beside its nearest neighbour, and the values that remain."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from atc_graphs import (
    RANDOM,
    by_name,
    floats,
    gelu,
    graph,
    layer_norm,
    lowered,
    node,
    reference,
    run,
    tanh_gelu,
)
from cann_sim.atc.errors import AtcError
from cann_sim.atc.lowering import fusion_counts
from om_cases import CASES, Case, name_of
from onnx import TensorProto, helper
from test_om_operators import feeds_of, graph_of

# Their shape follows from what is fed; only constants tell it.
DEPENDENT = ("Range",)
# AI Core pools averages in float16 only, and AI CPU has no kernel.
HALF_ONLY = ("AveragePool",)


def feeds_sizes(case: Case) -> bool:
    """Return whether the case feeds scales, from which its shape would follow."""
    floats_behind = any(array is not None and array.dtype == np.float32 for array in case.inputs[1:])
    return case.operator in ("Resize", "Upsample") and floats_behind


TESTED = [
    case for case in CASES if case.operator not in (*DEPENDENT, "NonMaxSuppression") and not feeds_sizes(case)
]


@pytest.mark.parametrize("case", TESTED, ids=name_of)
def test_a_lowered_operator_computes_what_onnx_runtime_computes(case: Case, tmp_path: Path) -> None:
    model, feeds = graph_of(case), feeds_of(case)
    mode = "force_fp16" if case.operator in HALF_ONLY else "origin"
    found = run(lowered(model, mode), tmp_path, feeds, opset=case.opset)
    tolerance = 2e-3 if case.operator in HALF_ONLY else max(case.tolerance, 1e-4)
    for ours, theirs in zip(found, reference(model, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_what_follows_from_shapes_is_folded_away(tmp_path: Path) -> None:
    """Shape, Gather, Concat and arithmetic on sizes leave a Reshape with a constant."""
    model = graph(
        [
            node("Shape", "x", "sizes"),
            node("Gather", "sizes zero", "batch"),
            node("Unsqueeze", "batch first", "batch1"),
            node("Mul", "batch1 three", "rows"),
            node("Concat", "rows rest", "target", axis=0),
            node("Reshape", "x target", "y"),
        ],
        {"x": (2, 3, 4)},
        "y",
        zero=np.int64(0),
        first=np.array([0]),
        three=np.array([3]),
        rest=np.array([-1]),
    )
    found = lowered(model)
    assert [operation.operator for operation in found.program.operations] == ["Reshape"]
    assert found.constants["target"].tolist() == [6, -1]
    assert found.program.outputs[0].shape == (6, 4)
    feeds = {"x": floats(2, 3, 4)}
    np.testing.assert_array_equal(run(found, tmp_path, feeds)[0], feeds["x"].reshape(6, 4))


def test_weights_are_views_of_the_model_until_their_type_changes() -> None:
    model = graph([node("MatMul", "x w", "y")], {"x": (2, 512)}, "y", w=floats(512, 512))
    kept = lowered(model).constants["w"]
    assert not kept.flags.owndata
    assert lowered(model, "force_fp16").constants["w@float16"].dtype == np.float16


def test_a_constant_in_two_types_is_stored_in_both() -> None:
    model = graph(
        [
            node("MatMul", "x w", "a"),
            node("Add", "a w", "b"),
            node("Pow", "w two", "p"),
            node("Add", "b p", "y"),
        ],
        {"x": (4, 4)},
        "y",
        w=floats(4, 4),
        two=2.0,
    )
    found = lowered(model, "force_fp16", keep_dtype=frozenset(("b",)))
    assert {"w", "w@float16"} <= set(found.constants)
    assert "p@float16" in found.constants, "a power of constants is folded before precision"


def test_a_shape_that_depends_on_values_is_refused_by_name() -> None:
    model = graph([node("NonZero", "x", "places"), node("Gather", "x places", "y")], {"x": (4,)}, "y")
    with pytest.raises(AtcError, match=r"places \(NonZero\) depends on values") as caught:
        lowered(model)
    assert caught.value.code == "SIM001"


def test_inputs_that_do_not_fit_are_refused_with_the_node() -> None:
    model = graph([node("MatMul", "x w", "product")], {"x": (2, 3)}, "product", w=floats(4, 5))
    with pytest.raises(AtcError, match="product") as caught:
        lowered(model)
    assert caught.value.code == "E14001"


def test_an_output_that_is_an_input_or_a_constant_is_copied(tmp_path: Path) -> None:
    model = graph([node("Add", "c c", "sum"), node("Relu", "x", "y")], {"x": (2, 2)}, "x sum y", c=floats(2))
    found = lowered(model, "force_fp16")
    feeds = {"x": floats(2, 2)}
    for ours, theirs in zip(run(found, tmp_path, feeds), reference(model, feeds), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_roi_extractor_has_the_shape_of_its_pooled_boxes() -> None:
    extract = helper.make_node(
        "RoiExtractor", ["p2", "p3", "rois"], ["y"], name="y", finest_scale=56, roi_scale_factor=0.0,
        spatial_scale=[0.25, 0.125], pooled_height=7, pooled_width=7, sample_num=0, pool_mode="avg", aligned=1,
    )  # fmt: skip
    inputs = {"p2": (2, 16, 32, 32), "p3": (2, 16, 16, 16), "rois": (10, 5)}
    found = lowered(graph([extract], inputs, "y", opset=16), "force_fp16")
    assert found.program.outputs[0].shape == (10, 16, 7, 7)
    assert by_name(found)["y"].kernel == "RoiExtractor"
    assert by_name(found)["y"].inputs == ("float16",) * 3, "features and RoIs have one type on AI Core"


def test_flash_attention_gives_one_output_in_the_type_of_the_query() -> None:
    """The kernel's fourth output: the node has only that."""
    attend = node("NPUFlashAttention", "q k v bias", "y", head_num=2, input_layout="BSH", scale_value=0.5)
    shape = (1, 6, 32)
    model = graph([attend], {"q": shape, "k": shape, "v": shape, "bias": (1, 2, 6, 6)}, "y")
    for mode, dtype in (("force_fp16", "float16"), ("origin", "float32")):
        found = lowered(model, mode)
        assert by_name(found)["y"].kernel == "FlashAttentionScore"
        assert by_name(found)["y"].inputs == (dtype,) * 4
        assert by_name(found)["y"].outputs == (dtype,)
        assert found.program.outputs[0].shape == shape


# ---- LayerNorm ----


def test_pytorchs_layer_norm_becomes_one_kernel_on_a2_and_says_that_this_is_uncertain(tmp_path: Path) -> None:
    model = layer_norm()
    found = lowered(model)
    assert [operation.kernel for operation in found.program.operations] == ["LayerNorm"]
    assert fusion_counts(found.findings) == {"LayerNormONNXFusionPass": 1}
    (site,) = found.sites
    assert (site.kind, site.fused_by, site.uncertain) == ("LayerNorm", "LayerNormONNXFusionPass", True)
    assert sum(finding.fused_into == "y" for finding in found.findings) == 8
    feeds = {"x": floats(2, 4, 8)}
    np.testing.assert_allclose(
        run(found, tmp_path, feeds, 16)[0], reference(model, feeds)[0], rtol=1e-4, atol=1e-5
    )


def test_epsilon_with_one_dimension_is_the_documented_pass() -> None:
    found = lowered(layer_norm(epsilon=np.array([1e-6], np.float32)))
    assert fusion_counts(found.findings) == {"LayerNormFusionPass": 1}
    assert not found.sites[0].uncertain


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"axes": [1]}, "over axis 1 of 3"),
        ({"axes": [1], "epsilon": np.array([1e-6], np.float32)}, "over axis 1 of 3"),
        ({"swapped": True}, "subtracts the value from its mean"),
        ({"epsilon": 0.1}, "epsilon is 0.1"),
        ({"square": "Mul"}, "its square is a multiplication"),
        ({"affine": False}, "scale and shift are missing"),
    ],
    ids=[
        "over channels",
        "over channels, wide epsilon",
        "swapped",
        "large epsilon",
        "squared by Mul",
        "not affine",
    ],
)
def test_a_neighbour_of_layer_norm_stays_in_pieces_and_says_why(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = layer_norm(**changes)
    found = lowered(model)
    (site,) = found.sites
    assert not site.fused_by
    assert reason in site.reason
    assert fusion_counts(found.findings) == {}
    feeds = {"x": floats(2, 4, 8)}
    np.testing.assert_allclose(
        run(found, tmp_path, feeds, 16)[0], reference(model, feeds)[0], rtol=1e-3, atol=1e-4
    )


def test_a_value_from_the_middle_of_a_layer_norm_keeps_it_in_pieces() -> None:
    model = layer_norm()
    model.graph.output.append(helper.make_empty_tensor_value_info("root"))
    (site,) = lowered(model).sites
    assert not site.fused_by
    assert "from its middle" in site.reason


@pytest.mark.parametrize("soc", ["310P", "910A"])
def test_a_decomposed_layer_norm_stays_in_pieces_on_older_socs_where_opset_17_has_a_kernel(soc: str) -> None:
    (site,) = lowered(layer_norm(), soc=soc).sites
    assert not site.fused_by
    assert "opset 17" in site.reason
    native = graph(
        [node("LayerNormalization", "x gamma beta", "y")], {"x": (2, 8)}, "y", gamma=floats(8), beta=floats(8)
    )
    found = lowered(native, soc=soc)
    assert by_name(found)["y"].kernel == "LayerNorm"
    assert found.sites[0].fused_by == "LayerNormalization"


@pytest.mark.parametrize("off", ["ALL", "LayerNormONNXFusionPass"])
def test_the_switch_file_keeps_a_pass_from_fusing(off: str) -> None:
    found = lowered(layer_norm(), fusion_off=frozenset((off,)))
    assert fusion_counts(found.findings) == {}
    assert "--fusion_switch_file" in found.sites[0].reason


# ---- GELU ----


def test_the_erf_form_becomes_the_tanh_kernel_which_differs_by_less_than_5e_4(tmp_path: Path) -> None:
    model = gelu()
    found = lowered(model)
    assert [operation.kernel for operation in found.program.operations] == ["Gelu"]
    assert fusion_counts(found.findings) == {"GeluONNXFusionPass": 1}
    assert found.sites[0].uncertain
    feeds = {"x": np.linspace(-4, 4, 128, dtype=np.float32).reshape(2, 64)}
    difference = np.abs(run(found, tmp_path, feeds)[0] - reference(model, feeds)[0]).max()
    assert 4e-4 < difference < 5e-4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"divisor": 1.5}, "divides by 1.5"),
        ({"half": 0.25}, "does not end in a multiplication by 0.5"),
        ({"half_first": True}, "halves x before"),
    ],
    ids=["divisor", "half", "half first"],
)
def test_a_neighbour_of_the_erf_form_keeps_its_erf(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = gelu(**changes)
    found = lowered(model)
    assert not found.sites[0].fused_by
    assert reason in found.sites[0].reason
    feeds = {"x": floats(2, 64)}
    np.testing.assert_allclose(
        run(found, tmp_path, feeds)[0], reference(model, feeds)[0], rtol=1e-4, atol=1e-5
    )


def test_the_tanh_form_fuses_with_a_power_and_not_as_pytorch_writes_it(tmp_path: Path) -> None:
    fused, plain = lowered(tanh_gelu()), lowered(tanh_gelu(cube="Mul"))
    assert fusion_counts(fused.findings) == {"GeluFusionPass": 1}
    assert not fused.sites[0].uncertain
    assert fusion_counts(plain.findings) == {}
    feeds = {"x": floats(2, 64)}
    expected = reference(tanh_gelu(), feeds)[0]
    for found in (fused, plain):
        np.testing.assert_allclose(run(found, tmp_path, feeds)[0], expected, rtol=1e-4, atol=1e-5)


def test_no_gelu_fuses_on_310p() -> None:
    assert fusion_counts(lowered(gelu(), soc="310P").findings) == {}


# ---- what PyTorch's exporter writes ----


class Block(torch.nn.Module):
    """The parts of a transformer's block that fuse."""

    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(16)
        self.linear = torch.nn.Linear(16, 32)
        self.gelu = torch.nn.GELU(approximate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gelu(self.linear(self.norm(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("opset", "approximate", "expected"),
    [
        (16, "none", {"LayerNormONNXFusionPass": 1, "GeluONNXFusionPass": 1}),
        (17, "none", {"GeluONNXFusionPass": 1}),
        (17, "tanh", {}),
    ],
)
def test_what_pytorch_exports_fuses_as_its_forms_do(
    opset: int, approximate: str, expected: dict[str, int], tmp_path: Path
) -> None:
    block, x = Block(approximate).eval(), torch.randn(2, 5, 16)
    buffer = io.BytesIO()
    torch.onnx.export(block, (x,), buffer, opset_version=opset, dynamo=False, input_names=["x"])
    model = onnx.load_from_string(buffer.getvalue())
    found = lowered(model)
    assert fusion_counts(found.findings) == expected
    assert [site.kind for site in found.sites] == ["LayerNorm", "Gelu"]
    with torch.no_grad():
        wanted = block(x).numpy()
    np.testing.assert_allclose(run(found, tmp_path, {"x": x.numpy()}, opset)[0], wanted, atol=1e-3)


# ---- convolutions ----


def test_batch_norm_is_folded_into_the_convolution_before_it(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c scale shift mean variance", "n"),
        node("Relu", "n", "y"),
    ]
    constants = {
        "w": floats(4, 3, 3, 3), "scale": floats(4), "shift": floats(4), "mean": floats(4),
        "variance": np.abs(floats(4)) + 0.5,
    }  # fmt: skip
    model = graph(nodes, {"x": (1, 3, 8, 8)}, "y", **constants)
    found = lowered(model)
    assert [operation.kernel for operation in found.program.operations] == ["Conv2D", "Relu"]
    counts = fusion_counts(found.findings)
    assert counts == {"ConvBatchnormFusionPass": 1, "TbeConvCommonRules0FusionPass": 1}
    feeds = {"x": floats(1, 3, 8, 8)}
    np.testing.assert_allclose(
        run(found, tmp_path, feeds)[0], reference(model, feeds)[0], rtol=1e-4, atol=1e-4
    )
    off = lowered(model, fusion_off=frozenset(("ConvBatchnormFusionPass",)))
    assert [operation.kernel for operation in off.program.operations] == ["Conv2D", "BNInfer", "Relu"]


def test_a_convolution_that_others_use_keeps_its_batch_norm() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c scale shift mean variance", "n"),
        node("Add", "c n", "y"),
    ]
    constants = {name: np.abs(floats(4)) + 0.5 for name in ("scale", "shift", "mean", "variance")}
    model = graph(nodes, {"x": (1, 3, 8, 8)}, "y", w=floats(4, 3, 1, 1), **constants)
    assert fusion_counts(lowered(model).findings) == {}


# ---- kernels and engines ----


@pytest.mark.parametrize(
    ("group", "shape", "kernel"),
    [(1, (8, 8, 3, 3), "Conv2D"), (8, (8, 1, 3, 3), "DepthwiseConv2D"), (4, (8, 2, 3, 3), "Conv2D")],
)
def test_a_convolution_is_the_kernel_that_a_card_takes(
    group: int, shape: tuple[int, ...], kernel: str
) -> None:
    model = graph([node("Conv", "x w", "y", group=group)], {"x": (1, 8, 8, 8)}, "y", w=floats(*shape))
    assert by_name(lowered(model))["y"].kernel == kernel


def test_a_product_of_matrices_is_one_kernel_and_of_batches_another() -> None:
    model = graph(
        [
            node("MatMul", "x w", "flat"),
            node("MatMul", "b c", "batched"),
            node("ReduceMean", "flat", "m", axes=[1]),
        ],
        {"x": (2, 3), "b": (4, 2, 3), "c": (4, 3, 2)},
        "m batched",
        w=floats(3, 5),
    )
    kernels = {name: finding.kernel for name, finding in by_name(lowered(model)).items()}
    assert kernels == {"flat": "MatMulV2", "batched": "BatchMatMulV2", "m": "ReduceMeanD"}


def test_an_operator_without_ai_core_kernel_goes_to_ai_cpu_with_a_warning() -> None:
    """ScatterND is TensorScatterUpdate, which AI CPU alone has."""
    model = graph(
        [node("ScatterND", "x places updates", "y")],
        {"x": (4, 3), "updates": (2, 3)},
        "y",
        places=np.array([[0], [2]]),
    )
    finding = by_name(lowered(model, "force_fp16"))["y"]
    assert (finding.engine, finding.warnings) == ("AiCpu", ("W11001",))
    assert finding.inputs == ("float32", "int64", "float32"), "AI CPU computes in the graph's types"


def test_an_operator_without_any_kernel_is_refused() -> None:
    model = graph(
        [node("Mod", "x y", "z")],
        {"x": (4,), "y": (4,)},
        "z",
        types={"x": TensorProto.INT64, "y": TensorProto.INT64},
    )
    with pytest.raises(AtcError, match="z") as caught:
        lowered(model)
    assert caught.value.code == "EZ3003"


def test_a_cubic_resize_has_no_kernel_here() -> None:
    """Its operator has a kernel on Ascend 950 only."""
    resize = node("Resize", "x  scales", "y", mode="cubic")
    resize.input[:] = ["x", "", "scales"]
    model = graph([resize], {"x": (1, 1, 4, 4)}, "y", scales=np.array([1, 1, 2, 2], np.float32))
    with pytest.raises(AtcError, match=r"y \(Resize\)") as caught:
        lowered(model, "force_fp16")
    assert caught.value.code == "EZ3003"


def test_top_k_counts_in_int32_and_a_cast_restores_the_graphs_type(tmp_path: Path) -> None:
    model = graph([node("TopK", "x k", "values places")], {"x": (2, 9)}, "values places", k=np.array([3]))
    found = lowered(model)
    assert by_name(found)["values"].outputs == ("float32", "int32")
    assert [value.dtype for value in found.program.outputs] == ["float32", "int64"]
    feeds = {"x": floats(2, 9)}
    for ours, theirs in zip(run(found, tmp_path, feeds), reference(model, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_non_max_suppression_has_room_for_the_most_boxes_and_fills_up_with_minus_one(tmp_path: Path) -> None:
    model = graph(
        [node("NonMaxSuppression", "boxes scores most overlap", "kept")],
        {"boxes": (1, 20, 4), "scores": (1, 2, 20)},
        "kept",
        most=np.array([5]),
        overlap=np.array([0.3], np.float32),
    )
    corners = RANDOM.uniform(0, 50, (1, 20, 2))
    feeds = {
        "boxes": np.concatenate([corners, corners + 20], -1).astype(np.float32),
        "scores": RANDOM.random((1, 2, 20), np.float32),
    }
    found = lowered(model)
    assert by_name(found)["kept"].kernel == "NonMaxSuppressionV7"
    (ours,), (theirs,) = run(found, tmp_path, feeds), reference(model, feeds)
    assert ours.shape == (10, 3)
    np.testing.assert_array_equal(ours[: len(theirs)], theirs)
    assert (ours[len(theirs) :] == -1).all()
