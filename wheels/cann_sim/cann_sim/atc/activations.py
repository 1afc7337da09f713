"""The range of every value of an ONNX graph over some inputs: what the forecast needs to see float16 overflow.

ONNX Runtime computes it, in float32 on the CPU. Two reductions behind each value give its smallest and largest number,
and nothing but these leaves the graph: memory stays that of an ordinary run, also for a ViT-B at 1024 pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

Array = np.ndarray[Any, np.dtype[Any]]
Ranges = dict[str, tuple[float, float]]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def collect(path: Path, feeds: Iterable[Mapping[str, Array]]) -> Ranges:
    """Return the smallest and the largest number of each floating value of a graph and of its inputs, over all feeds.

    A value that is not finite makes its range infinite.

    Raises
    ------
    ValueError
        ONNX Runtime has no kernel for one of the operators (those of ATC alone, such as RoiExtractor), or there is no
        feed.
    """
    import onnxruntime  # only here: converting needs none

    model = onnx.load(str(path), load_external_data=False)
    names = _watch(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps every value
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    options.enable_cpu_mem_arena = False  # it would keep what is free
    # In the order of the nodes: the default order runs what nobody waits for, our reductions, last.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no common base of their own
        raise ValueError(f"ONNX Runtime cannot run {path}: {error}") from error
    del model
    ranges: Ranges = {}
    for feed in feeds:
        results = session.run([f"{name}@{end}" for name in names for end in ("least", "most")], dict(feed))
        for index, name in enumerate(names):
            least, most = (_finite(result) for result in results[2 * index : 2 * index + 2])
            known = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(known[0], least, -most if np.isinf(most) else least), max(known[1], most))
    if not ranges:
        raise ValueError("no inputs are given, so no range is known")
    return ranges


def _finite(value: Array) -> float:
    number = float(value)
    return float("inf") if np.isnan(number) else number


def _watch(model: onnx.ModelProto) -> list[str]:
    """Give a graph two outputs for each floating value, its least and its most, and return the values' names."""
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in known]
    inferred = shape_inference.infer_shapes(_without_weights(model)).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inputs, *inferred.value_info, *inferred.output)
    }
    names: list[str] = []
    nodes: list[onnx.NodeProto] = []
    del graph.output[:]

    def watch(name: str) -> None:
        if types.get(name) not in _FLOATS:
            return
        names.append(name)
        for operator, end in (("ReduceMin", "least"), ("ReduceMax", "most")):
            nodes.append(helper.make_node(operator, [name], [f"{name}@{end}"], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(f"{name}@{end}", types[name], []))

    for value in inputs:
        watch(value.name)
    for node in graph.node:
        nodes.append(node)
        # at once, and not at the end: a value is free when its last user has run
        for name in node.output if node.op_type != "Constant" else ():
            watch(name)
    del graph.node[:]
    graph.node.extend(nodes)
    return names


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large weights are inputs: shape inference copies what it is given."""
    graph = model.graph
    small = [
        tensor for tensor in graph.initializer if len(tensor.raw_data) <= 4096 and not tensor.external_data
    ]
    kept = {tensor.name for tensor in small}
    weights = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in kept
    ]
    light = helper.make_graph(graph.node, graph.name, [*graph.input, *weights], graph.output, small)
    return helper.make_model(light, opset_imports=model.opset_import, ir_version=model.ir_version)


def write(path: Path, stages: Mapping[str, Ranges]) -> None:
    """Write the ranges of stages as JSON; the file gets its name when it is complete."""
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(stages, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> dict[str, Ranges]:
    """Return the ranges by stage of a file that `write` wrote.

    Raises
    ------
    ValueError
        The file is no JSON or has another form.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {
            stage: {name: (float(least), float(most)) for name, (least, most) in ranges.items()}
            for stage, ranges in content.items()
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} has no stages with values and their least and most: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect the ranges of one stage over .npz files, each with the stage's inputs by name; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cann_sim.atc.activations", description=main.__doc__)
    parser.add_argument("stage", type=Path, help="the ONNX file")
    parser.add_argument("inputs", type=Path, nargs="+", help=".npz files")
    parser.add_argument("--output", type=Path, required=True, help="JSON; stages that it has already stay")
    options = parser.parse_args(arguments)
    stages = read(options.output) if options.output.exists() else {}
    stages[options.stage.stem] = collect(options.stage, (dict(np.load(path)) for path in options.inputs))
    write(options.output, stages)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
