"""From a checked ONNX graph to a program: constants folded, shapes static, operators fused, engine and data type chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from cann_sim.atc.kernels import Soc
from cann_sim.atc.precision import Precision
from cann_sim.atc.program import Program


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
    """A program for one set of shapes, its constants by name, and the findings in the order of the graph's nodes."""

    program: Program
    constants: dict[str, np.ndarray]
    findings: tuple[Finding, ...]


def lower(
    model: onnx.ModelProto, *, soc: Soc, precision: Precision, shapes: Mapping[str, tuple[int, ...]]
) -> Lowered:
    """Return the program of a model for the given shapes of its inputs.

    Raises
    ------
    AtcError
        E14001 for a node whose shape depends on data or does not fit, EZ3003 for one without a kernel, EZ3002 for
        data types that --customize_dtypes asks for and no kernel has.
    """
    raise NotImplementedError


def fusion_counts(findings: tuple[Finding, ...]) -> dict[str, int]:
    """Return how often each fusion pass took effect, by its name."""
    counts: dict[str, int] = {}
    for finding in findings:
        for name in finding.passes:
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
