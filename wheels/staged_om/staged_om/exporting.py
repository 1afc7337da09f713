"""Write PyTorch modules as stages: ONNX files that ATC reads, each compared with its module before it gets its name.

This module needs torch, onnx and ONNX Runtime; inference needs none of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from ascendet_common.checkpoints import CheckpointMismatch
from ascendet_common.errors import RunError

from staged_om.folding import fold
from staged_om.meta import Meta, Port, Stage, file_digest
from staged_om.onnx_runner import onnx_stage

CHECK = "export_check.json"
# Of an output's largest value: what another order of float32 sums may make of it in a deep network.
TOLERANCE = 1e-3
# The domain that a symbolic function gives ATC's own operators; in the file they have the standard one, see `clean`.
DOMAIN = "ascend"
# What ATC has no parser for, or no shape before the model runs (facts: CANN 8.5's list of operators).
_REFUSED = ("Einsum", "NonZero", "Loop", "Scan", "If")
_LARGEST = 2_000_000_000  # bytes of a protobuf file; a larger model's weights are beside it
Arrays = dict[str, npt.NDArray[Any]]


class ConfigInvalid(RunError):
    """A size, or a model's configuration, that cannot be exported."""

    default_name = "config-invalid"


class ExportError(RunError):
    """A module that the exporter cannot write as ONNX, or that it writes as ATC cannot read it."""

    default_name = "export-failed"


class OnnxDiffers(RunError):
    """A graph that computes something else than the module that it was made of."""

    default_name = "onnx-differs"


@dataclass(frozen=True, kw_only=True)
class Module:
    """A stage to be written.

    Attributes
    ----------
    name
        Of the stage.
    module
        Takes the inputs in their order and gives the outputs, on the CPU.
    inputs
        Names and values; what the graph is traced and compared with. The shapes are the stage's.
    outputs
        Names.
    opset
        Of the graph.
    keep_fp32
        Operators whose nodes must be computed in float32 in every precision mode, such as RoiAlign; or parts of nodes'
        names, such as `/levels/`.
    custom
        Whether the graph has ATC's own operators. ONNX Runtime cannot run it, so it is not compared.
    """

    name: str
    module: torch.nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: Sequence[str]
    opset: int
    keep_fp32: tuple[str, ...] = ()
    custom: bool = False

    def run(self) -> Arrays:
        """Return what the module gives."""
        with torch.no_grad():
            values = self.module(*self.inputs.values())
        values = values if isinstance(values, tuple) else (values,)
        return {name: value.numpy() for name, value in zip(self.outputs, values, strict=True)}


def write(stage: Module, folder: Path) -> tuple[Stage, dict[str, Any]]:
    """Write `<name>.onnx` into a folder, compared with the module.

    Returns
    -------
    stage, check
        The stage for export_meta.json; and per output the largest difference and the largest value, for
        export_check.json.

    Raises
    ------
    ExportError
        The exporter has no form for an operator, or the graph has more than one operator set or what ATC refuses.
    OnnxDiffers
        An output differs by more than `TOLERANCE`; there is no file then.
    """
    final = folder / f"{stage.name}.onnx"
    data = folder / f"{final.name}.data"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as name:
        temp = Path(name, final.name)
        graph = _export(stage, temp)
        check = {"compared": False} if stage.custom else _compare(stage, temp)
        digest = hashlib.sha256()
        data.unlink(missing_ok=True)
        for file in (temp, temp.with_name(data.name)):
            if file.exists():
                with file.open("rb") as content:
                    while block := content.read(2**20):
                        digest.update(block)
                file.rename(folder / file.name)
    made = Stage(
        name=stage.name,
        file=final.name,
        sha256=digest.hexdigest(),
        opset=stage.opset,
        inputs=_ports(graph.graph.input),
        outputs=_ports(graph.graph.output),
        keep_fp32=tuple(
            node.name
            for node in graph.graph.node
            if any(word == node.op_type or ("/" in word and word in node.name) for word in stage.keep_fp32)
        ),
    )
    return made, check


