"""Convert an ONNX file to an OM: the checks in the order of the real tool, one program per gear, then the file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from cann_sim.atc import aipp, checks, gears, graphs, om_file, paths
from cann_sim.atc.errors import AtcError, AtcErrors
from cann_sim.atc.footprint import byte_size
from cann_sim.atc.gears import Request, Shape
from cann_sim.atc.kernels import Soc
from cann_sim.atc.logs import LOG
from cann_sim.atc.lowering import Finding, Lowered, lower
from cann_sim.atc.options import Options
from cann_sim.atc.precision import Precision
from cann_sim.atc.program import Aipp, Model, Operation, Program, Value

Constants = dict[str, np.ndarray]


@dataclass(frozen=True)
class Converted:
    """What a conversion leaves: the OM's path and what was decided for each node, by gear."""

    path: Path
    findings: tuple[tuple[Finding, ...], ...]


def convert(options: Options, soc: Soc, request: Request, precision: Precision, output: Path) -> Converted:
    """Convert --model to `output` with .om behind it, and return where it is.

    Raises
    ------
    AtcError, AtcErrors
        What the parser, a plug-in or a kernel refuses.
    """
    path = Path(options["model"])
    model = read_checked(path, out_nodes=options["out_nodes"])
    graph = model.graph
    shapes = input_shapes(graph, request, om_name=output, cpu=options["host_env_cpu"])
    checks.check_static(model, gears=bool(request.gears.kind))
    fp16_inputs = _fp16_inputs(options["input_fp16_nodes"], graph)
    in_order = {value.name: shapes[value.name] for value in graph.input}
    pictures = _pictures(options["insert_op_conf"], in_order, fp16_inputs, request)
    # AIPP hands its result on as float16
    precision = replace(
        precision, fp16_inputs=frozenset(fp16_inputs | {picture.input for picture in pictures})
    )
    LOG.info("the model %s has %d nodes and %d weights", path, len(graph.node), len(graph.initializer))
    lowered: dict[Shape, Lowered] = {}
    constants: Constants = {}
    for size in request.gears.sizes or ((),):
        static = gears.gear_shapes(shapes, request.gears, size)
        LOG.info("gear %s: %s", size, static)
        made = lower(model, soc=soc, precision=precision, shapes=static)
        key = gears.gear_key(request.gears, size, {value.name: static[value.name] for value in graph.input})
        lowered[key] = _shared(made, constants, suffix="_".join(map(str, size)))
    om = _model(options, model, soc, request, lowered, constants, pictures, output.name)
    written = Path(paths.om_name(str(output), ranges=False, cpu=""))
    written.parent.mkdir(parents=True, exist_ok=True)
    try:
        om_file.write(om, written)
    except OSError as error:
        raise AtcError("E13004", file=written, reason=error.strerror) from error
    LOG.info("wrote %s, %d bytes", written, written.stat().st_size)
    return Converted(written, tuple(made.findings for made in lowered.values()))


def read_checked(path: Path, *, out_nodes: str = "") -> onnx.ModelProto:
    """Return the model of a file that ATC's parser takes, with `out_nodes` as its outputs.

    Raises
    ------
    AtcError, AtcErrors
        Everything of `checks`.
    """
    model = graphs.load(path)
    checks.check_model(model)
    graphs.drop_constant_inputs(model.graph)
    errors = checks.check_nodes(model) or checks.check_plugins(model)
    if errors:
        raise AtcErrors(errors)
    if out_nodes:
        graphs.choose_outputs(model.graph, out_nodes)
    graphs.drop_unused_masks(model.graph)
    return model


def input_shapes(graph: onnx.GraphProto, request: Request, *, om_name: Path, cpu: str) -> dict[str, Shape]:
    """Return the shape of every input, -1 where a gear varies; first those of --input_shape in its order.

    Raises
    ------
    AtcError
        E10016 for an unknown input, E10017 for a node, E10049 for another rank, E10050 for a size outside of a range,
        E13025 for a size of zero, and SIM001 for shapes that vary without gears, which are not simulated.
    """
    declared = {value.name: graphs.declared_shape(value) for value in graph.input}
    for name in (*request.shapes, *request.ranges):
        _check_input(name, "input_shape", graph)
    for name, pairs in request.ranges.items():
        _check_rank(name, len(pairs), declared[name])
        for size, (least, most) in zip(declared[name] or (), pairs, strict=False):
            if size > 0 and not (least <= size and (most == -1 or size <= most)):
                raise AtcError("E10050", name=name, size=size, least=least, most=most)
    shapes = {}
    for name, shape in request.shapes.items():
        _check_rank(name, len(shape), declared[name])
        shapes[name] = shape
    for name, declared_shape in declared.items():
        if 0 in (declared_shape or ()):
            raise AtcError("E13025", reason=f"the input {name} has a size of 0")
        if name not in shapes:
            if request.ranges or declared_shape is None or -1 in declared_shape:
                shown = "unknown" if declared_shape is None else ",".join(map(str, declared_shape))
                file = Path(paths.om_name(str(om_name), ranges=True, cpu=paths.checked_host("", cpu))).name
                reason = (
                    f"the shape of the input {name} ({shown}) varies; static shapes and gears are simulated, give "
                    f"--input_shape (a card's ATC would write {file})"
                )
                raise AtcError("SIM001", reason=reason)
            shapes[name] = declared_shape
    return shapes


