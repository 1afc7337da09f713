"""From a checked ONNX graph to a program: constants folded, operators fused, shapes, engines and data types chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

from cann_sim.atc import fusion
from cann_sim.atc.choice import Choice, Chooser
from cann_sim.atc.errors import AtcError
from cann_sim.atc.folding import read
from cann_sim.atc.kernels import Soc
from cann_sim.atc.matching import Site
from cann_sim.atc.network import Network, Node
from cann_sim.atc.om_programs import numpy_dtype
from cann_sim.atc.precision import Precision
from cann_sim.atc.program import Attribute, Operation, Program, Value

LARGEST_HALF = 65504.0
# Casts that lose nothing: back again is the value before.
_EXACT = frozenset(
    (
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("float32", "float64"),
        ("float16", "float64"),
        ("int32", "int64"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was decided for one node of the ONNX graph.

    Attributes
    ----------
    name, operator
        The node and its ONNX operator; a cast that precision inserted has `operator` Cast and a name of its own.
    kernel, engine
        As in `Operation`; engine `Host` for what is folded away.
    inputs, outputs
        The data types that its kernel takes and gives, by position; "" for an input that is left out.
    fused_into
        The node that computes this one, too; "" if it runs itself (or is folded away).
    passes
        The fusion passes that made this node, as in fusion_result.json; only on the node that remains.
    warnings
        Codes, `W11001`: no kernel of AI Core takes these data types.
    reason
        Why engine, kernel or data type are what they are, in a sentence; "" if there is nothing to say.
    started_by
        For a node that computes in float32 in a mode that lowers precision: the node from which that spreads, which
        may be itself.
    uncertain
        Whether the public sources leave open if a card decides the same.
    """

    name: str
    operator: str
    kernel: str
    engine: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    fused_into: str = ""
    passes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reason: str = ""
    started_by: str = ""
    uncertain: bool = False


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A program for one set of shapes.

    Attributes
    ----------
    constants
        Those of the program by name, in the data types in which it uses them.
    findings
        In the order of the graph's nodes.
    sites
        Where the graph computes a LayerNorm or a GELU.
    originals
        What the graph has for the constants that are in another data type.
    """

    program: Program
    constants: dict[str, np.ndarray]
    findings: tuple[Finding, ...]
    sites: tuple[Site, ...] = ()
    originals: dict[str, np.ndarray] = field(default_factory=dict)


def lower(
    model: onnx.ModelProto, *, soc: Soc, precision: Precision, shapes: Mapping[str, tuple[int, ...]]
) -> Lowered:
    """Return the program of a model for the given shapes of its inputs.

    Raises
    ------
    AtcError
        E14001 for a node that does not take its inputs, SIM001 for a shape that depends on data and for an operator
        that is not simulated, EZ3003 for a node without a kernel, EZ3002 for data types that --customize_dtypes asks
        for and no kernel has, E10001 for bfloat16 on a SoC that has none.
    """
    if precision.canonical.endswith("bf16") and soc.family not in ("910B", "910_93"):
        reason = f"{soc.name} has no bfloat16"
        raise AtcError("E10001", parameter="--precision_mode", value=precision.mode, reason=reason)
    network = read(model, shapes)
    sites = fusion.fuse(network, soc, precision.fusion_off)
    writer = _Writer(network, Chooser(network, soc, precision), _output_types(network, precision.output_type))
    for node in network.nodes:
        writer.add(node)
    program = writer.program()
    findings = _in_order(writer.findings, network, _original_names(model))
    return Lowered(
        program=program,
        constants=writer.constants,
        findings=findings,
        sites=sites,
        originals=writer.originals,
    )


def fusion_counts(findings: tuple[Finding, ...]) -> dict[str, int]:
    """Return how often each fusion pass took effect; `fusion.UB_PASSES` are those of the unified buffer."""
    counts: dict[str, int] = {}
    for finding in findings:
        for name in finding.passes:
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


class _Writer:
    """Writes the operations of a program, with the casts between them."""

    def __init__(self, network: Network, chooser: Chooser, wanted: dict[str, str]) -> None:
        self.network, self.chooser, self.wanted = network, chooser, wanted
        self.operations: list[Operation] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.originals: dict[str, np.ndarray] = {}
        self.findings: dict[str, list[Finding]] = {}
        # what a value is called in the program, by its name in the graph and its data type
        self.names: dict[tuple[str, str], str] = {}
        # what a Cast made a value from: name and data type
        self.sources: dict[str, tuple[str, str]] = {}
        self.casts = 0
        for name in network.inputs:
            self._value(name, chooser.computed[name])

    def add(self, node: Node) -> None:
        """Choose engine and data types of a node, and write it."""
        choice = self.chooser.choose(node)
        findings = self.findings.setdefault(node.name, [])
        operator, attributes = node.operator, node.attributes
        if operator == "Cast":
            source = self._input(node.inputs[0], choice.inputs[0], findings)
            self.sources[node.outputs[0]] = (node.inputs[0], choice.inputs[0])
            if choice.engine == "Host":
                operator, attributes = "Identity", {}
                if node.outputs[0] not in self.wanted:
                    self.names[node.outputs[0], choice.outputs[0]] = source
                    findings.append(_finding(node, choice))
                    return
        inputs = [
            self._input(name, dtype, findings) if name else ""
            for name, dtype in zip(node.inputs, choice.inputs, strict=True)
        ]
        outputs = [
            self._value(name, dtype) if name else ""
            for name, dtype in zip(node.outputs, choice.outputs, strict=True)
        ]
        self._write(node.name, operator, choice.kernel, choice.engine, inputs, outputs, attributes)
        findings.append(_finding(node, choice))

    def program(self) -> Program:
        """Return the program, its outputs in the data types that are asked for."""
        outputs = tuple(self._output(name, dtype) for name, dtype in self.wanted.items())
        inputs = tuple(self.values[name] for name in self.network.inputs)
        return Program(inputs=inputs, outputs=outputs, values=self.values, operations=tuple(self.operations))

    def _output(self, name: str, dtype: str) -> Value:
        """Return the value of an output: what computes it, or else a cast or a copy that makes it."""
        if name in self.network.inputs:
            made, before = f"{name}@output", self.chooser.computed[name]
            source = name
        elif name in self.network.constants:
            made, before = name, self.network.dtypes[name]
            source = f"{name}@constant"
            self.constants[source] = self.network.constants[name]
        elif self.names.get((name, dtype)) == name:
            return self.values[name]
        else:
            made, before = name, self.chooser.computed[name]
            source = self.names[name, before]
        self.values[made] = Value(name=made, dtype=dtype, shape=self.network.shapes[name])
        self._cast(source, made, before, dtype, self.findings.setdefault(f"output {name}", []))
        return self.values[made]

    def _value(self, name: str, dtype: str) -> str:
        """Note a value that an operator computes in a data type, and return what the program calls it."""
        written = (
            f"{name}@{dtype}"
            if self.wanted.get(name, dtype) != dtype and name not in self.network.inputs
            else name
        )
        self.values[written] = Value(name=written, dtype=dtype, shape=self.network.shapes[name])
        self.names[name, dtype] = written
        return written

    def _input(self, name: str, dtype: str, findings: list[Finding]) -> str:
        """Return what the program calls a value or constant in a data type; a cast makes it if nothing else has it."""
        known = self.names.get((name, dtype))
        if known is not None:
            return known
        if name in self.network.constants:
            known = name if dtype == self.network.dtypes[name] else f"{name}@{dtype}"
            value = self.network.constants[name]
            self.constants[known] = np.asarray(_converted(value, dtype, self.chooser.soc), order="C")
            if known != name:
                self.originals[known] = value
        else:
            computed = self.chooser.computed[name]
            source = self.sources.get(name)
            if source is not None and source[1] == dtype and (dtype, computed) in _EXACT:
                known = self._input(*source, findings)
            else:
                known = name if self.wanted.get(name) == dtype else f"{name}@{dtype}"
                self.values[known] = Value(name=known, dtype=dtype, shape=self.network.shapes[name])
                self._cast(self.names[name, computed], known, computed, dtype, findings)
        self.names[name, dtype] = known
        return known

    def _cast(self, source: str, made: str, before: str, after: str, findings: list[Finding]) -> None:
        """Write a cast that is not in the graph, or a copy if the data types are the same."""
        name = f"trans_Cast_{self.casts}"
        self.casts += 1
        operator, engine = ("Identity", "Host") if before == after else ("Cast", "AiCore")
        attributes = {} if before == after else {"to": helper.np_dtype_to_tensor_dtype(numpy_dtype(after))}
        self._write(name, operator, operator, engine, [source], [made], attributes)
        reason = f"{source} is {before}"
        findings.append(
            Finding(
                name=name,
                operator=operator,
                kernel=operator,
                engine=engine,
                inputs=(before,),
                outputs=(after,),
                reason=reason,
            )
        )

    def _write(
        self, name: str, operator: str, kernel: str, engine: str, inputs: list[str], outputs: list[str],
        attributes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.operations.append(
            Operation(
                name=name,
                operator=operator,
                kernel=kernel,
                engine=engine,
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                attributes={key: _attribute(value) for key, value in attributes.items()},
            )
        )


def _converted(value: np.ndarray, dtype: str, soc: Soc) -> np.ndarray:
    """Return a constant in another data type; beyond float16's range it is what values there become on the SoC."""
    if dtype == "float16" and value.dtype != np.float16 and soc.family not in ("910B", "910_93"):
        value = np.clip(value, -LARGEST_HALF, LARGEST_HALF)
    with np.errstate(over="ignore"):
        return value.astype(numpy_dtype(dtype), copy=False)


