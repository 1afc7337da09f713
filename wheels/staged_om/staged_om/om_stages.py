"""OMs as stage functions: one execution at a time, inputs copied in and all outputs copied out.

It is the plain way, for comparisons, where every stage's outputs are looked at; `staged_om.session` is the fast one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from staged_om.meta import Meta, Port
from staged_om.onnx_runner import StageFunction, Tensors

# aclDataType by number. bfloat16 has no numpy type.
_DTYPES = {
    0: "float32",
    1: "float16",
    2: "int8",
    3: "int32",
    4: "uint8",
    6: "int16",
    7: "uint16",
    8: "uint32",
    9: "int64",
    10: "uint64",
    11: "float64",
    12: "bool",
}
_HUGE_FIRST = 0  # ACL_MEM_MALLOC_HUGE_FIRST
_TO_DEVICE, _TO_HOST = 1, 2  # ACL_MEMCPY_HOST_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST


class AclError(RuntimeError):
    """A call of pyACL failed.

    Attributes
    ----------
    call, code
        The function, such as `mdl.execute`, and what it returned.
    """

    def __init__(self, call: str, code: int, more: str = "") -> None:
        super().__init__(f"acl.{call} returned {code}" + (f": {more}" if more else ""))
        self.call = call
        self.code = code


def check(call: str, code: int) -> None:
    """Raise AclError, with CANN's message, unless a call of pyACL returned 0."""
    if code:
        import acl

        raise AclError(call, code, (acl.get_recent_err_msg() or "").strip())


@contextlib.contextmanager
def opened(device: int = 0) -> Iterator[None]:
    """Hold a device open: `acl.init` to `acl.finalize`."""
    import acl

    check("init", acl.init())
    try:
        check("rt.set_device", acl.rt.set_device(device))
        try:
            yield
        finally:
            acl.rt.reset_device(device)
    finally:
        acl.finalize()


class OmModel:
    """A static OM with its own device buffers. The device must be open.

    Parameters
    ----------
    file
        The OM.
    inputs, outputs
        Names in the order of the model's; a pyACL name of an output is no graph's name.
    """

    def __init__(self, file: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        import acl

        self.acl: Any = acl
        self.model, code = acl.mdl.load_from_file(str(file))
        check("mdl.load_from_file", code)
        self.desc = acl.mdl.create_desc()
        check("mdl.get_desc", acl.mdl.get_desc(self.desc, self.model))
        self.inputs = [self._port("input", index, name) for index, name in enumerate(inputs)]
        self.outputs = [self._port("output", index, name) for index, name in enumerate(outputs)]
        self.sets, self.buffers = [], []
        for side, ports in (("input", self.inputs), ("output", self.outputs)):
            held = acl.mdl.create_dataset()
            for index in range(len(ports)):
                size = getattr(acl.mdl, f"get_{side}_size_by_index")(self.desc, index)
                pointer, code = acl.rt.malloc(max(size, 1), _HUGE_FIRST)
                check("rt.malloc", code)
                buffer = acl.create_data_buffer(pointer, size)
                _, code = acl.mdl.add_dataset_buffer(held, buffer)
                check("mdl.add_dataset_buffer", code)
                self.buffers.append((side, pointer, buffer))
            self.sets.append(held)

    def _port(self, side: str, index: int, name: str) -> Port:
        mdl = self.acl.mdl
        dims, code = getattr(mdl, f"get_{side}_dims")(self.desc, index)
        check(f"mdl.get_{side}_dims", code)
        dtype = _DTYPES[getattr(mdl, f"get_{side}_data_type")(self.desc, index)]
        return Port(name=name, dtype=dtype, shape=tuple(dims["dims"]))

    def __call__(self, given: Tensors) -> Tensors:
        """Return the model's outputs by name.

        Raises
        ------
        AclError
            A copy or the execution failed.
        """
        rt, util = self.acl.rt, self.acl.util
        pointers = {
            side: [one for kind, one, _ in self.buffers if kind == side] for side in ("input", "output")
        }
        for port, pointer in zip(self.inputs, pointers["input"], strict=True):
            data = np.ascontiguousarray(given[port.name], dtype=port.dtype).tobytes()
            check("rt.memcpy", rt.memcpy(pointer, len(data), util.bytes_to_ptr(data), len(data), _TO_DEVICE))
        check("mdl.execute", self.acl.mdl.execute(self.model, *self.sets))
        made = {}
        for port, pointer in zip(self.outputs, pointers["output"], strict=True):
            size = int(np.prod(port.shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize
            room, code = rt.malloc_host(max(size, 1))
            check("rt.malloc_host", code)
            try:
                check("rt.memcpy", rt.memcpy(room, size, pointer, size, _TO_HOST))
                # A copy: the bytes of ptr_to_bytes cannot be written to.
                flat = np.frombuffer(util.ptr_to_bytes(room, size), dtype=port.dtype).copy()
            finally:
                rt.free_host(room)
            made[port.name] = flat.reshape(port.shape)
        return made

    def close(self) -> None:
        """Free the buffers and unload the model."""
        for held in self.sets:
            self.acl.mdl.destroy_dataset(held)
        for _, pointer, buffer in self.buffers:
            self.acl.destroy_data_buffer(buffer)
            self.acl.rt.free(pointer)
        self.acl.mdl.destroy_desc(self.desc)
        self.acl.mdl.unload(self.model)


@contextlib.contextmanager
def loaded(meta: Meta, files: dict[str, Path]) -> Iterator[dict[str, StageFunction]]:
    """Hold the OMs of a model's stages as functions, whose outputs have the data types of export_meta.json."""
    models: list[OmModel] = []

    def open_stage(name: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> StageFunction:
        model = OmModel(files[name], [one.name for one in inputs], [one.name for one in outputs])
        models.append(model)

        def run(given: Tensors) -> Tensors:
            made = model(given)
            return {port.name: made[port.name].astype(port.dtype, copy=False) for port in outputs}

        return run

    try:
        yield {one.name: open_stage(one.name, one.inputs, one.outputs) for one in meta.stages}
    finally:
        for model in models:
            model.close()
