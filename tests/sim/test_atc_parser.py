"""The ONNX parser's checks of the simulated ATC: each broken graph has the code that the documents give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from atc_models import SOC, command, convolution, model, one_node, save, value, weights
from cann_sim.atc import checks
from cann_sim.atc.__main__ import main
from cann_sim.atc.registry import is_registered
from onnx import TensorProto, helper

X = (1, 3, 8, 8)


def changed(proto: onnx.ModelProto, change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    change(proto)
    return proto


def resize(*inputs: str, opset: int = 17, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node("Resize", list(inputs), ["y"], "node", **attributes)
    scales = weights("scales", np.array([1, 1, 2, 2], np.float32))
    roi = weights("roi", np.zeros(0, np.float32))
    return model([node], [value("x", *X)], [value("y", 1, 3, 16, 16)], scales, roi, opset=opset)


def pool(**attributes: object) -> onnx.ModelProto:
    return one_node("MaxPool", X, **attributes)


def with_shape_of_zero() -> onnx.ModelProto:
    return one_node("Relu", (0, 3))


def with_two_nodes_of_one_name() -> onnx.ModelProto:
    return changed(convolution(), lambda proto: setattr(proto.graph.node[1], "name", "conv"))


def with_a_node_named_as_an_input() -> onnx.ModelProto:
    return changed(convolution(), lambda proto: setattr(proto.graph.node[1], "name", "image"))


def split_into(parts: int, outputs: int) -> onnx.ModelProto:
    return one_node("Split", (4, 8), opset=18, outputs=outputs, num_outputs=parts)


def non_zero(operator: str = "NonZero", count: int = 1) -> onnx.ModelProto:
    return one_node(operator, *[(3, 4)] * count)


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "no graph": (onnx.ModelProto(ir_version=8), "E16004"),
    "no inputs": (changed(convolution(), lambda proto: proto.graph.ClearField("input")), "E16001"),
    "no outputs": (changed(convolution(), lambda proto: proto.graph.ClearField("output")), "E16001"),
    "two operator sets": (
        model([helper.make_node("Relu", ["x"], ["y"])], [value("x", 1)], [value("y", 1)], npu=1),
        "E16005",
    ),
    "the operator set of onnxscript": (
        model([helper.make_node("Relu", ["x"], ["y"])], [value("x", 1)], [value("y", 1)],
              pkg__onnxscript__torch_lib=1),
        "E16005",
    ),
    "no operator set": (changed(convolution(), lambda proto: proto.ClearField("opset_import")), "E16005"),
    "a domain that is not imported": (
        model([helper.make_node("Mine", ["x"], ["y"], domain="mine")], [value("x", 1)], [value("y", 1)]),
        "E19999",
    ),
    "an operator of a domain that nobody knows": (
        changed(
            model([helper.make_node("Mine", ["x"], ["y"], domain="mine")], [value("x", 1)], [value("y", 1)]),
            lambda proto: setattr(proto.opset_import[0], "domain", "mine"),
        ),
        "E13010",
    ),
    "opset 19": (convolution(opset=19), "E13010"),
    "opset 20": (convolution(opset=20), "E13010"),
    "LayerNormalization at 16": (one_node("LayerNormalization", (2, 8), (8,), opset=16), "E13010"),
    "RoiExtractor at 17": (one_node("RoiExtractor", X, (4, 5), opset=17), "E13010"),
    "ReduceL1 at 18": (one_node("ReduceL1", (2, 3), opset=18), "E13010"),
    "GridSample at 15": (one_node("GridSample", X, (1, 8, 8, 2), opset=15), "E13010"),
    "Gelu": (one_node("Gelu", (2, 3), opset=17), "E13010"),
    "GroupNormalization": (one_node("GroupNormalization", X, (3,), (3,), opset=18, num_groups=3), "E13010"),
    "DeformConv": (one_node("DeformConv", X, (3, 3, 3, 3), (1, 18, 6, 6), opset=17), "E13010"),
    "QuantizeLinear": (one_node("QuantizeLinear", (2, 3), (1,)), "E13010"),
    "DeformableConv2D at 17": (one_node("DeformableConv2D", X, X, opset=17), "E13010"),
    "NPUPromptFlashAttention at 17": (one_node("NPUPromptFlashAttention", (1, 8, 8), (1, 8, 8)), "E13010"),
    "two nodes of one name": (with_two_nodes_of_one_name(), "E13009"),
    "a node named as an input": (with_a_node_named_as_an_input(), "E13009"),
    "antialias": (resize("x", "roi", "scales", opset=18, antialias=1, mode="linear"), "E13014"),
    "Resize with axes": (resize("x", "roi", "scales", opset=18, axes=[2, 3], mode="linear"), "E13014"),
    "Resize that keeps the ratio": (
        resize("x", "roi", "scales", opset=18, keep_aspect_ratio_policy="not_larger", mode="linear"),
        "E13014",
    ),
    "Resize with two inputs": (resize("x", "roi", mode="linear"), "E13014"),
    "cubic Resize at 10": (resize("x", "scales", opset=10, mode="cubic"), "E13014"),
    "MaxPool with Indices": (pool(kernel_shape=[2, 2], outputs=2), "E13014"),
    "MaxPool in order of columns": (pool(kernel_shape=[2, 2], storage_order=1), "E13014"),
    "MaxPool without a kernel": (pool(), "E13014"),
    "AveragePool SAME_LOWER": (one_node("AveragePool", X, kernel_shape=[2, 2], auto_pad="SAME_LOWER"), "E13014"),
    "a convolution in 1-D": (one_node("Conv", (1, 3, 8), (4, 3, 3), kernel_shape=[3]), "E13014"),
    "a convolution without attributes": (one_node("Conv", X, (4, 3, 3, 3)), "E13014"),
    "odd pads": (one_node("Conv", X, (4, 3, 3, 3), pads=[1, 1, 1]), "E13014"),
    "a 3-D convolution that pads by itself": (
        one_node("Conv", (1, 3, 4, 4, 4), (4, 3, 3, 3, 3), strides=[1, 1, 1], auto_pad="SAME_UPPER"),
        "E13014",
    ),
    "ConvTranspose without a kernel": (one_node("ConvTranspose", X, (3, 4, 2, 2), strides=[2, 2]), "E13014"),
    "ArgMax of the last": (one_node("ArgMax", (2, 3), select_last_index=1), "E13014"),
    "Clip without limits": (one_node("Clip", (2, 3)), "E13014"),
    "Transpose without perm": (one_node("Transpose", (2, 3)), "E13014"),
    "Concat without axis": (one_node("Concat", (2, 3), (2, 3)), "E13014"),
    "Unsqueeze without axes": (one_node("Unsqueeze", (2, 3)), "E13014"),
    "ScatterND that multiplies": (one_node("ScatterND", (4,), (2, 1), (2,), reduction="mul"), "E13014"),
    "ReduceMean of nothing": (one_node("ReduceMean", (2, 3), opset=18, noop_with_empty_axes=1), "E13014"),
    "GatherND with batches": (one_node("GatherND", (2, 3), (2, 1), batch_dims=1), "E13014"),
    "DepthToSpace by 1": (one_node("DepthToSpace", (1, 4, 2, 2), blocksize=1), "E13014"),
    "Split into another number": (split_into(3, 2), "E13014"),
    "flash attention in BNSD": (
        one_node("NPUFlashAttention", (1, 8, 8), (1, 8, 8), (1, 8, 8), head_num=1, input_layout="BNSD"),
        "E13014",
    ),
    "a size of zero": (with_shape_of_zero(), "E13025"),
    "NonZero": (non_zero(), "SIM001"),
    "NonMaxSuppression": (one_node("NonMaxSuppression", (1, 9, 4), (1, 2, 9)), "SIM001"),
    "an open size without --input_shape": (convolution(height="size"), "SIM001"),
}  # fmt: skip


@pytest.fixture
def convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], str]]:
    """Convert a file in this process: exit code, codes of the errors, output."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, list[str], str]:
        code = main(command(tmp_path, *words))
        output = capsys.readouterr().out
        return code, [line.split(":")[0] for line in output.splitlines() if ": [PID" in line], output

    return run


