"""Run a pipeline's steps with functions in the place of OMs: PyTorch's wrappers, ONNX Runtime, or anything else.

The rungs of `make om-compare` below the OM differ only in their stage functions; steps, buffers and batches are those
of `staged_om.session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from staged_om.host import Batch, DeviceStep, Step
from staged_om.meta import Meta, Port, Stage

Tensors = dict[str, np.ndarray]
# A device stage: takes its inputs by name and returns its outputs by name, in the data types and shapes of its ports.
StageFunction = Callable[[Tensors], Tensors]


class PortMismatch(ValueError):
    """A tensor of a stage has another data type or shape than export_meta.json says."""


@dataclass(kw_only=True)
class Pass:
    """What one pass of a batch through the pipeline left.

    Attributes
    ----------
    batch
        The batch, with its detections.
    inputs, outputs
        The tensors of each device stage by name, by the stage's name.
    """

    batch: Batch
    inputs: dict[str, Tensors] = field(default_factory=dict)
    outputs: dict[str, Tensors] = field(default_factory=dict)


class Runner:
    """A pipeline whose device stages are functions.

    Parameters
    ----------
    meta
        The exported model.
    steps
        Those of the family's `om.pipeline(meta)`.
    stages
        A function for each of the model's device stages.
    """

    def __init__(self, meta: Meta, steps: Sequence[Step], stages: Mapping[str, StageFunction]) -> None:
        self.meta = meta
        self.steps = tuple(steps)
        self.stages = dict(stages)
        self.ports = {stage.name: stage for stage in meta.stages}

    def run(self, pictures: Sequence[np.ndarray]) -> Pass:
        """Return the detections in at most `Meta.batch` pictures, and what each stage took and gave.

        Only the outputs that a host step reads enter `Batch.values`, as float32; the others are device buffers, which
        later stages find by name.

        Raises
        ------
        PortMismatch
            A stage got or gave a tensor that does not fit its port.
        """
        done = Pass(batch=Batch(pictures=list(pictures)))
        buffers: Tensors = {}
        for step in self.steps:
            made = self.advance(step, done.batch, buffers)
            if isinstance(step, DeviceStep):
                done.inputs[step.stage] = {
                    port.name: buffers[port.name] for port in self.ports[step.stage].inputs
                }
                done.outputs[step.stage] = made
            buffers |= made
        return done

    def advance(self, step: Step, batch: Batch, buffers: Tensors) -> Tensors:
        """Run one step on a batch and the device buffers so far; return the device buffers that it writes, by name.

        Raises
        ------
        PortMismatch
            The stage got or gave a tensor that does not fit its port.
        """
        if isinstance(step, DeviceStep):
            stage = self.ports[step.stage]
            given = {port.name: buffers[port.name] for port in stage.inputs}
            bytes_in = self.meta.host.get("aipp", {})
            _check(stage.name, [port for port in stage.inputs if port.name not in bytes_in], given)
            made = self.stages[stage.name](given)
            _check(stage.name, stage.outputs, made)
            return made
        batch.values |= {name: _as_float32(buffers[name]) for name in step.reads}
        step.run(batch)
        # Copies, because a later step may change the value.
        return {name: np.array(batch.values[name], order="C") for name in step.writes}


def onnx_stages(
    meta: Meta, folder: Path, *, threads: int = 1, aipp_rounds: bool = False
) -> dict[str, StageFunction]:
    """Return the exported stages in `folder` as functions over ONNX Runtime's CPU kernels; see `onnx_stage`.

    With `aipp_rounds` they get pictures as AIPP hands them on, rounded to float16.
    """
    return {
        stage.name: _after_aipp(
            meta,
            onnx_stage(folder / stage.file, [port.name for port in stage.outputs], threads=threads),
            rounds=aipp_rounds,
        )
        for stage in meta.stages
    }


def onnx_stage(file: Path, outputs: Sequence[str], *, threads: int = 1) -> StageFunction:
    """Return an ONNX file as a function over ONNX Runtime's CPU kernels, with its fusions off.

    Fusions are off because they change results: a difference between a graph and PyTorch shall be the exporter's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Arenas keep what the largest layer took; a ViT's attention takes gigabytes for a moment.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    # The exporter drops an input that the graph does not use.
    used = {one.name for one in session.get_inputs()}
    return lambda given: dict(
        zip(
            outputs,
            session.run(outputs, {name: value for name, value in given.items() if name in used}),
            strict=True,
        )
    )


def torch_stages(meta: Meta, modules: Mapping[str, Callable[..., Any]]) -> dict[str, StageFunction]:
    """Return PyTorch's wrappers as functions over numpy arrays.

    Parameters
    ----------
    meta
        The exported model.
    modules
        By stage: takes the stage's inputs in the order of its ports, and returns its outputs in theirs, one tensor or a
        sequence of them. The family's `export.torch_stages(meta, checkpoint)` returns these.
    """
    import torch

    def wrap(stage: Stage, module: Callable[..., Any]) -> StageFunction:
        def run(given: Tensors) -> Tensors:
            with torch.inference_mode():
                made = module(*(torch.from_numpy(given[port.name]) for port in stage.inputs))
            made = (made,) if isinstance(made, torch.Tensor) else tuple(made)
            return {
                port.name: one.cpu().contiguous().numpy()
                for port, one in zip(stage.outputs, made, strict=True)
            }

        return run

    return {stage.name: _after_aipp(meta, wrap(stage, modules[stage.name])) for stage in meta.stages}


def _after_aipp(meta: Meta, run: StageFunction, *, rounds: bool = False) -> StageFunction:
    """Return a stage function that does first what AIPP does on the device."""
    return lambda given: run(after_aipp(meta, given, rounds=rounds))


def after_aipp(meta: Meta, given: Mapping[str, np.ndarray], *, rounds: bool) -> Tensors:
    """Return a stage's inputs as its graph takes them: what AIPP makes of pictures, and all else as it is.

    Parameters
    ----------
    meta
        The exported model; its `host["aipp"]` names the inputs that are pictures.
    given
        The stage's inputs by name; pictures are uint8 [n, height, width, channels].
    rounds
        Whether pictures, float32 [n, channels, height, width], are rounded to float16, in which AIPP hands them on.
    """
    facts = meta.host.get("aipp", {})

    def normalised(name: str, value: np.ndarray) -> np.ndarray:
        if name not in facts:
            return value
        if facts[name].get("swap"):
            value = value[..., ::-1]
        mean, std = (np.array(facts[name][key], np.float32) for key in ("mean", "std"))
        made = np.ascontiguousarray(((value - mean) / std).transpose(0, 3, 1, 2))
        return made.astype(np.float16).astype(np.float32) if rounds else made

    return {name: normalised(name, value) for name, value in given.items()}


def _as_float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _check(stage: str, ports: Sequence[Port], tensors: Tensors) -> None:
    for port in ports:
        value = tensors[port.name]
        if tuple(value.shape) != port.shape or value.dtype.name != port.dtype:
            raise PortMismatch(
                f"stage {stage}: {port.name} is {value.dtype.name}{list(value.shape)}, "
                f"export_meta.json says {port.dtype}{list(port.shape)}"
            )
