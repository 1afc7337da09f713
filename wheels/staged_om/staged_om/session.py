"""Run the stages of an exported model through pyACL.

Stages share device buffers: where a stage's input has the name of an earlier stage's output, both data sets hold the
same memory, so features never go to the host. What host steps write and read goes through pinned memory,
asynchronously. All executions are on one stream, because a model must not run twice at the same time; copies are on a
stream per lane, and events keep the order between them. A lane is one batch in flight with buffers of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ascendet_common.errors import RunError

from staged_om.device import HUGE_FIRST, Device
from staged_om.host import HostStep, Step
from staged_om.meta import Meta, Port, Stage, file_digest

RECORD = "om.json"  # what `make om` writes beside the OM files
_TO_DEVICE, _TO_HOST = 1, 2  # ACL_MEMCPY_HOST_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST
_SYNC, _TIME_LINE = 1, 8  # ACL_EVENT_SYNC, another stream can wait for it; ACL_EVENT_TIME_LINE, it has a time
# aclDataType's numbers.
_DTYPES = {
    0: "float32", 1: "float16", 2: "int8", 3: "int32", 4: "uint8", 6: "int16", 7: "uint16",
    8: "uint32", 9: "int64", 10: "uint64", 11: "float64", 12: "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An input or output as the OM describes it; `size` is what its buffer must have, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    def __str__(self) -> str:
        """Return the data type and shape: float32[1,3,1024,1024]."""
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded OM: its id for pyACL, and its inputs and outputs in order; outputs have the names of the metadata."""

    number: int
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


class Session:
    """The loaded stages of an exported model on a device.

    Parameters
    ----------
    device
        The device, whose context the calling thread has.
    meta, steps
        The exported model, and its family's pipeline.
    folder
        The OM files and om.json.
    lanes
        How many batches can be in flight.

    Raises
    ------
    RunError
        `om-missing`: om.json or a stage's OM is not there. `om-mixed-builds`: an OM is of another export than the
        metadata. `om-other-soc`: it is for another family of SoCs than the device. `om-corrupt`: it is damaged.
        Others: see `AclError`.
    """

    def __init__(
        self, device: Device, meta: Meta, steps: Sequence[Step], folder: Path, *, lanes: int = 1
    ) -> None:
        self.device = device
        self.meta = meta
        self.steps = tuple(steps)
        self.copies = {"to device": Counter[str](), "to host": Counter[str]()}  # bytes by name
        self.batches = 0
        self.device_seconds = 0.0  # of all executions
        self._guard = threading.Lock()
        self.life = contextlib.ExitStack()
        record = read_record(folder, meta)
        check_soc(record, device.soc)
        with contextlib.ExitStack() as life:
            self.stream = device.make(life, "rt.create_stream", destroy="rt.destroy_stream")
            self.models = {stage.name: self._load(life, folder, record, stage) for stage in meta.stages}
            self.lanes = [Lane(self, life) for _ in range(lanes)]
            self.life = life.pop_all()

    def __enter__(self) -> Session:
        """Return itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Unload the models and free all memory."""
        self.life.close()

    def _load(
        self, life: contextlib.ExitStack, folder: Path, record: Mapping[str, Any], stage: Stage
    ) -> Model:
        """Load a stage's OM and compare its description with the metadata."""
        entry = record["stages"][stage.name]
        file, device = folder / entry["om"], self.device
        number = device.make(life, "mdl.load_from_file", str(file), destroy="mdl.unload")
        # After the load, which refuses a damaged file: one that loads is of another build.
        if file_digest(file) != entry["sha256"]:
            raise _mixed(
                f"{file.name} is not the file that {RECORD} describes", entry["sha256"], file_digest(file)
            )
        description = device.make(life, "mdl.create_desc", destroy="mdl.destroy_desc", status=False)
        device.call("mdl.get_desc", description, number)
        inputs, outputs = (self._slots(description, side) for side in ("input", "output"))
        shapes_in = {port.name: self._shape(port) for port in stage.inputs}
        for slot in inputs:  # the exporter drops inputs that a graph does not use
            if slot.shape != shapes_in.get(slot.name):
                expected = ", ".join(f"{port.name}{list(port.shape)}" for port in stage.inputs)
                raise _mixed(
                    f"{file.name} has other inputs than the metadata", expected, f"{slot.name} {slot}"
                )
        shapes = [slot.shape for slot in outputs]
        if shapes != [port.shape for port in stage.outputs]:
            expected = ", ".join(f"{port.name}{list(port.shape)}" for port in stage.outputs)
            raise _mixed(f"{file.name} has other outputs than the metadata", expected, str(shapes))
        # ATC names outputs after nodes, so they are known by their order.
        named = tuple(
            Slot(name=port.name, dtype=slot.dtype, shape=slot.shape, size=slot.size)
            for port, slot in zip(stage.outputs, outputs, strict=True)
        )
        return Model(number=number, inputs=inputs, outputs=named)

    def _shape(self, port: Port) -> tuple[int, ...]:
        """Return the shape that an OM describes for an input: where AIPP takes pictures as bytes, that of NHWC."""
        if port.name not in self.meta.host.get("aipp", {}):
            return port.shape
        count, channels, height, width = port.shape
        return count, height, width, channels

    def _slots(self, description: int, side: str) -> tuple[Slot, ...]:
        get, call = self.device.get, self.device.call
        return tuple(
            Slot(
                name=str(get(f"mdl.get_{side}_name_by_index", description, index)),
                dtype=_DTYPES[get(f"mdl.get_{side}_data_type", description, index)],
                shape=tuple(call(f"mdl.get_{side}_dims", description, index)["dims"]),
                size=int(get(f"mdl.get_{side}_size_by_index", description, index)),
            )
            for index in range(get(f"mdl.get_num_{side}s", description))
        )

    def count(self, direction: str, name: str, size: int) -> None:
        """Count a copy between host and device."""
        with self._guard:
            self.copies[direction][name] += size

    def count_batch(self, lane: Lane) -> None:
        """Count a batch that has run in a lane, and the time that its executions took on the device."""
        with self._guard:
            self.batches += 1
            self.device_seconds += sum(lane.milliseconds.values()) / 1e3

    def resident(self) -> dict[str, int]:
        """Return the bytes of what a stage leaves for a later stage, and no host step reads: it stays on the device."""
        read = {name for step in self.steps if isinstance(step, HostStep) for name in step.reads}
        taken = {slot.name for model in self.models.values() for slot in model.inputs}
        return {
            slot.name: slot.size
            for model in self.models.values()
            for slot in model.outputs
            if slot.name in taken - read
        }

    def launch(self, lane: Lane, stage: str) -> None:
        """Put one execution of a stage on the stream, between two events that tell its time."""
        start, end = lane.events[stage]
        inputs, outputs = lane.sets[stage]
        call = self.device.call
        with self._guard:  # another lane's execution must not come between the events
            call("rt.stream_wait_event", self.stream, lane.uploaded)
            call("rt.record_event", start, self.stream)
            call("mdl.execute_async", self.models[stage].number, inputs, outputs, self.stream)
            call("rt.record_event", end, self.stream)

    def functions(self) -> dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]]:
        """Return each stage as a function of its inputs by name that returns its outputs, copied: for comparisons."""
        lane = self.lanes[0]

        def bind(stage: Stage) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
            def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
                for slot in self.models[stage.name].inputs:
                    lane.upload(slot.name, given[slot.name])
                lane.execute(stage.name)
                ports = {port.name: port.dtype for port in stage.outputs}
                return {
                    name: value.astype(ports[name]) for name, value in lane.download(tuple(ports)).items()
                }

            return run

        return {stage.name: bind(stage) for stage in self.meta.stages}


