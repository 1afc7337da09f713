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
from staged_om.meta import Meta, Stage

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
            if isinstance(step, DeviceStep):
                stage = self.ports[step.stage]
                given = {port.name: self._normalised(port.name, buffers[port.name]) for port in stage.inputs}
                _check(stage, given, "input")
                done.inputs[stage.name] = given
                made = self.stages[stage.name](dict(given))
                _check(stage, made, "output")
                done.outputs[stage.name] = made
                buffers |= made
                continue
            done.batch.values |= {name: _as_float32(buffers[name]) for name in step.reads}
            step.run(done.batch)
            for name in step.writes:
                buffers[name] = np.array(
                    done.batch.values[name], order="C"
                )  # later steps may change the value
        return done

    def _normalised(self, name: str, value: np.ndarray) -> np.ndarray:
        """Do to an input what AIPP does on the device, if it takes pictures as bytes [n, height, width, channels]."""
        facts = self.meta.host.get("aipp", {}).get(name)
        if facts is None:
            return value
        if facts.get("swap"):
            value = value[..., ::-1]
        values = (value - np.array(facts["mean"], np.float32)) / np.array(facts["std"], np.float32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def onnx_stages(meta: Meta, folder: Path, *, threads: int = 1) -> dict[str, StageFunction]:
    """Return the exported stages in `folder` as functions over ONNX Runtime's CPU kernels; see `onnx_stage`."""
    return {
        stage.name: onnx_stage(folder / stage.file, [port.name for port in stage.outputs], threads=threads)
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

    return {stage.name: wrap(stage, modules[stage.name]) for stage in meta.stages}


def _as_float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _check(stage: Stage, tensors: Tensors, what: str) -> None:
    for port in stage.inputs if what == "input" else stage.outputs:
        value = tensors[port.name]
        if tuple(value.shape) != port.shape or value.dtype.name != port.dtype:
            raise PortMismatch(
                f"stage {stage.name}: {what} {port.name} is {value.dtype.name}{list(value.shape)}, "
                f"export_meta.json says {port.dtype}{list(port.shape)}"
            )