def _export(stage: Module, file: Path) -> onnx.ModelProto:
    """Write a module as ONNX, and return the graph without its weights."""
    try:
        # The exporter that traces: its graphs have one operator set and no functions, as ATC wants them. It warns that
        # it will not stay the default, and of shapes that become constants, which they shall.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            torch.onnx.export(
                stage.module,
                tuple(stage.inputs.values()),
                str(file),
                input_names=list(stage.inputs),
                output_names=list(stage.outputs),
                opset_version=stage.opset,
                dynamo=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(
            f"the stage {stage.name} cannot be written as ONNX", found=" ".join(str(error).split())[:500]
        ) from error
    model = fold(onnx.load(file))
    for left in file.parent.iterdir():  # weights beside the file, if the exporter put them there
        left.unlink()
    clean(model)
    sets = [(one.domain, one.version) for one in model.opset_import]
    if sets != [("", stage.opset)]:
        raise ExportError(
            f"the graph of {stage.name} has operator sets that ATC refuses (E16005)",
            expected=f"one, ai.onnx {stage.opset}",
            found=", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sets),
        )
    if refused := sorted(set(_refused(model.graph.node))):
        raise ExportError(
            f"the graph of {stage.name} has operators that ATC refuses", found=", ".join(refused)
        )
    onnx.save(
        model,
        file,
        save_as_external_data=model.ByteSize() > _LARGEST,
        location=f"{file.name}.data",
    )
    del model.graph.initializer[:]
    return model


def clean(model: onnx.ModelProto) -> None:
    """Make constants initializers and give ATC's own operators the standard domain, in place.

    A domain of their own would be a second operator set, which ATC refuses, and Constant and Identity nodes only hide
    what a node's inputs are.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    alias: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            constants.add(tensor.name)
        elif node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            if node.domain == DOMAIN:
                node.domain = ""
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    others = [one for one in model.opset_import if one.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(others)


def _refused(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    for node in nodes:
        mode = {one.name: one.s for one in node.attribute}.get("mode")
        if node.op_type in _REFUSED or (node.op_type == "Resize" and mode == b"cubic"):
            yield f"{node.op_type} ({node.name})"


def _ports(values: Any) -> tuple[Port, ...]:
    return tuple(
        Port(
            name=value.name,
            dtype=np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
            shape=tuple(size.dim_value for size in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


def _compare(stage: Module, file: Path) -> dict[str, Any]:
    run = onnx_stage(file, stage.outputs, threads=torch.get_num_threads())
    found = run({name: value.numpy() for name, value in stage.inputs.items()})
    rows = require_equal(f"the graph of {stage.name} and its PyTorch module", stage.run(), found)
    return {"compared": True, "tolerance": TOLERANCE, "outputs": rows}


def require_equal(what: str, expected: Arrays, found: Arrays) -> dict[str, Any]:
    """Return for each output the largest difference and the largest value, for export_check.json.

    Raises
    ------
    OnnxDiffers
        A difference is above `TOLERANCE`, relative to the output's largest value; `what` names the two sides.
    """
    rows, worst = {}, []
    for name, value in expected.items():
        difference = float(np.abs(value - found[name]).max(initial=0))
        largest = float(np.abs(value).max(initial=0))
        rows[name] = {"difference": difference, "largest": largest}
        if not difference <= TOLERANCE * max(largest, 1e-3):  # also what is no number
            worst.append(f"{name} differs by {difference:.3g}, its largest value is {largest:.3g}")
    if worst:
        raise OnnxDiffers(
            f"{what} compute different values",
            expected=f"differences up to {TOLERANCE:g} of an output's largest value",
            found="; ".join(worst),
        )
    return rows


def check_size(size: tuple[int, int], step: int) -> None:
    """Raise `ConfigInvalid` unless height and width (px) are multiples of `step`, as the model needs them."""
    if any(side % step for side in size):
        raise ConfigInvalid(
            "the model cannot take pictures of this size",
            expected=f"multiples of {step} px",
            found=f"{size[0]} x {size[1]}",
            advice={"SIZES": "x".join(str(-(-side // step) * step) for side in size)},
        )


def export_id(stages: Sequence[Stage]) -> str:
    """Return the digest of an export: of its stages' digests in their order."""
    return hashlib.sha256("".join(stage.sha256 for stage in stages).encode()).hexdigest()


def require_exported(meta: Meta, checkpoint: Path) -> None:
    """Raise `CheckpointMismatch` unless this checkpoint is the one that was exported."""
    digest = file_digest(checkpoint)
    if digest != meta.checkpoint_sha256:
        raise CheckpointMismatch(
            "the checkpoint is not the one that was exported",
            expected=f"SHA-256 {meta.checkpoint_sha256}",
            found=f"SHA-256 {digest}",
        )


def write_check(checks: Mapping[str, Any], folder: Path) -> None:
    """Write export_check.json: per stage and output the largest difference from PyTorch."""
    (folder / CHECK).write_text(json.dumps(dict(checks), indent=1) + "\n", encoding="utf-8")
