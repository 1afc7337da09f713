"""What the simulated ATC makes: OMs that compute the model's values, gears, AIPP, and what modes 1 and 6 show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cann_sim
import numpy as np
import onnx
import onnxruntime
import pytest
from atc_models import command, convolution, model, save, value, weights
from cann_sim.atc import aipp, configs, convert, om_file, paths
from cann_sim.atc.__main__ import main
from cann_sim.atc.errors import AtcError
from om_models import Executor
from onnx import helper

LIBRARY = cann_sim.home() / "lib64" / "libcann_sim_executor.so"
ORIGIN = "--precision_mode_v2=origin"
RANDOM = np.random.default_rng(1)
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor(LIBRARY)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Make:
    """Convert a model in the folder of the test, and return the OM."""
    monkeypatch.chdir(tmp_path)

    def convert_model(proto: onnx.ModelProto, *words: str, soc: str = "Ascend910B3") -> Path:
        save(proto, tmp_path)
        result = main(command(tmp_path, *words, soc=soc))
        output = capsys.readouterr().out
        assert result == 0, output
        assert "ATC run success, welcome to the next use." in output
        return tmp_path / "made.om"

    return convert_model


def images(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def expected(proto: onnx.ModelProto, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, inputs)
    return results


def test_a_model_in_its_own_precision_computes_its_values(make: Make, executor: Executor) -> None:
    proto, image = convolution(), images(1, 3, 8, 8)
    with executor.load(make(proto, ORIGIN)) as loaded:
        (features,) = loaded.run([image])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected(proto, image=image)[0], rtol=1e-5, atol=1e-5)


def test_float16_is_forced_if_no_precision_is_given(make: Make, executor: Executor) -> None:
    proto, image = convolution(), images(1, 3, 8, 8)
    with executor.load(make(proto)) as loaded:
        (features,) = loaded.run([image])
    (exact,) = expected(proto, image=image)
    np.testing.assert_allclose(features, exact, atol=2e-2)
    assert np.abs(features - exact).max() > 1e-5  # it was rounded on the way


def test_batches_are_gears(make: Make, executor: Executor) -> None:
    proto = convolution(batch="batch")
    om = make(proto, ORIGIN, "--input_shape=image:-1,3,8,8", "--dynamic_batch_size=1,2,4")
    made = om_file.read(om)
    assert (made.gears, list(made.programs)) == ("batch", [(1,), (2,), (4,)])
    assert made.inputs[0].shape == (-1, 3, 8, 8)
    assert made.outputs[0].shape == (4, 4, 8, 8)
    with executor.load(om) as loaded:
        for gear, batch in enumerate((1, 2, 4)):
            image = images(batch, 3, 8, 8)
            (features,) = loaded.run([image], gear)
            np.testing.assert_allclose(features, expected(proto, image=image)[0], rtol=1e-5, atol=1e-5)


def test_image_sizes_are_gears_and_share_the_weights(make: Make, executor: Executor) -> None:
    proto = model(
        convolution(height="size").graph.node,
        [value("image", 1, 3, "height", "width")],
        [value("features", 1, 4, "height", "width")],
        *convolution().graph.initializer,
    )
    om = make(proto, ORIGIN, "--input_shape=image:1,3,-1,-1", "--dynamic_image_size=8,16;16,8;24,24")
    made = om_file.read(om)
    assert (made.gears, list(made.programs)) == ("image", [(8, 16), (16, 8), (24, 24)])
    assert sum(constant.size == 108 for constant in made.constants.values()) == 1
    with executor.load(om) as loaded:
        assert loaded.info.largest_gear == 2
        for gear, (height, width) in enumerate(made.programs):
            image = images(1, 3, height, width)
            (features,) = loaded.run([image], gear)
            np.testing.assert_allclose(features, expected(proto, image=image)[0], rtol=1e-5, atol=1e-5)


def test_any_dimensions_are_gears_and_folded_shapes_differ(make: Make, executor: Executor) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["rows"], "rows", axis=0),
        helper.make_node("Unsqueeze", ["rows", "zero_axis"], ["row"], "row"),
        helper.make_node("Concat", ["row", "rest"], ["flat"], "flat", axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["y"], "reshape"),
        helper.make_node("Add", ["y", "bias"], ["z"], "add"),
    ]
    constants = [
        weights("zero", np.array(0)), weights("zero_axis", np.array([0])), weights("rest", np.array([-1])),
    ]  # fmt: skip
    proto = model(nodes, [value("x", "a", "b", 2), value("bias", "a", 1)], [value("z", "a", "c")], *constants)
    words = ("--input_shape=x:-1,-1,2;bias:-1,1", "--dynamic_dims=2,3,2;4,5,4", "--input_format=ND")
    om = make(proto, ORIGIN, *words)
    made = om_file.read(om)
    assert (made.gears, list(made.programs)) == ("dims", [(2, 3, 2, 2, 1), (4, 5, 2, 4, 1)])
    with executor.load(om) as loaded:
        for gear, (rows, columns) in enumerate(((2, 3), (4, 5))):
            x, bias = images(rows, columns, 2), images(rows, 1)
            (z,) = loaded.run([x, bias], gear)
            np.testing.assert_allclose(z, expected(proto, x=x, bias=bias)[0], rtol=1e-6)


AIPP = """
# a picture as OpenCV reads it
aipp_op {
    aipp_mode: static
    related_input_rank : 0
    input_format : RGB888_U8
    src_image_size_w : 8  src_image_size_h : 8
    crop: false
    rbuv_swap_switch : true
    min_chn_0 : 123.675
    min_chn_1 : 116.28
    min_chn_2 : 103.53
    var_reci_chn_0 : 0.0171247
    var_reci_chn_1 : 0.0175070
    var_reci_chn_2 : 0.0174291
}
"""


def test_aipp_takes_bytes_and_normalises_them(make: Make, executor: Executor, tmp_path: Path) -> None:
    proto = convolution()
    (tmp_path / "aipp.cfg").write_text(AIPP)
    om = make(proto, ORIGIN, f"--insert_op_conf={tmp_path / 'aipp.cfg'}")
    picture = RANDOM.integers(0, 256, (1, 8, 8, 3), np.uint8)  # blue, green, red
    with executor.load(om) as loaded:
        assert [(given.dtype, given.shape) for given in loaded.values("inputs")] == [("uint8", (1, 8, 8, 3))]
        (features,) = loaded.run([picture])
    mean, factor = np.float32([123.675, 116.28, 103.53]), np.float32([0.0171247, 0.0175070, 0.0174291])
    image = ((picture[..., ::-1] - mean) * factor).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(features, expected(proto, image=image)[0], atol=2e-2)


def test_aipp_goes_with_gears_of_image_sizes(make: Make, executor: Executor, tmp_path: Path) -> None:
    (tmp_path / "aipp.cfg").write_text(AIPP.replace("src_image_size_w : 8  src_image_size_h : 8", ""))
    proto = convolution(height="size")
    words = ("--input_shape=image:1,3,-1,-1", "--dynamic_image_size=8,8;16,16", "--insert_op_conf=aipp.cfg")
    with executor.load(make(proto, ORIGIN, *words)) as loaded:
        for gear, size in enumerate((8, 16)):
            picture = np.full((1, size, size, 3), 128, np.uint8)
            assert loaded.run([picture], gear)[0].shape == (1, 4, size, size)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("aipp_op {", "aipp {"), "E10052"),
        (("aipp_mode: static", ""), "E10052"),
        (("aipp_mode: static", "aipp_mode: dynamic"), "SIM001"),
        (("aipp_mode: static", "aipp_mode: fixed"), "E10052"),
        (("crop: false", "crop: true"), "SIM001"),
        (("crop: false", "crop: no"), "E10052"),
        (("crop: false", "csc_switch: true"), "SIM001"),
        (("crop: false", "colour: 1"), "E10052"),
        (("crop: false", "related_input_name: 'image'"), "E10052"),
        (("crop: false", "mean_chn_0: 123.675"), "E10052"),
        (("crop: false", "mean_chn_0: 300"), "E10052"),
        (("crop: false", "mean_chn_0: high"), "E10052"),
        (("RGB888_U8", "YUV420SP_U8"), "SIM001"),
        (("RGB888_U8", "RGB"), "E10052"),
        (("input_format : RGB888_U8", ""), "E10052"),
        (("src_image_size_w : 8", "src_image_size_w : 9"), "E10052"),
        (("related_input_rank : 0", "related_input_rank : 1"), "E10052"),
        (("}", ""), "E10052"),
    ],
)
def test_an_aipp_file_that_cannot_be_used_has_a_code(
    tmp_path: Path, change: tuple[str, str], code: str
) -> None:
    (tmp_path / "aipp.cfg").write_text(AIPP.replace(*change))
    with pytest.raises(AtcError) as caught:
        aipp.configure(aipp.read(tmp_path / "aipp.cfg"), {"image": (1, 3, 8, 8)}, set(), image_gears=False)
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--input_fp16_nodes=image"], "E10034"),
        (["--input_shape=image:1,3,-1,-1", "--dynamic_dims=8,8;9,9"], "E10001"),
        (["--input_shape=image:1,3,-1,-1", "--dynamic_image_size=8,8;9,9"], "E10052"),
    ],
)
def test_aipp_excludes_other_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(convolution(height="size") if len(words) > 1 else convolution(), tmp_path)
    (tmp_path / "aipp.cfg").write_text(AIPP)
    assert main(command(tmp_path, "--insert_op_conf=aipp.cfg", *words)) == 255
    assert f"\n{code}: [PID" in capsys.readouterr().out


def test_mode_6_shows_what_the_om_has(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    om = make(convolution(), ORIGIN, soc="Ascend910_9391")
    assert main(["--mode=6", f"--om={om}"]) == 0
    output = capsys.readouterr().out
    assert f"--output={om.with_suffix('')}" in output
    assert "soc_version[Ascend910_9391], framework_type[5]" in output
    assert "weight_size[448 B]" in output  # 108 float32, up to the next 64 bytes
    assert f"modeldef_size[{om.stat().st_size - om_file.HEADER.size - 448} B]" in output


def test_a_conversion_shows_the_om_on_demand(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(convolution(), tmp_path)
    make(convolution())
    assert main(command(tmp_path, "--display_model_info=1")) == 0
    assert "============ Display Model Info start ============" in capsys.readouterr().out


def test_an_altered_om_is_refused(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    om = make(convolution())
    content = bytearray(om.read_bytes())
    content[-70] ^= 1
    om.write_bytes(content)
    assert main(["--mode=6", f"--om={om}"]) == 255
    assert "E10001" in capsys.readouterr().out


def test_an_om_and_an_onnx_are_written_as_json(make: Make, tmp_path: Path) -> None:
    om = make(convolution(), ORIGIN)
    assert main(["--mode=1", f"--om={om}", "--json=om.json"]) == 0
    (graph,) = json.loads((tmp_path / "om.json").read_text())["graph"]
    types = [operator["type"] for operator in graph["op"]]
    assert types[0] == "Data"
    assert "Conv2D" in types
    assert main(["--mode=1", "--framework=5", "--om=model.onnx", "--json=onnx.json"]) == 0
    written = json.loads((tmp_path / "onnx.json").read_text())
    assert [node["op_type"] for node in written["node"]] == ["Conv", "Relu"]
    assert "raw_data" not in written["initializer"][0]


def test_what_the_exporter_wrote_is_in_the_om(make: Make) -> None:
    proto = convolution()
    proto.metadata_props.add(key="export_id", value="0123abcd")
    assert om_file.read(make(proto)).metadata == {"export_id": "0123abcd"}


def test_an_initializer_that_is_an_input_is_a_constant(make: Make) -> None:
    proto = convolution()
    proto.graph.input.append(value("kernel", 4, 3, 3, 3))
    assert [given.name for given in om_file.read(make(proto)).inputs] == ["image"]


def test_a_node_without_a_kernel_of_ai_core_is_a_warning(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("ScatterND", ["x", "places", "y"], ["z"], "scatter")]
    places = helper.make_tensor_value_info("places", onnx.TensorProto.INT64, (2, 1))
    make(model(nodes, [value("x", 4, 3), places, value("y", 2, 3)], [value("z", 4, 3)]))
    assert main(command(tmp_path)) == 0
    _, warning = capsys.readouterr().out.split("ATC run success, welcome to the next use.")
    assert warning.startswith("\nW11001: [PID: ")
    assert "The node scatter" in warning


def test_origin_refuses_float32_where_kernels_have_float16_only(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [helper.make_node("AveragePool", ["x"], ["y"], "pool", kernel_shape=[2, 2])]
    make(model(nodes, [value("x", 1, 16, 8, 8)], [value("y", 1, 16, 7, 7)]))
    assert main(command(tmp_path, ORIGIN)) == 255
    assert "\nEZ3003: [PID: " in capsys.readouterr().out


def test_a_dropout_passes_values_on(make: Make, executor: Executor) -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["kept", "mask"], "dropout", ratio=0.5),
        helper.make_node("Relu", ["kept"], ["y"], "relu"),
    ]
    x = images(2, 3)
    with executor.load(
        make(model(nodes, [value("x", 2, 3)], [value("y", 2, 3)], opset=10), ORIGIN)
    ) as loaded:
        np.testing.assert_array_equal(loaded.run([x])[0], np.maximum(x, 0))


def test_external_data_are_weights(make: Make, executor: Executor, tmp_path: Path) -> None:
    proto, image = convolution(), images(1, 3, 8, 8)
    make(proto)  # sets the folder
    onnx.save(convolution(), str(tmp_path / "outside.onnx"), save_as_external_data=True, size_threshold=0,
              location="weights.bin")  # fmt: skip
    assert main(command(tmp_path, ORIGIN, model="outside.onnx")) == 0
    with executor.load(tmp_path / "made.om") as loaded:
        (features,) = loaded.run([image])
    np.testing.assert_allclose(features, expected(proto, image=image)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out_nodes", ["conv:0", "raw", "raw;features", "conv:0;relu:0"])
def test_outputs_are_chosen_by_node_or_name(make: Make, executor: Executor, out_nodes: str) -> None:
    proto, image = convolution(), images(1, 3, 8, 8)
    with executor.load(make(proto, ORIGIN, f"--out_nodes={out_nodes}")) as loaded:
        outputs = loaded.run([image])
        operators = loaded.info.gears[0].num_operations
    assert len(outputs) == out_nodes.count(";") + 1
    assert outputs[0].min() < 0  # before the ReLU
    assert operators == len(outputs)


def test_an_input_is_float16_if_asked(make: Make, executor: Executor) -> None:
    proto, image = convolution(), images(1, 3, 8, 8).astype(np.float16)
    with executor.load(make(proto, "--input_fp16_nodes=image")) as loaded:
        assert loaded.values("inputs")[0].dtype == "float16"
        (features,) = loaded.run([image])
    np.testing.assert_allclose(features, expected(proto, image=image.astype(np.float32))[0], atol=2e-2)


def test_outputs_have_the_type_that_is_asked_for(make: Make) -> None:
    assert om_file.read(make(convolution())).outputs[0].dtype == "float32"
    assert om_file.read(make(convolution(), "--output_type=FP16")).outputs[0].dtype == "float16"


def test_keep_dtype_keeps_a_node_in_float32(make: Make, tmp_path: Path, executor: Executor) -> None:
    proto, image = convolution(), images(1, 3, 8, 8)
    (tmp_path / "keep.cfg").write_text("conv\nOpType::Relu\n")
    with executor.load(make(proto, "--keep_dtype=keep.cfg")) as loaded:
        (features,) = loaded.run([image])
    np.testing.assert_allclose(features, expected(proto, image=image)[0], rtol=1e-5, atol=1e-5)


def test_the_working_folder_gets_what_cann_leaves_there(make: Make, tmp_path: Path) -> None:
    make(convolution())
    assert (tmp_path / "kernel_meta").is_dir()
    ((name, passes),) = json.loads((tmp_path / "fusion_result.json").read_text()).items()
    assert name.startswith("session_and_graph_id_")
    assert {"graph_fusion", "ub_fusion"} <= set(passes)
    (tmp_path / "fusion_result.json").unlink()
    make(convolution(), "--export_compile_stat=0")
    assert not (tmp_path / "fusion_result.json").exists()


def test_a_work_path_takes_the_reports(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_WORK_PATH", str(tmp_path / "work"))
    make(convolution())
    assert (tmp_path / "work" / "FE" / str(os.getpid()) / "fusion_result.json").exists()
    assert not (tmp_path / "fusion_result.json").exists()


@pytest.mark.parametrize(
    ("reader", "text", "code"),
    [
        (configs.customize_dtypes, "conv float16", "E10001"),
        (configs.customize_dtypes, "conv::InputDtype:half,OutputDtype:float16", "E10001"),
        (configs.mixlist, "{", "E10032"),
        (configs.mixlist, '{"black": {"to-add": ["Conv2D"]}}', "E10001"),
        (configs.mixlist, '["Conv2D"]', "E10001"),
        (configs.op_precision_mode, "Conv2D=exact", "E10001"),
        (configs.op_precision_mode, "[ByColour]\nConv2D=high_precision", "E10001"),
        (configs.fusion_switches, "LayerNormFusionPass", "E10001"),
        (configs.fusion_switches, "LayerNormFusionPass:maybe", "E10001"),
        (configs.fusion_switches, "{", "E10032"),
        (configs.fusion_switches, '{"Switch": {"ALL": "off"}}', "E10001"),
        (configs.fusion_switches, "{}", "E10001"),
    ],
)
def test_a_wrong_configuration_has_a_code(
    tmp_path: Path, reader: Callable[[Path], object], text: str, code: str
) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(AtcError) as caught:
        reader(tmp_path / "file")
    assert caught.value.code == code


def test_configurations_are_read_as_documented(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("conv::InputDtype:float16,float16,OutputDtype:float32\n"
                    "OpType::Relu:InputDtype:float32,OutputDtype:float32\n")  # fmt: skip
    assert configs.customize_dtypes(file) == {
        "conv": (("float16", "float16"), ("float32",)),
        "OpType::Relu": (("float32",), ("float32",)),
    }
    file.write_text('{"black-list": {"to-add": ["Conv2D"]}, "white-list": {"to-remove": ["MatMulV2"]}}')
    assert configs.mixlist(file) == {
        "black-list": {"to-add": ("Conv2D",)},
        "white-list": {"to-remove": ("MatMulV2",)},
    }
    file.write_text("[ByOpType]\nSoftmaxV2=high_precision\n[ByNodeName]\n/a/Exp=high_performance\n")
    assert configs.op_precision_mode(file) == {
        "OpType::SoftmaxV2": "high_precision",
        "/a/Exp": "high_performance",
    }
    file.write_text("LayerNormFusionPass:off\nGeluFusionPass:on\n")
    assert configs.fusion_switches(file) == {"LayerNormFusionPass"}
    file.write_text('{"Switch": {"GraphFusion": {"ALL": "off"}, "UBFusion": {"ALL": "off"}}}')
    assert configs.fusion_switches(file) == {"ALL"}
    assert configs.output_type("conv:0:FP16;relu:0:FP32") == {"conv:0": "float16", "relu:0": "float32"}


def test_only_models_of_ranges_have_the_host_in_their_name() -> None:
    assert paths.om_name("vit", ranges=False, cpu="aarch64") == "vit.om"
    assert paths.om_name("vit", ranges=True, cpu="x86_64") == "vit_linux_x86_64.om"


def test_a_range_names_the_file_that_a_card_would_get(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(convolution(batch="batch"), tmp_path)
    words = ["--input_shape=image:1~4,3,8,8", "--host_env_cpu=aarch64", "--host_env_os=linux"]
    assert main(command(tmp_path, *words)) == 255
    assert "made_linux_aarch64.om" in capsys.readouterr().out


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    save(convolution(), tmp_path)
    monkeypatch.setattr(convert, "lower", interrupt)
    assert main(command(tmp_path)) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_om_is_written_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    large = np.zeros((8192, 4096), np.float32)  # 128 MiB
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")]
    save(model(nodes, [value("x", 1, 8192)], [value("y", 1, 4096)], weights("w", large)), tmp_path)
    script = cann_sim.home() / "bin" / "atc"
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen([script, *command(tmp_path, ORIGIN)], env=environ, cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".made.om*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(number)
    process.communicate(timeout=60)
    if process.returncode == 130:  # else it had been faster than the signal
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]
    else:
        assert (process.returncode, (tmp_path / "made.om").stat().st_size > large.nbytes) == (0, True)
