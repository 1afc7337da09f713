"""What modes 1 and 6 show of a model: an OM's resources and graph, or an ONNX graph, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from cann_sim.atc import graphs, om_file
from cann_sim.atc.errors import AtcError
from cann_sim.atc.footprint import model_work_size, weight_size
from cann_sim.atc.program import Model, Program, Value


def read_om(path: Path) -> Model:
    """Return the model of an OM.

    Raises
    ------
    AtcError
        E10001 for a file that is no OM of cann_sim, or a damaged one.
    """
    try:
        return om_file.read(path)
    except om_file.OmError as error:
        raise AtcError("E10001", parameter="--om", value=path, reason=str(error)) from error


def display(path: Path) -> str:
    """Return the lines of `--mode=6` and `--display_model_info=1` for an OM."""
    model = read_om(path)
    weights = weight_size(model)
    version = om_file.PLATFORM_VERSION.decode()
    return "\n".join(
        (
            "============ Display Model Info start ============",
            f"Original Atc command line: {model.command}",
            f"system   info: atc_version[{version}], soc_version[{model.soc}], framework_type[5].",
            f"resource info: memory_size[{model_work_size(model)} B], weight_size[{weights} B], "
            "stream_num[1], event_num[0].",
            f"om       info: modeldef_size[{path.stat().st_size - om_file.HEADER.size - weights} B], "
            f"weight_data_size[{weights} B], tbe_kernels_size[0 B], cust_aicpu_kernel_store_size[0 B], "
            "task_info_size[0 B], so_store_size[0 B].",
            "simulated by: cann_sim",
            "============ Display Model Info end   ============",
        )
    )


def om_json(path: Path) -> str:
    """Return an OM's graphs as JSON: one graph per gear with its operators, their inputs, outputs and attributes."""
    model = read_om(path)
    graphs_ = [
        {"name": "_".join((model.name, *map(str, gear))), **_graph(program, model)}
        for gear, program in model.programs.items()
    ]
    attributes = [
        {"key": "atc_version", "value": {"s": om_file.PLATFORM_VERSION.decode()}},
        {"key": "soc_version", "value": {"s": model.soc}},
        {"key": "atc_cmdline", "value": {"s": model.command}},
        {"key": "simulated_by", "value": {"s": "cann_sim"}},
        *({"key": key, "value": {"s": text}} for key, text in model.metadata.items()),
    ]
    return json.dumps({"name": model.name, "attr": attributes, "graph": graphs_}, indent=1)


def onnx_json(path: Path) -> str:
    """Return an ONNX graph as JSON without the values of its weights."""
    model = graphs.load(path, weights=False)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    return str(json_format.MessageToJson(model.graph, preserving_proto_field_name=True, indent=1))


def _graph(program: Program, model: Model) -> dict[str, Any]:
    """Return one program in the fields of GE's graph."""
    values = dict(program.values)
    values |= {
        name: Value(name=name, dtype=str(constant.dtype), shape=constant.shape)
        for name, constant in model.constants.items()
    }
    data = [
        {"name": value.name, "type": "Data", "output_desc": [_tensor(value)], "attr": []}
        for value in program.inputs
    ]
    operators = [
        {
            "name": operation.name,
            "type": operation.kernel or operation.operator,
            "input": [name for name in operation.inputs if name],
            "input_desc": [_tensor(values[name]) for name in operation.inputs if name in values],
            "output_desc": [_tensor(values[name]) for name in operation.outputs if name in values],
            "attr": [
                {"key": "_original_type", "value": {"s": operation.operator}},
                {"key": "_engine", "value": {"s": operation.engine}},
                *({"key": key, "value": value} for key, value in operation.attributes.items()),
            ],
        }
        for operation in program.operations
    ]
    return {
        "input": [value.name for value in program.inputs],
        "output": [value.name for value in program.outputs],
        "op": data + operators,
    }


def _tensor(value: Value) -> dict[str, Any]:
    """Return a tensor's description."""
    return {"name": value.name, "dtype": value.dtype.upper(), "shape": {"dim": list(value.shape)}}