def _check_input(name: str, option: str, graph: onnx.GraphProto) -> None:
    """Check that the model has an input of that name."""
    inputs = [value.name for value in graph.input]
    if name not in inputs:
        if any(node.name == name for node in checks.nodes_of(graph)):
            raise AtcError("E10017", opname=name, parameter=option)
        raise AtcError("E10016", opname=name, parameter=option, found=", ".join(inputs))


def _check_rank(name: str, found: int, declared: Shape | None) -> None:
    if declared is not None and len(declared) != found:
        raise AtcError("E10049", name=name, found=found, expected=len(declared))


def _fp16_inputs(text: str, graph: onnx.GraphProto) -> set[str]:
    """Return the inputs of --input_fp16_nodes."""
    names = {name.strip() for name in text.split(";") if name.strip()}
    for name in names:
        _check_input(name, "input_fp16_nodes", graph)
    return names


def _pictures(
    config: str, shapes: dict[str, Shape], fp16_inputs: set[str], request: Request
) -> tuple[Aipp, ...]:
    """Return AIPP as --insert_op_conf asks for it."""
    if not config:
        return ()
    operators = aipp.read(paths.checked_input(config, "insert_op_conf"))
    return aipp.configure(operators, shapes, fp16_inputs, image_gears=request.gears.kind == "image")


def _shared(made: Lowered, constants: Constants, *, suffix: str) -> Lowered:
    """Add a gear's constants to those of all gears, and return it with the names that they have there.

    A constant that differs between gears (a folded shape) gets `suffix` behind its name.
    """
    renamed: dict[str, str] = {}
    for name, value in made.constants.items():
        known = constants.get(name)
        if known is None:
            constants[name] = value
        elif not _same(known, value):
            renamed[name] = f"{name}@{suffix}"
            constants[renamed[name]] = value
    if not renamed:
        return Lowered(program=made.program, constants={}, findings=made.findings)
    program = made.program
    operations = tuple(
        Operation(
            name=operation.name, operator=operation.operator, kernel=operation.kernel, engine=operation.engine,
            inputs=tuple(renamed.get(name, name) for name in operation.inputs),
            outputs=operation.outputs, attributes=operation.attributes,
        )
        for operation in program.operations
    )  # fmt: skip
    changed = Program(
        inputs=program.inputs, outputs=program.outputs, values=program.values, operations=operations
    )
    return Lowered(program=changed, constants={}, findings=made.findings)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two constants are equal to the bit, NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    one, other = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (first, second))
    return np.array_equal(one, other)


def _model(
    options: Options, source: onnx.ModelProto, soc: Soc, request: Request, lowered: dict[Shape, Lowered],
    constants: Constants, pictures: tuple[Aipp, ...], name: str,
) -> Model:  # fmt: skip
    """Return the model: described with -1 where gears vary and with the outputs of the largest gear."""
    programs = {key: made.program for key, made in lowered.items()}
    largest = max(programs.values(), key=lambda program: sum(map(byte_size, program.inputs)))
    varying = request.shapes if request.gears.kind else {}
    inputs = tuple(
        Value(name=value.name, dtype=value.dtype, shape=varying.get(value.name, value.shape))
        for value in largest.inputs
    )
    return Model(
        name=name,
        soc=soc.name,
        command=options.command,
        opset=checks.opsets(source).get("ai.onnx", 0),
        inputs=inputs,
        outputs=largest.outputs,
        gears=request.gears.kind,
        programs=programs,
        constants=constants,
        aipp=pictures,
        metadata=_metadata(source.metadata_props),
    )


def _metadata(properties: Iterable[onnx.StringStringEntryProto]) -> dict[str, str]:
    """Return what the exporter wrote into the ONNX file, such as `export_id`."""
    return {entry.key: entry.value for entry in properties}