class Lane:
    """The buffers of one batch in flight: use it from one thread at a time."""

    def __init__(self, session: Session, life: contextlib.ExitStack) -> None:
        self._session = session
        self._device = device = session.device
        self._buffers: dict[str, tuple[int, Slot]] = {}
        self._pinned: dict[str, np.ndarray] = {}
        self._dirty: set[str] = set()
        self._timed: list[str] = []
        self.milliseconds: dict[str, float] = {}  # on the device, of the last execution of each stage
        self.stream = device.make(life, "rt.create_stream", destroy="rt.destroy_stream")
        self.uploaded = self._event(life, _SYNC)
        self.events = {
            stage: (self._event(life, _TIME_LINE), self._event(life, _SYNC | _TIME_LINE))
            for stage in session.models
        }
        self.sets = {stage: self._data_sets(life, stage, model) for stage, model in session.models.items()}
        device.call("rt.record_event", self.uploaded, self.stream)

    def _event(self, life: contextlib.ExitStack, flags: int) -> int:
        # The "ex" kind can be recorded again without a reset.
        return int(self._device.make(life, "rt.create_event_ex_with_flag", flags, destroy="rt.destroy_event"))

    def _data_sets(self, life: contextlib.ExitStack, stage: str, model: Model) -> tuple[int, int]:
        """Return the data sets of a stage's inputs and outputs, over buffers that stages share by name."""
        made = []
        for slots in (model.inputs, model.outputs):
            data_set = self._device.make(
                life, "mdl.create_dataset", destroy="mdl.destroy_dataset", status=False
            )
            for slot in slots:
                pointer = self._buffer(life, stage, slot, shared=slots is model.inputs)
                buffer = self._device.make(
                    life,
                    "create_data_buffer",
                    pointer,
                    slot.size,
                    destroy="destroy_data_buffer",
                    status=False,
                )
                self._device.call("mdl.add_dataset_buffer", data_set, buffer)
            made.append(int(data_set))
        return made[0], made[1]

    def _buffer(self, life: contextlib.ExitStack, stage: str, slot: Slot, *, shared: bool) -> int:
        if slot.name in self._buffers:
            pointer, other = self._buffers[slot.name]
            if not shared:
                raise RunError(f"two stages write {slot.name}", name="om-mixed-builds")
            if (other.dtype, other.shape) != (slot.dtype, slot.shape) or other.size + 64 < slot.size:
                raise _mixed(
                    f"the stage {stage} reads {slot.name} as something else than it is", str(other), str(slot)
                )
            return pointer
        pointer = self._device.make(life, "rt.malloc", slot.size, HUGE_FIRST, destroy="rt.free")
        self._buffers[slot.name] = (pointer, slot)
        return int(pointer)

    def _host(self, name: str) -> np.ndarray:
        """Return the pinned host memory of a buffer, which is allocated at its first use."""
        if name not in self._pinned:
            slot = self._buffers[name][1]
            size = math.prod(slot.shape) * np.dtype(slot.dtype).itemsize
            life = self._session.life  # that of the constructor has been handed over to the session
            pointer = self._device.make(life, "rt.malloc_host", size, destroy="rt.free_host")
            memory = (ctypes.c_uint8 * size).from_address(pointer)
            self._pinned[name] = np.ctypeslib.as_array(memory).view(slot.dtype).reshape(slot.shape)
        return self._pinned[name]

    def upload(self, name: str, value: np.ndarray) -> None:
        """Copy a host step's array into an input of later stages; the copy runs on while this returns.

        Raises
        ------
        ValueError
            Another shape than the input has.
        """
        host = self._host(name)
        if value.shape != host.shape:
            raise ValueError(f"{name} must have the shape {host.shape}, not {value.shape}")
        if name in self._dirty:  # its last copy may not have begun
            self.wait()
        self._dirty.add(name)
        np.copyto(host, value, casting="same_kind")
        pointer, slot = self._buffers[name]
        call = self._device.call
        self._await_executions()
        call("rt.memcpy_async", pointer, slot.size, host.ctypes.data, host.nbytes, _TO_DEVICE, self.stream)
        call("rt.record_event", self.uploaded, self.stream)
        self._session.count("to device", name, host.nbytes)

    def execute(self, stage: str) -> None:
        """Put an execution on the stream, behind the copies of its inputs; it runs while this returns."""
        self._session.launch(self, stage)
        self._timed.append(stage)

    def download(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return outputs of stages that were put on the stream, when these have run.

        The arrays are the lane's pinned memory: they hold until the lane's next batch.
        """
        call = self._device.call
        self._await_executions()
        found = {}
        for name in names:
            host = self._host(name)
            pointer, _ = self._buffers[name]
            call(
                "rt.memcpy_async", host.ctypes.data, host.nbytes, pointer, host.nbytes, _TO_HOST, self.stream
            )
            self._session.count("to host", name, host.nbytes)
            found[name] = host
        self.wait()
        return found

    def wait(self) -> None:
        """Wait for all that this lane has put on streams; the time of its executions is known then."""
        call = self._device.call
        self._await_executions()
        call("rt.synchronize_stream", self.stream)
        self._dirty.clear()
        for stage in self._timed:
            self.milliseconds[stage] = float(call("rt.event_elapsed_time", *self.events[stage]))
        self._timed.clear()

    def _await_executions(self) -> None:
        """Let this lane's copies wait for the executions that it has put on the other stream."""
        if self._timed:
            last = self.events[self._timed[-1]][1]
            self._device.call("rt.stream_wait_event", self.stream, last)


# -- what is refused --


def read_record(folder: Path, meta: Meta) -> dict[str, Any]:
    """Return the content of om.json; raise `om-missing` if it is incomplete, `om-mixed-builds` if another export's."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise RunError(
            f"{folder} has no {RECORD}", name="om-missing", expected="a folder that make om made"
        ) from None
    if record["export_id"] != meta.export_id:
        raise _mixed(f"the OMs in {folder.name} are of another export", meta.export_id, record["export_id"])
    for stage in meta.stages:
        entry = record["stages"].get(stage.name)
        if entry is None or not (folder / entry["om"]).is_file():
            raise RunError(
                f"the stage {stage.name} has no OM in {folder.name}",
                name="om-missing",
                expected=", ".join(f"{one.name}.om" for one in meta.stages),
                found=", ".join(sorted(file.name for file in folder.glob("*.om"))) or "no OM",
            )
    return record


def check_soc(record: Mapping[str, Any], soc: str) -> None:
    """Raise `om-other-soc` if the OMs are for another family of SoCs than the device's."""
    if soc and family(record["soc"]) != family(soc):
        raise RunError(
            "the OMs are for another family of SoCs",
            name="om-other-soc",
            expected=f"the device's, {soc}",
            found=str(record["soc"]),
            advice={"SOC": soc, "FORCE": "1"},
        )


def family(soc: str) -> str:
    """Return the family within which OMs can be exchanged: the part of a SoC's name before its last variant.

    >>> [family(soc) for soc in ("Ascend910B3", "Ascend910_9391", "Ascend910_9362", "Ascend310P3", "Ascend910A")]
    ['910B', '910_93', '910_93', '310P', '910A']
    """
    name = soc.removeprefix("Ascend")
    return name[:6] if name.startswith("910_") else name.rstrip("0123456789")


def _mixed(what: str, expected: str, found: str) -> RunError:
    return RunError(what, name="om-mixed-builds", expected=expected, found=found)
