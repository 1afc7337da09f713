"""The programs in an OM file: little-endian, counts and lengths u32, strings in UTF-8 after a length.

`src/executor/reader.cpp` reads the same format: change both, and FORMAT.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from cann_sim.atc.footprint import ALIGNMENT, ITEM_SIZES, work_size
from cann_sim.atc.program import Aipp, Attribute, Model, Operation, Program, Value

FORMAT = 1
_DTYPES = tuple(ITEM_SIZES)  # a type's number in the file is its position


def encode(model: Model, places: dict[str, int]) -> bytes:
    """Return the partition of the programs; `places` has the offset of each constant in the partition of constants."""
    encoder = _Encoder()
    encoder.model(model, places)
    return bytes(encoder.data)


def decode(programs: memoryview, constants: memoryview) -> Model:
    """Return the model in both partitions; its constants are views of `constants`.

    Raises
    ------
    ValueError, IndexError, struct.error
        The partitions are not what `encode` writes.
    """
    return _Decoder(programs, constants).model()


class _Encoder:
    """Writes the partition of the programs."""

    def __init__(self) -> None:
        self.data = bytearray()

    def model(self, model: Model, places: dict[str, int]) -> None:
        self.count(FORMAT)
        for text in (model.name, model.soc, model.command, model.gears):
            self.text(text)
        self.count(model.opset)
        self.count(len(model.metadata))
        for key, text in model.metadata.items():
            self.text(key)
            self.text(text)
        self.values(model.inputs)
        self.values(model.outputs)
        self.count(len(model.aipp))
        for aipp in model.aipp:
            self.aipp(aipp)
        self.count(len(model.constants))
        for name, constant in model.constants.items():
            self.value(Value(name=name, dtype=constant.dtype.name, shape=constant.shape))
            self.data += struct.pack("<Q", places[name])
        self.count(len(model.programs))
        for gear, program in model.programs.items():
            self.program(gear, program)

    def count(self, number: int) -> None:
        self.data += struct.pack("<I", number)

    def text(self, text: str) -> None:
        encoded = text.encode()
        self.count(len(encoded))
        self.data += encoded

    def texts(self, texts: Iterable[str]) -> None:
        texts = list(texts)
        self.count(len(texts))
        for text in texts:
            self.text(text)

    def ints(self, numbers: Iterable[int]) -> None:
        numbers = list(numbers)
        self.data += struct.pack(f"<I{len(numbers)}q", len(numbers), *numbers)

    def floats(self, numbers: Iterable[float]) -> None:
        numbers = list(numbers)
        self.data += struct.pack(f"<I{len(numbers)}d", len(numbers), *numbers)

    def value(self, value: Value) -> None:
        self.text(value.name)
        self.data += struct.pack("<B", _DTYPES.index(value.dtype))
        self.ints(value.shape)

    def values(self, values: Iterable[Value]) -> None:
        values = list(values)
        self.count(len(values))
        for value in values:
            self.value(value)

    def aipp(self, aipp: Aipp) -> None:
        self.text(aipp.input)
        self.ints(aipp.size)
        self.data += struct.pack("<B", aipp.channels_swapped)
        for numbers in (aipp.mean, aipp.minimum, aipp.reciprocal):
            self.floats(numbers)

    def program(self, gear: tuple[int, ...], program: Program) -> None:
        self.ints(gear)
        self.data += struct.pack("<Q", work_size(program))
        self.values(program.inputs)
        self.values(program.outputs)
        self.values(program.values.values())
        self.count(len(program.operations))
        for operation in program.operations:
            for text in (operation.name, operation.operator, operation.kernel, operation.engine):
                self.text(text)
            self.texts(operation.inputs)
            self.texts(operation.outputs)
            self.count(len(operation.attributes))
            for name, attribute in operation.attributes.items():
                self.text(name)
                self.attribute(attribute)

    def attribute(self, attribute: Attribute) -> None:
        """Append a type's letter (`i`, `f`, `s`; lists `I`, `F`, `S`) and the value; an empty list is one of int."""
        match attribute:
            case int():
                self.data += struct.pack("<cq", b"i", attribute)
            case float():
                self.data += struct.pack("<cd", b"f", attribute)
            case str():
                self.data += b"s"
                self.text(attribute)
            case [*numbers] if all(isinstance(number, int) for number in numbers):
                self.data += b"I"
                self.ints(int(number) for number in numbers)
            case [*numbers] if all(isinstance(number, int | float) for number in numbers):
                self.data += b"F"
                self.floats(float(number) for number in numbers)
            case [*texts] if all(isinstance(text, str) for text in texts):
                self.data += b"S"
                self.texts(str(text) for text in texts)
            case _:
                raise ValueError(f"an attribute cannot be {attribute!r}")


