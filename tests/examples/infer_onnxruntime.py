"""Run a small ONNX model with ONNX Runtime's CANN execution provider beside its CPU's, and print both's difference.

The provider converts the model in this process (GE's interface, which runs ATC), loads the OM from memory and executes
it; nothing here knows cann_sim.

    python infer_onnxruntime.py PRECISION_MODE
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def build() -> bytes:
    """Return a convolution, a ReLU, a mean over the picture and a matrix product: float32 [2, 3, 16, 16] -> [2, 5]."""
    random = np.random.default_rng(0)
    weights = {
        "kernel": random.standard_normal((8, 3, 3, 3), np.float32) / 5,
        "bias": random.standard_normal(8, np.float32),
        "matrix": random.standard_normal((8, 5), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel", "bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "matrix"], ["y"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def main() -> None:
    """Print one line of JSON."""
    model = build()
    picture = np.random.default_rng(1).standard_normal((2, 3, 16, 16), np.float32)
    options = {
        "device_id": 0,
        "enable_cann_graph": True,
        "precision_mode": sys.argv[1],
        "dump_om_model": False,
    }
    npu = onnxruntime.InferenceSession(model, providers=[("CANNExecutionProvider", options)])
    cpu = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found, expected = (session.run(None, {"x": picture})[0] for session in (npu, cpu))
    result = {
        "version": onnxruntime.__version__,
        "providers": npu.get_providers(),
        "difference": float(np.abs(found - expected).max()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
