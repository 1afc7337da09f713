"""Which engine runs a node, and in which data types: ATC's precision modes over the kernels that a SoC has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cann_sim.atc.errors import AtcError
from cann_sim.atc.kernels import (
    CUBE,
    FLOATS,
    LETTERS,
    VIEWS,
    Combination,
    Kernel,
    Soc,
    ge_name,
    given,
    kernel,
    letter,
    taken,
)
from cann_sim.atc.network import Array, Network, Node
from cann_sim.atc.om_programs import numpy_dtype
from cann_sim.atc.precision import Precision

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs a node, and in which data types; `inputs` and `outputs` as in the node, "" for what is left out."""

    kernel: str
    engine: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    reason: str = ""
    started_by: str = ""


class Chooser:
    """Chooses engine and data types node by node, in the order of the graph.

    Attributes
    ----------
    computed
        The data type that each value has in the program, which may differ from the graph's.
    started
        Of values that are float32 where the mode lowers precision: the node or input from which that spreads.
    """

    def __init__(self, network: Network, soc: Soc, precision: Precision) -> None:
        self.network, self.soc, self.precision = network, soc, precision
        self.mode = precision.canonical
        self.low = "bfloat16" if self.mode == "allow_mix_precision_bf16" else "float16"
        self.lowers = self.mode == "force_fp16" or self.mode.startswith("allow_mix")
        self.computed: dict[str, str] = {}
        self.started: dict[str, str] = {}
        for name in network.inputs:
            dtype = network.dtypes[name]
            self.computed[name] = "float16" if name in precision.fp16_inputs and dtype in FLOATS else dtype
            if self.lowers and self.computed[name] == "float32":
                self.started[name] = name

    def choose(self, node: Node) -> Choice:
        """Return the choice for the next node, and note the data types of its outputs.

        Raises
        ------
        AtcError
            EZ3003 for a node without a kernel, EZ3002 for data types of --customize_dtypes that no kernel has.
        """
        choice = self._choice(node)
        for name, dtype in zip(node.outputs, choice.outputs, strict=True):
            if name:
                self.computed[name] = dtype
                if dtype == "float32" and choice.started_by:
                    self.started[name] = choice.started_by
        return choice

    def _choice(self, node: Node) -> Choice:
        shapes = [self.network.shapes[name] if name else None for name in node.inputs]
        operator = ge_name(node.operator, node.domain, node.attributes, shapes)
        origin = [self.network.dtypes[name] if name else "" for name in node.inputs]
        results = [self.network.dtypes[name] if name else "" for name in node.outputs]
        if node.operator in VIEWS:
            return self._view(node, operator, origin, results)
        if node.operator == "Cast":
            return self._cast(node, origin, results)
        library = kernel(self.soc, operator)
        if library is None:
            raise self._without_kernel(node, operator, origin)
        request = _Request(self, node, operator, origin, results)
        custom = self._named(node, operator, self.precision.customize_dtypes)
        if custom is not None:
            return self._customized(request, library, custom)
        why = ""
        for dtype, out, reason in self._preferences(node, operator, library):
            found = request.best(library, dtype, out)
            if found is not None:
                return self._on_core(request, found, reason or why)
            why = why or f"no kernel of AI Core takes {dtype or 'these data types'}"
        if library.on_cpu:
            reason = f"AI Core has no {operator} for {', '.join(filter(None, origin)) or 'these data types'}"
            return Choice(
                kernel=operator, engine="AiCpu", inputs=tuple(origin), outputs=tuple(results), warnings=("W11001",),
                reason=reason, started_by=node.name if self.lowers and "float32" in results else "",
            )  # fmt: skip
        raise self._without_kernel(node, operator, origin)

    def _view(self, node: Node, operator: str, origin: list[str], results: list[str]) -> Choice:
        """Return the choice for another view of the first input: its data type goes through."""
        first = self.computed.get(node.inputs[0], origin[0]) if origin[0] in FLOATS else origin[0]
        started = self.started.get(node.inputs[0], "")
        return Choice(
            kernel=operator,
            engine="Host",
            inputs=(first, *origin[1:]),
            outputs=(first, *results[1:]),
            started_by=started,
        )

    def _cast(self, node: Node, origin: list[str], results: list[str]) -> Choice:
        """Return the choice for a Cast of the graph: it gives what it says."""
        now = self.computed.get(node.inputs[0], origin[0])
        started = node.name if self.lowers and results[0] == "float32" else ""
        if now == results[0]:
            return Choice(
                kernel="Cast", engine="Host", inputs=(now,), outputs=(now,), reason="its input has that type already",
                started_by=self.started.get(node.inputs[0], started),
            )  # fmt: skip
        combination = letter(now) + ">" + letter(results[0])
        library = kernel(self.soc, "Cast")
        on_core = library is not None and any(
            f"{found.inputs}>{found.outputs}" == combination for found in library.combinations
        )
        return Choice(
            kernel="Cast", engine="AiCore" if on_core else "AiCpu", inputs=(now,), outputs=(results[0],),
            warnings=() if on_core else ("W11001",), started_by=started,
            reason="" if on_core else f"AI Core casts no {now} to {results[0]}",
        )  # fmt: skip

    def _preferences(self, node: Node, operator: str, library: Kernel) -> list[tuple[str, str, str]]:
        """Return data types in the order in which the mode tries them: of the inputs, of the output, and why.

        An empty type of the output is that of the inputs; an empty type of the inputs means that none is a float.
        """
        floats = [self.network.dtypes[name] for name in (*node.inputs, *node.outputs) if name]
        own = next((dtype for dtype in floats if dtype in FLOATS), "")
        if not own:
            return [("", "", "")]
        kept = [(own, "", ""), *([("float32", "", "it is more exact")] if own == "float16" else [])]
        if self.mode == "must_keep_origin_dtype":
            return kept
        if self._named(node, operator, dict.fromkeys(self.precision.keep_dtype, True)):
            return [(dtype, out, "--keep_dtype names it") for dtype, out, _ in kept]
        low, high, half = (self.low, "", ""), ("float32", "", ""), ("float16", "", "")
        if self.mode == "force_fp16":
            return [low, high]
        if self.mode == "force_fp32":
            return [high, low]
        if self.mode == "cube_fp16in_fp32out":
            return [("float16", "float32", ""), high, low] if operator in CUBE else [high, low]
        if self.mode == "allow_fp32_to_fp16":
            return [low, high] if operator in CUBE else [(own, "", ""), low, high]
        return [*self._mixed(node, own, self.precision.changed_list(operator, library.mixlist)), half]

    def _mixed(self, node: Node, own: str, listed: str) -> list[tuple[str, str, str]]:
        low, kept = (self.low, "", ""), (own, "", "")
        if listed == "white":
            return [low, kept]
        if listed == "black":
            return [(own, "", "it is on the black list"), low]
        before = [
            self.computed[name]
            for name in node.inputs
            if name in self.computed and self.computed[name] in FLOATS
        ]
        if before and all(dtype == self.low for dtype in before):
            return [low, kept]
        return [kept, low]

    def _on_core(
        self, request: _Request, found: tuple[tuple[str, ...], tuple[str, ...]], reason: str
    ) -> Choice:
        inputs, outputs = found
        node = request.node
        started = ""
        if self.lowers and "float32" in outputs:
            spread = [self.started[name] for name in node.inputs if name in self.started]
            started = node.name if reason or not spread else spread[0]
        return Choice(
            kernel=request.operator,
            engine="AiCore",
            inputs=inputs,
            outputs=outputs,
            reason=reason,
            started_by=started,
        )

    def _customized(
        self, request: _Request, library: Kernel, custom: tuple[tuple[str, ...], tuple[str, ...]]
    ) -> Choice:
        for combination in library.combinations:
            found = request.assigned(combination)
            if found is not None and all(
                not have or have == asked
                for asked, have in (
                    *zip(custom[0], found[0], strict=False),
                    *zip(custom[1], found[1], strict=False),
                )
            ):
                return self._on_core(request, found, "--customize_dtypes says so")
        reason = f"--customize_dtypes asks for {', '.join(custom[0])} in and {', '.join(custom[1])} out"
        raise AtcError(
            "EZ3002", soc=self.soc.name, opname=request.node.name, optype=request.operator, reason=reason
        )

    def _named(self, node: Node, operator: str, table: Mapping[str, Value]) -> Value | None:
        """Return what a table has for a node's name, for those of the nodes fused into it, or for its type."""
        names = (
            node.name,
            *(other.name for other in node.replaced),
            f"OpType::{operator}",
            f"OpType::{node.operator}",
        )
        return next((table[name] for name in names if name in table), None)

    def _without_kernel(self, node: Node, operator: str, origin: list[str]) -> AtcError:
        types = ", ".join(filter(None, origin)) or "no input"
        reason = f"{node.name} ({operator}) has {types}"
        solution = "Change the operator or its data types"
        library = kernel(self.soc, operator)
        if "float32" in origin and library and any("h" in found.inputs for found in library.combinations):
            solution += "; it has a float16 kernel, which --precision_mode=force_fp16 takes"
        return AtcError("EZ3003", soc=self.soc.name, reason=reason, solution=solution)