def _attribute(value: Any) -> Attribute:
    """Return an attribute as programs hold it; a tensor with one element is its number."""
    if isinstance(value, np.ndarray):
        plain = value.reshape(-1).tolist()
        return plain[0] if len(plain) == 1 else plain
    return value  # type: ignore[no-any-return]


def _output_types(network: Network, output_type: str | Mapping[str, str]) -> dict[str, str]:
    """Return the data type of each output of the model."""
    wanted = {name: network.dtypes[name] for name in network.outputs}
    if isinstance(output_type, str):
        return {name: output_type or dtype for name, dtype in wanted.items()}
    places = {name: f"{node.name}:{i}" for node in network.nodes for i, name in enumerate(node.outputs)}
    return {
        name: output_type.get(places.get(name, ""), output_type.get(name, dtype))
        for name, dtype in wanted.items()
    }


def _finding(node: Node, choice: Choice) -> Finding:
    reason = "; ".join(filter(None, (choice.reason, node.uncertain)))
    return Finding(
        name=node.name, operator=node.operator, kernel=choice.kernel, engine=choice.engine, inputs=choice.inputs,
        outputs=choice.outputs, passes=tuple(node.passes), warnings=choice.warnings, reason=reason,
        started_by=choice.started_by, uncertain=bool(node.uncertain),
    )  # fmt: skip


def _original_names(model: onnx.ModelProto) -> list[str]:
    return [node.name or f"{node.op_type}_{index}" for index, node in enumerate(model.graph.node)]


def _in_order(findings: dict[str, list[Finding]], network: Network, names: list[str]) -> tuple[Finding, ...]:
    """Return the findings in the order of the graph's nodes, with those of nodes that fused or were folded."""
    others = {
        node.name: Finding(
            name=node.name,
            operator=node.operator,
            kernel=node.operator,
            engine="Host",
            reason="it is constant or unused",
        )
        for node in network.folded
    }
    for node in network.nodes:
        for part in node.replaced:
            others[part.name] = Finding(
                name=part.name, operator=part.operator, kernel=part.operator, engine="Host", fused_into=node.name,
                uncertain=bool(node.uncertain),
            )  # fmt: skip
    ordered: list[Finding] = []
    for name in names:
        ordered += findings.pop(name, []) or ([others[name]] if name in others else [])
    return (*ordered, *(finding for left in findings.values() for finding in left))