class _Decoder:
    """Reads what _Encoder writes."""

    def __init__(self, data: memoryview, constants: memoryview) -> None:
        self.data = data
        self.constants = constants
        self.place = 0

    def unpack(self, form: str) -> tuple[int | float | bytes, ...]:
        fields = struct.unpack_from("<" + form, self.data, self.place)
        self.place += struct.calcsize("<" + form)
        return fields

    def integer(self, form: str) -> int:
        return int(self.unpack(form)[0])

    def count(self) -> int:
        return self.integer("I")

    def text(self) -> str:
        length = self.count()
        if length > len(self.data) - self.place:
            raise ValueError("a text ends behind the partition")
        text = bytes(self.data[self.place : self.place + length]).decode()
        self.place += length
        return text

    def texts(self) -> tuple[str, ...]:
        return tuple(self.text() for _ in range(self.count()))

    def ints(self) -> tuple[int, ...]:
        return tuple(int(number) for number in self.unpack(f"{self.count()}q"))

    def floats(self) -> tuple[float, ...]:
        return tuple(float(number) for number in self.unpack(f"{self.count()}d"))

    def value(self) -> Value:
        return Value(name=self.text(), dtype=_DTYPES[self.integer("B")], shape=self.ints())

    def values(self) -> tuple[Value, ...]:
        return tuple(self.value() for _ in range(self.count()))

    def model(self) -> Model:
        found = self.count()
        if found != FORMAT:
            raise ValueError(f"the format is {found}")
        name, soc, command, gears = (self.text() for _ in range(4))
        opset = self.count()
        metadata = {self.text(): self.text() for _ in range(self.count())}
        inputs, outputs = self.values(), self.values()
        aipp = tuple(self.aipp() for _ in range(self.count()))
        constants = dict(self.constant() for _ in range(self.count()))
        programs = dict(self.program() for _ in range(self.count()))
        return Model(
            name=name, soc=soc, command=command, opset=opset, inputs=inputs, outputs=outputs, gears=gears,
            programs=programs, constants=constants, aipp=aipp, metadata=metadata,
        )  # fmt: skip

    def aipp(self) -> Aipp:
        name, (height, width), swapped = self.text(), self.ints(), self.integer("B")
        mean, minimum, reciprocal = self.floats(), self.floats(), self.floats()
        return Aipp(
            input=name, size=(height, width), channels_swapped=bool(swapped), mean=mean, minimum=minimum,
            reciprocal=reciprocal,
        )  # fmt: skip

    def constant(self) -> tuple[str, np.ndarray]:
        value, offset = self.value(), self.integer("Q")
        size = math.prod(value.shape) * ITEM_SIZES[value.dtype]
        if offset % ALIGNMENT or offset + size > len(self.constants):
            raise ValueError(f"the constant {value.name} lies outside its partition")
        elements = np.frombuffer(self.constants[offset : offset + size], numpy_dtype(value.dtype))
        return value.name, elements.reshape(value.shape)

    def program(self) -> tuple[tuple[int, ...], Program]:
        gear = self.ints()
        self.integer("Q")  # the work memory, which follows from the program
        inputs, outputs = self.values(), self.values()
        values = {value.name: value for value in self.values()}
        operations = tuple(self.operation() for _ in range(self.count()))
        return gear, Program(inputs=inputs, outputs=outputs, values=values, operations=operations)

    def operation(self) -> Operation:
        name, operator, kernel, engine = (self.text() for _ in range(4))
        inputs, outputs = self.texts(), self.texts()
        attributes = {self.text(): self.attribute() for _ in range(self.count())}
        return Operation(
            name=name, operator=operator, kernel=kernel, engine=engine, inputs=inputs, outputs=outputs,
            attributes=attributes,
        )  # fmt: skip

    def attribute(self) -> Attribute:
        kind = self.unpack("c")[0]
        match kind:
            case b"i":
                return self.integer("q")
            case b"f":
                return float(self.unpack("d")[0])
            case b"s":
                return self.text()
            case b"I":
                return list(self.ints())
            case b"F":
                return list(self.floats())
            case b"S":
                return list(self.texts())
        raise ValueError(f"an attribute has the type {kind!r}")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return numpy's data type; `bfloat16` is that of ml_dtypes, which onnx brings along."""
    if name == "bfloat16":
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)