@dataclass(frozen=True)
class _Request:
    """A node that looks for a combination of data types: what its tensors have in the graph."""

    chooser: Chooser
    node: Node
    operator: str
    origin: list[str]
    results: list[str]

    def best(self, library: Kernel, dtype: str, out: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Return the inputs' and outputs' types of the combination nearest to `dtype`, if its first float is that."""
        chosen, points = None, -1.0
        for combination in library.combinations:
            found = self.assigned(combination)
            if found is None:
                continue
            pairs = (*zip(self.origin, found[0], strict=True), *zip(self.results, found[1], strict=True))
            takes = [have for own, have in pairs if own in FLOATS and have in FLOATS]
            used = set(taken(self.operator, len(self.origin)))
            firsts = [
                have
                for i, (own, have) in enumerate(zip(self.origin, found[0], strict=True))
                if own in FLOATS and i in used
            ]
            gives = [have for own, have in zip(self.results, found[1], strict=True) if own in FLOATS]
            if dtype and next(iter((*firsts, *gives)), dtype) != dtype:
                continue
            if gives and gives[0] != (out or dtype) and (out or not firsts):
                continue
            score = sum(have == dtype for have in takes) + 0.5 * sum(
                own == have for own, have in pairs if own not in FLOATS
            )
            if gives and gives[0] == (out or dtype):
                score += len(pairs)
            if score > points:
                chosen, points = found, score
        return chosen

    def assigned(self, combination: Combination) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Return the types that a combination gives the node's inputs and outputs, None if it does not fit."""
        positions = taken(self.operator, len(self.origin))
        letters = combination.input_letters(len(positions))
        places = given(self.operator, len(self.results))
        results = combination.output_letters(max(places, default=-1) + 1)
        if letters is None or results is None:
            return None
        inputs = list(self.origin)
        for position, code in zip(positions, letters, strict=True):
            own = self.origin[position]
            if own:
                dtype = self._input(position, own, code)
                if dtype is None:
                    return None
                inputs[position] = dtype
        outputs = []
        for own, place in zip(self.results, places, strict=True):
            dtype = self._output(own, results[place]) if own else ""
            if dtype is None:
                return None
            outputs.append(dtype)
        return tuple(inputs), tuple(outputs)

    def _input(self, position: int, own: str, code: str) -> str | None:
        if code == "n":
            return own if own in ("int32", "int64") else None
        dtype = LETTERS[code]
        if dtype == own or (own in FLOATS and dtype in FLOATS):
            return dtype
        value = self.chooser.network.constants.get(self.node.inputs[position])
        if value is None or own == "bool" or dtype == "bool":
            return None
        return dtype if keeps_values(value, dtype) else None

    def _output(self, own: str, code: str) -> str | None:
        if code == "n":
            return own if own in ("int32", "int64") else None
        dtype = LETTERS[code]
        # a cast to int64 follows a kernel that counts in int32
        same = dtype == own or (own in FLOATS and dtype in FLOATS) or (own, dtype) == ("int64", "int32")
        return dtype if same else None


def keeps_values(value: Array, dtype: str) -> bool:
    """Return whether a constant of integers has the same values in another data type.

    >>> keeps_values(np.array([2**31]), "int32"), keeps_values(np.array([7]), "int32")
    (False, True)
    """
    if value.dtype.kind not in "iu":
        return False
    changed = value.astype(numpy_dtype(dtype))
    return bool(np.array_equal(changed.astype(np.float64), value.astype(np.float64)))