Convert = Callable[..., tuple[int, list[str], str]]


@pytest.mark.parametrize(("proto", "code"), REFUSED.values(), ids=REFUSED)
def test_a_graph_that_atc_refuses_has_the_documented_code(
    convert: Convert, tmp_path: Path, proto: onnx.ModelProto, code: str
) -> None:
    save(proto, tmp_path)
    result, codes, output = convert()
    assert (result, set(codes)) == (255, {code}), output
    assert not list(tmp_path.glob("*.om*"))


def test_every_node_that_is_not_registered_is_named(convert: Convert, tmp_path: Path) -> None:
    save(convolution(opset=19), tmp_path)
    _, codes, output = convert()
    assert codes == ["E13010", "E13010"]
    assert "ai.onnx::19::Conv" in output
    assert "ai.onnx::19::Relu" in output
    assert "the versions 8, 9, 10" in output


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "E16004"),
        (b"\x89PNG not a model", "E10041"),
        (convolution().SerializeToString()[:-40], "E10041"),
    ],
    ids=["empty", "a picture", "truncated"],
)
def test_a_broken_file_has_a_code(convert: Convert, tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert convert()[:2] == (255, [code])


def test_external_data_that_is_missing_has_a_code(convert: Convert, tmp_path: Path) -> None:
    onnx.save(convolution(), str(tmp_path / "model.onnx"), save_as_external_data=True, size_threshold=0,
              location="weights.bin")  # fmt: skip
    (tmp_path / "weights.bin").unlink()
    result, codes, output = convert()
    assert (result, codes) == (255, ["E10041"])
    assert "weights.bin" in output


def test_external_data_that_are_cut_off_have_a_code(convert: Convert, tmp_path: Path) -> None:
    onnx.save(convolution(), str(tmp_path / "model.onnx"), save_as_external_data=True, size_threshold=0,
              location="weights.bin")  # fmt: skip
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(400)  # of 432
    result, codes, output = convert()
    assert (result, codes) == (255, ["E10041"]), output
    assert "kernel" in output


def test_external_data_outside_of_the_folder_is_not_read(convert: Convert, tmp_path: Path) -> None:
    proto = convolution()
    onnx.external_data_helper.convert_model_to_external_data(
        proto, location="../secret.bin", size_threshold=0
    )
    (tmp_path.parent / "secret.bin").write_bytes(bytes(4096))
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert convert()[:2] == (255, ["E10041"])


def test_a_model_above_two_gigabytes_needs_external_data(convert: Convert, tmp_path: Path) -> None:
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2**31)
    assert convert()[:2] == (255, ["E13015"])


