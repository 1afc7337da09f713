"""OM files for the tests of aclmdl and pyACL: a few operators each, made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from cann_sim.atc import om_file
from cann_sim.atc.program import Aipp, Model, Operation, Program, Value


def add_one(*shape: int, name: str = "add", soc: str = "Ascend910B3") -> Model:
    """Return a static model: float32 `x` [*shape] -> `y` = x + 1."""
    program = _add_program(shape)
    return _model({(): program}, name=name, soc=soc)


def add_gears(kind: str, gears: list[tuple[int, ...]], shape: tuple[int, ...]) -> Model:
    """Return a model with gears: `x` + 1 with the -1 of `shape` as the gear says (all dimensions for `dims`)."""
    programs = {}
    for gear in gears:
        values = iter(gear)
        full = gear if kind == "dims" else tuple(next(values) if size < 0 else size for size in shape)
        programs[gear] = _add_program(full)
    return _model(programs, name="geared", gears=kind, described=shape)


def cast_image(height: int, width: int) -> Model:
    """Return a model with static AIPP: uint8 NHWC -> float32 NCHW, (pixel - mean) * factor."""
    shape = (1, 3, height, width)
    aipp = Aipp(
        input="x", size=(height, width), channels_swapped=True, mean=(124, 116, 104), minimum=(0, 0, 0),
        reciprocal=(0.5, 0.25, 0.125),
    )  # fmt: skip
    made = _model({(): _add_program(shape)}, name="image", aipp=(aipp,))
    return replace(made, inputs=(Value(name="x", dtype="uint8", shape=(1, height, width, 3)),))


def busy(size: int, repeats: int, name: str = "busy") -> Model:
    """Return a model that computes for a while: `repeats` products of [size, size] matrices."""
    names = ["x", *(f"v{index}" for index in range(repeats - 1)), "y"]
    values = {name: Value(name=name, dtype="float32", shape=(size, size)) for name in names}
    operations = tuple(
        Operation(
            name=f"matmul_{index}", operator="MatMul", kernel="MatMulV2", engine="AiCore",
            inputs=(names[index], "weight"), outputs=(names[index + 1],),
        )
        for index in range(repeats)
    )  # fmt: skip
    program = Program(inputs=(values["x"],), outputs=(values["y"],), values=values, operations=operations)
    return _model({(): program}, name=name, constants={"weight": np.eye(size, dtype=np.float32)})


def write(model: Model, folder: Path) -> str:
    """Write a model into a folder and return the file's path."""
    path = folder / f"{model.name}.om"
    om_file.write(model, path)
    return str(path)


def _add_program(shape: tuple[int, ...]) -> Program:
    values = {name: Value(name=name, dtype="float32", shape=shape) for name in ("x", "y")}
    add = Operation(
        name="add", operator="Add", kernel="Add", engine="AiCore", inputs=("x", "one"), outputs=("y",)
    )
    return Program(inputs=(values["x"],), outputs=(values["y"],), values=values, operations=(add,))


def _model(
    programs: dict[tuple[int, ...], Program], *, name: str, soc: str = "Ascend910B3", gears: str = "",
    described: tuple[int, ...] = (), constants: dict[str, np.ndarray] | None = None, aipp: tuple[Aipp, ...] = (),
) -> Model:  # fmt: skip
    largest = max(programs.values(), key=lambda program: int(np.prod(program.outputs[0].shape)))
    inputs = largest.inputs
    if described:
        inputs = tuple(Value(name=value.name, dtype=value.dtype, shape=described) for value in inputs)
    return Model(
        name=name, soc=soc, command="atc --model=model.onnx", opset=17, inputs=inputs, outputs=largest.outputs,
        gears=gears, programs=programs, constants=constants or {"one": np.ones(1, np.float32)}, aipp=aipp,
    )  # fmt: skip
