"""Programs for tests of OM files, from small ONNX graphs without ATC's choices; and the executor, by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from cann_sim.atc.footprint import ITEM_SIZES
from cann_sim.atc.om_programs import numpy_dtype
from cann_sim.atc.program import Aipp, Attribute, Model, Operation, Program, Value
from onnx import helper, numpy_helper, shape_inference

# aclDataType's numbers
DTYPES = {
    "float32": 0,
    "float16": 1,
    "int8": 2,
    "int32": 3,
    "uint8": 4,
    "int64": 9,
    "float64": 11,
    "bool": 12,
    "bfloat16": 27,
}
NAMES = {number: name for name, number in DTYPES.items()}
OK, NO_FILE, BAD_FILE, UNSUPPORTED, BAD_ARGUMENT, RUN_FAILED, OUT_OF_MEMORY = range(7)


def value_of(info: onnx.ValueInfoProto) -> Value:
    """Return a tensor of a graph with its static shape."""
    tensor = info.type.tensor_type
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    return Value(name=info.name, dtype=helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape=shape)


def attribute_of(proto: onnx.AttributeProto) -> Attribute:
    """Return an attribute; a tensor of one number as that number."""
    found = helper.get_attribute_value(proto)
    if isinstance(found, onnx.TensorProto):
        return float(numpy_helper.to_array(found).reshape(-1)[0])
    if isinstance(found, bytes):
        return found.decode()
    if isinstance(found, list) and found and isinstance(found[0], bytes):
        return [text.decode() for text in found]
    return found if isinstance(found, int | float | str) else list(found)


def program_of(
    proto: onnx.ModelProto, *, shapes: Mapping[str, tuple[int, ...]] | None = None, half: str = ""
) -> tuple[Program, dict[str, np.ndarray]]:
    """Return a graph's program and constants.

    `shapes` are of values that ONNX's shape inference does not know; `half` turns all float32 into that data type.
    """
    graph = shape_inference.infer_shapes(proto, data_prop=True).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        else:
            nodes.append(node)
    infos = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    values = {name: value_of(info) for name, info in infos.items() if name not in constants}
    for name, shape in (shapes or {}).items():
        values[name] = Value(
            name=name, dtype=values[name].dtype if name in values else "float32", shape=shape
        )
    if half:
        values = {
            name: Value(name=name, dtype=half if value.dtype == "float32" else value.dtype, shape=value.shape)
            for name, value in values.items()
        }
        constants = {
            name: array.astype(numpy_dtype(half)) if array.dtype == np.float32 else array
            for name, array in constants.items()
        }
    operations = tuple(
        Operation(
            name=node.name or f"{node.op_type}_{index}", operator=node.op_type, kernel=node.op_type, engine="AiCore",
            inputs=tuple(node.input), outputs=tuple(node.output),
            attributes={proto.name: attribute_of(proto) for proto in node.attribute},
        )
        for index, node in enumerate(nodes)
    )  # fmt: skip
    return Program(
        inputs=tuple(values[info.name] for info in graph.input if info.name not in constants),
        outputs=tuple(values[info.name] for info in graph.output),
        values=values,
        operations=operations,
    ), constants


def model_of(
    program: Program, constants: dict[str, np.ndarray], *, opset: int = 17, soc: str = "Ascend910B3",
    name: str = "model", aipp: tuple[Aipp, ...] = (),
) -> Model:  # fmt: skip
    """Return the static model of one program."""
    return Model(
        name=name, soc=soc, command="atc --model=model.onnx", opset=opset, inputs=program.inputs,
        outputs=program.outputs, gears="", programs={(): program}, constants=constants, aipp=aipp,
        metadata={"export_id": "0123"},
    )  # fmt: skip


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("dtype", ctypes.c_int32), ("rank", ctypes.c_uint32),
        ("dims", ctypes.POINTER(ctypes.c_int64)), ("size", ctypes.c_uint64),
    ]  # fmt: skip

    def value(self) -> Value:
        """Return what it describes."""
        shape = tuple(self.dims[axis] for axis in range(self.rank))
        return Value(name=self.name.decode(), dtype=NAMES[self.dtype], shape=shape)


class _Gear(ctypes.Structure):
    _fields_ = [
        ("num_values", ctypes.c_uint32), ("values", ctypes.POINTER(ctypes.c_int64)),
        ("inputs", ctypes.POINTER(_Tensor)), ("outputs", ctypes.POINTER(_Tensor)), ("work_size", ctypes.c_uint64),
        ("num_operations", ctypes.c_uint32),
    ]  # fmt: skip


class _Info(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("soc", ctypes.c_char_p), ("command", ctypes.c_char_p), ("opset", ctypes.c_uint32),
        ("num_inputs", ctypes.c_uint32), ("num_outputs", ctypes.c_uint32), ("inputs", ctypes.POINTER(_Tensor)),
        ("outputs", ctypes.POINTER(_Tensor)), ("gear_kind", ctypes.c_int32), ("num_gears", ctypes.c_uint32),
        ("gears", ctypes.POINTER(_Gear)), ("largest_gear", ctypes.c_uint32), ("work_size", ctypes.c_uint64),
        ("weight_size", ctypes.c_uint64), ("num_aipp", ctypes.c_uint32), ("aipp", ctypes.c_void_p),
        ("num_metadata", ctypes.c_uint32), ("metadata", ctypes.POINTER(ctypes.c_char_p)),
        ("milliseconds", ctypes.c_double),
    ]  # fmt: skip


class _Operation(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("operator", ctypes.c_char_p), ("kernel", ctypes.c_char_p),
        ("engine", ctypes.c_char_p), ("begin", ctypes.c_uint64), ("end", ctypes.c_uint64),
        ("num_inputs", ctypes.c_uint32), ("num_outputs", ctypes.c_uint32), ("inputs", ctypes.POINTER(_Tensor)),
        ("outputs", ctypes.POINTER(_Tensor)), ("output_data", ctypes.POINTER(ctypes.c_void_p)),
    ]  # fmt: skip


_Model, _Message = ctypes.c_void_p, ctypes.c_char_p
_Observer = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(_Operation))
_Load = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Model), _Message, ctypes.c_size_t)
_LoadMemory = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_Model), _Message, ctypes.c_size_t
)
_Pointers, _Sizes = ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint64)
_Run = ctypes.CFUNCTYPE(
    ctypes.c_int, _Model, ctypes.c_uint32, _Pointers, _Sizes, _Pointers, _Sizes, _Observer, ctypes.c_void_p, _Message,
    ctypes.c_size_t,
)  # fmt: skip


class _Functions(ctypes.Structure):
    _fields_ = [
        ("load_file", _Load), ("load_memory", _LoadMemory), ("unload", ctypes.CFUNCTYPE(None, _Model)),
        ("describe", ctypes.CFUNCTYPE(ctypes.POINTER(_Info), _Model)), ("run", _Run),
        ("operators", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    ]  # fmt: skip


class ExecutorError(RuntimeError):
    """A function of the executor ended with `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Executor:
    """The executor's C interface: what libascendcl.so calls."""

    def __init__(self, library: Path) -> None:
        interface = ctypes.CDLL(str(library)).cann_sim_executor_interface
        interface.restype = ctypes.POINTER(_Functions)
        self.functions = interface().contents

    def operators(self) -> list[str]:
        """Return the names of the operators that it runs."""
        names: bytes = self.functions.operators()
        return names.decode().split()

    @contextmanager
    def load(self, source: Path | bytes) -> Iterator[Loaded]:
        """Load a model from a file or from memory, and unload it at the end.

        Raises
        ------
        ExecutorError
            It cannot be loaded.
        """
        handle, message = ctypes.c_void_p(), ctypes.create_string_buffer(1000)
        if isinstance(source, bytes):
            code = self.functions.load_memory(
                source, len(source), ctypes.byref(handle), message, len(message)
            )
        else:
            code = self.functions.load_file(str(source).encode(), ctypes.byref(handle), message, len(message))
        if code != OK:
            assert handle.value is None
            raise ExecutorError(code, message.value.decode(errors="replace"))
        try:
            yield Loaded(self.functions, handle)
        finally:
            self.functions.unload(handle)


class Loaded:
    """A loaded model."""

    def __init__(self, functions: _Functions, handle: ctypes.c_void_p) -> None:
        self.functions = functions
        self.handle = handle
        self.info = functions.describe(handle).contents
        self.seen: list[tuple[str, str, list[np.ndarray]]] = []  # what the last run's observer was told

    def values(self, what: str, gear: int = 0) -> list[Value]:
        """Return the descriptions of the `inputs` or `outputs` of a gear."""
        count = getattr(self.info, f"num_{what}")
        return [getattr(self.info.gears[gear], what)[index].value() for index in range(count)]

    def run(
        self, inputs: Sequence[np.ndarray], gear: int = 0, *, short: int = 0, observe: bool = False
    ) -> list[np.ndarray]:
        """Return the outputs; `short` is how many bytes each output's buffer lacks, which stay 0.

        Raises
        ------
        ExecutorError
            The run failed.
        """
        described = self.values("outputs", min(gear, self.info.num_gears - 1))
        outputs = [np.zeros(value.shape, numpy_dtype(value.dtype)) for value in described]
        given = [np.ascontiguousarray(array) for array in inputs]
        message = ctypes.create_string_buffer(1000)
        self.seen = []
        code = self.functions.run(
            self.handle, gear, _addresses(given), _byte_sizes(given), _addresses(outputs), _byte_sizes(outputs, short),
            _Observer(self._watch) if observe else _Observer(), None, message, len(message),
        )  # fmt: skip
        if code != OK:
            raise ExecutorError(code, message.value.decode(errors="replace"))
        return outputs

    def raw(self, what: str) -> list[_Tensor]:
        """Return the first gear's tensors as the interface describes them, which may be nonsense in a damaged file."""
        return [
            getattr(self.info.gears[0], what)[index] for index in range(getattr(self.info, f"num_{what}"))
        ]

    def run_bytes(self, inputs: Sequence[np.ndarray]) -> None:
        """Run the first gear on bytes, with outputs of at most 64 KiB."""
        outputs = [np.zeros(min(tensor.size, 1 << 16), np.uint8) for tensor in self.raw("outputs")]
        message = ctypes.create_string_buffer(1000)
        code = self.functions.run(
            self.handle, 0, _addresses(inputs), _byte_sizes(inputs), _addresses(outputs), _byte_sizes(outputs),
            _Observer(), None, message, len(message),
        )  # fmt: skip
        if code != OK:
            raise ExecutorError(code, message.value.decode(errors="replace"))

    def _watch(self, _: object, told: ctypes._Pointer[_Operation]) -> None:
        operation = told.contents
        arrays = []
        for index in range(operation.num_outputs):
            value = operation.outputs[index].value()
            size = int(np.prod(value.shape)) * ITEM_SIZES[value.dtype]
            data = ctypes.string_at(operation.output_data[index], size)
            arrays.append(np.frombuffer(data, numpy_dtype(value.dtype)).reshape(value.shape))
        self.seen.append((operation.name.decode(), operation.kernel.decode(), arrays))


def _addresses(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _byte_sizes(arrays: Sequence[np.ndarray], short: int = 0) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * len(arrays))(*(array.nbytes - short for array in arrays))