def test_nodes_without_a_name_get_one() -> None:
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        [value("x", 2)], [value("z", 2)],
    )  # fmt: skip
    checks.check_model(proto)
    assert [node.name for node in proto.graph.node] == ["Relu_0", "Relu_1"]
    assert checks.check_nodes(proto) == []


def test_an_explicit_domain_needs_no_single_operator_set() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], "node", domain="ai.onnx")
    proto = model([node], [value("x", 2)], [value("y", 2)], npu=1)
    checks.check_model(proto)
    assert checks.check_nodes(proto) == []


@pytest.mark.parametrize(
    ("domain", "operator", "versions"),
    [
        ("", "LayerNormalization", {17, 18}),
        ("", "GridSample", {11, 16, 17, 18}),
        ("", "Constant", set(range(1, 25))),
        ("", "Loop", set()),
        ("npu", "NPUFlashAttention", {1}),
        ("", "NPUPromptFlashAttention", {11, 12, 13, 14, 15, 16, 19}),
    ],
)
def test_operators_are_registered_by_version(domain: str, operator: str, versions: set[int]) -> None:
    assert {version for version in range(1, 25) if is_registered(domain, operator, version)} == versions


def test_nodes_of_branches_are_checked_too(convert: Convert, tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Gelu", ["x"], ["inner"], "inside")], "branch", [], [value("inner", 2)]
    )
    node = helper.make_node("If", ["condition"], ["y"], "choice", then_branch=branch, else_branch=branch)
    inputs = [value("x", 2), helper.make_tensor_value_info("condition", TensorProto.BOOL, ())]
    save(model([node], inputs, [value("y", 2)]), tmp_path)
    _, codes, output = convert()
    assert "E13010" in codes
    assert "inside" in output


def test_the_pre_check_writes_a_report_of_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(convolution(), tmp_path)
    words = ["--mode=3", "--framework=5", f"--soc_version={SOC}", "--model=model.onnx"]
    assert main(words) == 0
    report = json.loads((tmp_path / "check_result.json").read_text())
    assert report["result"] == "success"
    assert [entry["op_type"] for entry in report["op"]] == ["ai.onnx::17::Conv", "ai.onnx::17::Relu"]


def test_the_pre_check_fails_with_the_reasons_in_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(with_two_nodes_of_one_name(), tmp_path)
    words = [
        "--mode=3",
        "--framework=5",
        f"--soc_version={SOC}",
        "--model=model.onnx",
        "--check_report=r.json",
    ]
    assert main(words) == 255
    report = json.loads((tmp_path / "r.json").read_text())
    assert [cause["code"] for entry in report["op"] for cause in entry["cause"]] == ["E13009", "E13009"]
