"""The executor's operators beside ONNX Runtime's, in float32, and rounded once in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cann_sim
import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from cann_sim.atc import om_file
from cann_sim.atc.program import Model
from om_cases import CASES, Case, name_of
from om_models import Executor, model_of, program_of
from onnx import TensorProto, helper, numpy_helper

LIBRARY = cann_sim.home() / "lib64" / "libcann_sim_executor.so"


@pytest.fixture(scope="module")
def executor() -> Executor:
    return Executor(LIBRARY)


def graph_of(case: Case) -> Any:
    """Return the node as a model whose floating inputs are fed, and whose integers are constants."""
    names = ["" if array is None else f"in{index}" for index, array in enumerate(case.inputs)]
    outputs = [f"out{index}" for index in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, **case.attributes)
    fed, constants = [], []
    for name, array in zip(names, case.inputs, strict=True):
        if array is not None and array.dtype == np.float32:
            fed.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
        elif array is not None:
            constants.append(numpy_helper.from_array(array, name))
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "graph", fed, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)


def feeds_of(case: Case) -> dict[str, np.ndarray]:
    return {
        f"in{index}": array
        for index, array in enumerate(case.inputs)
        if array is not None and array.dtype == np.float32
    }


def reference(case: Case, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        graph_of(case).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def build(case: Case, results: list[np.ndarray], half: str = "") -> Model:
    """Return the node's model, with the shapes and data types of `results`."""
    proto = graph_of(case)
    for info, result in zip(proto.graph.output, results, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(result.dtype)
        info.CopyFrom(helper.make_tensor_value_info(info.name, kind, result.shape))
    program, constants = program_of(proto, half=half)
    return model_of(program, constants, opset=case.opset)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_an_operator_computes_what_onnx_runtime_does(case: Case, executor: Executor, tmp_path: Path) -> None:
    feeds = feeds_of(case)
    expected = reference(case, feeds)
    om_file.write(build(case, expected), tmp_path / "model.om")
    with executor.load(tmp_path / "model.om") as model:
        found = model.run(list(feeds.values()))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        if theirs.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=case.tolerance, atol=case.tolerance)
        else:
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("case", [case for case in CASES if case.half], ids=name_of)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_computes_in_float32_and_rounds_once(
    case: Case, dtype: str, executor: Executor, tmp_path: Path
) -> None:
    half = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    feeds = {name: array.astype(half) for name, array in feeds_of(case).items()}
    expected = reference(case, {name: array.astype(np.float32) for name, array in feeds.items()})
    om_file.write(build(case, expected, dtype), tmp_path / "model.om")
    with executor.load(tmp_path / "model.om") as model:
        found = model.run(list(feeds.values()))
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.dtype != np.float32:
            np.testing.assert_array_equal(ours, theirs)
            continue
        # Where the last bits of float32 decide the rounding, neighbours are equally right; they are few.
        rounded = theirs.astype(half)
        step = np.abs(ours.astype(np.float64) - rounded.astype(np.float64))
        limit = np.abs(rounded.astype(np.float64)) * (2**-10 if dtype == "float16" else 2**-7) + 1e-5
        assert np.all(step <= limit)
        assert np.sum(ours != rounded) <= max(1, 0.02 * rounded.size)
