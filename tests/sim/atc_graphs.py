"""Small ONNX graphs for tests of ATC's lowering, and how they are lowered, run and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cann_sim
import numpy as np
import onnx
import onnxruntime
from cann_sim.atc import om_file
from cann_sim.atc.kernels import Soc
from cann_sim.atc.lowering import Finding, Lowered, lower
from cann_sim.atc.precision import Precision
from om_models import Executor, model_of
from onnx import TensorProto, helper, numpy_helper

SOCS: dict[str, Soc] = {
    "910B": Soc(name="Ascend910B3", family="910B"),
    "910_93": Soc(name="Ascend910_9362", family="910_93"),
    "310P": Soc(name="Ascend310P3", family="310P"),
    "910A": Soc(name="Ascend910A", family="910A"),
}
RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.uniform(-2, 2, shape).astype(np.float32)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node with the name of its first output; inputs and outputs are separated by blanks."""
    return helper.make_node(operator, inputs.split(), outputs.split(), name=outputs.split()[0], **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int]],
    outputs: str,
    *,
    opset: int = 17,
    types: Mapping[str, int] | None = None,
    **constants: Any,
) -> onnx.ModelProto:
    """Return a model; `constants` are initializers, numbers among them float32."""
    types = types or {}
    tensors = [
        numpy_helper.from_array(
            np.asarray(value, np.float32) if isinstance(value, float) else np.asarray(value), name
        )
        for name, value in constants.items()
    ]
    given = [
        helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)
        for name, shape in inputs.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs.split()]
    made = helper.make_graph(list(nodes), "graph", given, results, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def lowered(model: onnx.ModelProto, mode: str = "origin", soc: str = "910B", **options: Any) -> Lowered:
    """Return a model lowered for the shapes that its inputs have."""
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    return lower(model, soc=SOCS[soc], precision=Precision(mode=mode, **options), shapes=shapes)


def by_name(found: Lowered) -> dict[str, Finding]:
    return {finding.name: finding for finding in found.findings}


def dtype_of(found: Lowered, name: str) -> str:
    """Return the data type that a node's first output is computed in."""
    return by_name(found)[name].outputs[0]


def run(found: Lowered, folder: Path, feeds: Mapping[str, np.ndarray], opset: int = 17) -> list[np.ndarray]:
    """Return what the executor computes; the feeds are cast to what the program takes."""
    executor = Executor(cann_sim.home() / "lib64" / "libcann_sim_executor.so")
    om_file.write(model_of(found.program, found.constants, opset=opset), folder / "model.om")
    with executor.load(folder / "model.om") as loaded:
        return loaded.run([feeds[value.name].astype(value.dtype) for value in found.program.inputs])


def reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return what ONNX Runtime computes without optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))  # type: ignore[no-any-return]


def layer_norm(
    *,
    axes: Sequence[int] = (-1,),
    epsilon: Any = 1e-6,
    square: str = "Pow",
    swapped: bool = False,
    affine: bool = True,
    width: int = 8,
) -> onnx.ModelProto:
    """Return the decomposed LayerNorm of PyTorch's exporter (opset 16 and before), or a neighbour of it."""
    last = "y" if not affine else "quotient"
    nodes = [
        node("ReduceMean", "x", "mean", axes=list(axes)),
        node("Sub", "mean x" if swapped else "x mean", "deviation"),
        node("Pow", "deviation two", "square")
        if square == "Pow"
        else node("Mul", "deviation deviation", "square"),
        node("ReduceMean", "square", "variance", axes=list(axes)),
        node("Add", "variance epsilon", "shifted"),
        node("Sqrt", "shifted", "root"),
        node("Div", "deviation root", last),
    ]
    constants: dict[str, Any] = {"epsilon": epsilon, "two": 2.0}
    if square != "Pow":
        del constants["two"]
    if affine:
        nodes += [node("Mul", "quotient gamma", "scaled"), node("Add", "scaled beta", "y")]
        shape = (width,) if tuple(axes) in ((-1,), (2,)) else (4, 1)
        constants |= {"gamma": floats(*shape) + 2, "beta": floats(*shape)}
    return graph(nodes, {"x": (2, 4, width)}, "y", opset=16, **constants)


def gelu(
    *, divisor: float = 2**0.5, one: float = 1.0, half: float = 0.5, half_first: bool = False
) -> onnx.ModelProto:
    """Return the GELU of PyTorch's exporter, or a neighbour of it."""
    nodes = [node("Div", "x divisor", "d"), node("Erf", "d", "e"), node("Add", "e one", "a")]
    if half_first:
        nodes += [node("Mul", "x half", "h"), node("Mul", "h a", "y")]
    else:
        nodes += [node("Mul", "x a", "m"), node("Mul", "m half", "y")]
    return graph(nodes, {"x": (2, 64)}, "y", divisor=divisor, one=one, half=half)


def tanh_gelu(*, cube: str = "Pow") -> onnx.ModelProto:
    """Return the GELU of tanh: its cube as a power, or as PyTorch's exporter multiplies it."""
    cubes = (
        [node("Pow", "x three", "cube")]
        if cube == "Pow"
        else [node("Mul", "x x", "square"), node("Mul", "x square", "cube")]
    )
    nodes = [
        *cubes,
        node("Mul", "cube kappa", "inner"),
        node("Add", "x inner", "sum"),
        node("Mul", "sum beta", "outer"),
        node("Tanh", "outer", "t"),
        node("Add", "t one", "a"),
        node("Mul", "x a", "m"),
        node("Mul", "m half", "y"),
    ]
    constants = {"kappa": 0.044715, "beta": (2 / np.pi) ** 0.5, "one": 1.0, "half": 0.5}
    if cube == "Pow":
        constants["three"] = 3.0
    return graph(nodes, {"x": (2, 64)}, "y", **constants)
