"""How much device memory a program takes: its values while they are alive, as an allocator with reuse packs them."""

from __future__ import annotations

import math

from cann_sim.atc.program import Model, Program, Value

ITEM_SIZES = {
    "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2,
    "int32": 4, "uint32": 4, "int64": 8, "uint64": 8, "bool": 1,
}  # fmt: skip
ALIGNMENT = 64
# Their output is their first input under another shape; on a card and in the executor they take no memory.
RENAMING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def byte_size(value: Value) -> int:
    """Return the bytes of a value's elements.

    >>> byte_size(Value(name="x", dtype="float16", shape=(2, 3)))
    12
    """
    return math.prod(value.shape) * ITEM_SIZES[value.dtype]


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment of weights and work memory.

    >>> aligned(65)
    128
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


def work_size(program: Program) -> int:
    """Return the bytes of work memory: the peak of the values that are alive at the same time.

    The model's inputs and outputs are the caller's buffers and do not count.
    """
    owners: dict[str, str] = {}
    last_use: dict[str, int] = {}
    for position, operation in enumerate(program.operations):
        for name in operation.inputs:
            last_use[owners.get(name, name)] = position
        if operation.operator in RENAMING and operation.inputs[0]:
            owners[operation.outputs[0]] = owners.get(operation.inputs[0], operation.inputs[0])
    outside = {value.name for value in (*program.inputs, *program.outputs)}
    outside |= {owners.get(name, name) for name in outside}
    alive: dict[str, int] = {}
    total = peak = 0
    for position, operation in enumerate(program.operations):
        for name in operation.outputs:
            if name and name not in owners and name not in outside:
                alive[name] = aligned(byte_size(program.values[name]))
                total += alive[name]
        peak = max(peak, total)
        for name in {owners.get(name, name) for name in (*operation.inputs, *operation.outputs)}:
            if last_use.get(name, -1) <= position:
                total -= alive.pop(name, 0)
    return peak


def model_work_size(model: Model) -> int:
    """Return the work memory of the model's largest gear in bytes."""
    return max((work_size(program) for program in model.programs.values()), default=0)


def weight_size(model: Model) -> int:
    """Return the bytes of the model's constants, each aligned to 64 bytes, as the file holds them."""
    return sum(aligned(constant.nbytes) for constant in model.constants.values())
