"""Small ONNX graphs and command lines for the tests of the simulated ATC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SOC = "Ascend910B3"


def value(name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    *constants: onnx.TensorProto,
    opset: int = 17,
    **extra_domains: int,
) -> onnx.ModelProto:
    """An ONNX model; `extra_domains` are further entries of opset_import (`__` stands for a dot)."""
    graph = helper.make_graph(nodes, "tested", inputs, outputs, initializer=list(constants))
    imports = [helper.make_opsetid("", opset)]
    imports += [
        helper.make_opsetid(name.replace("__", "."), version) for name, version in extra_domains.items()
    ]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def convolution(height: int | str = 8, batch: int | str = 1, opset: int = 17) -> onnx.ModelProto:
    """A 3x3 convolution (3 to 4 channels) and a ReLU: image to features, both NCHW."""
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node(
            "Conv", ["image", "kernel"], ["raw"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["raw"], ["features"], "relu"),
    ]
    image, features = value("image", batch, 3, height, height), value("features", batch, 4, height, height)
    return model(nodes, [image], [features], weights("kernel", kernel), opset=opset)


def one_node(
    operator: str, *shapes: tuple[int, ...], opset: int = 17, outputs: int = 1, **attributes: object
) -> onnx.ModelProto:
    """A model of one node whose inputs have these shapes."""
    names = [f"x{index}" for index in range(len(shapes))]
    made = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(operator, names, made, "node", **attributes)
    inputs = [value(name, *shape) for name, shape in zip(names, shapes, strict=True)]
    return model([node], inputs, [helper.make_empty_tensor_value_info(name) for name in made], opset=opset)


def save(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(proto, str(path))
    return path


def command(folder: Path, *words: str, model: str = "model.onnx", soc: str = SOC) -> list[str]:
    """The words of a conversion of `model` in `folder` to made.om there, with more words behind it."""
    return [
        f"--model={folder / model}",
        "--framework=5",
        f"--output={folder / 'made'}",
        f"--soc_version={soc}",
        *words,
    ]
