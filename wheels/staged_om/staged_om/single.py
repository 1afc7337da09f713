"""One OM alone: inputs copied in, executed, outputs copied out; for the values inside a stage (`staged_om.bisect`)."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from staged_om.device import HUGE_FIRST, Device
from staged_om.session import _DTYPES

_TO_DEVICE, _TO_HOST = 1, 2  # ACL_MEMCPY_HOST_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_HOST


def run(
    device: Device, file: Path, given: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Load an OM, run it once, and return its outputs under these names, in the order of the OM's outputs.

    Raises
    ------
    AclError
        The OM cannot be loaded or executed.
    """
    with contextlib.ExitStack() as life:
        model = device.make(life, "mdl.load_from_file", str(file), destroy="mdl.unload")
        description = device.make(life, "mdl.create_desc", destroy="mdl.destroy_desc", status=False)
        device.call("mdl.get_desc", description, model)
        sets, pointers = [], []
        for side in ("input", "output"):
            data_set = device.make(life, "mdl.create_dataset", destroy="mdl.destroy_dataset", status=False)
            sets.append(data_set)
            for index in range(device.get(f"mdl.get_num_{side}s", description)):
                size = device.get(f"mdl.get_{side}_size_by_index", description, index)
                pointer = device.make(life, "rt.malloc", max(size, 1), HUGE_FIRST, destroy="rt.free")
                buffer = device.make(
                    life, "create_data_buffer", pointer, size, destroy="destroy_data_buffer", status=False
                )
                device.call("mdl.add_dataset_buffer", data_set, buffer)
                dtype = np.dtype(_DTYPES[device.get(f"mdl.get_{side}_data_type", description, index)])
                if side == "output":
                    shape = tuple(device.call("mdl.get_output_dims", description, index)["dims"])
                    pointers.append((pointer, dtype, shape))
                    continue
                name = device.get("mdl.get_input_name_by_index", description, index)
                value = np.ascontiguousarray(given[name], dtype=dtype)
                device.call("rt.memcpy", pointer, size, value.ctypes.data, value.nbytes, _TO_DEVICE)
        device.call("mdl.execute", model, *sets)
        made = {}
        for name, (pointer, dtype, shape) in zip(names, pointers, strict=True):
            size = math.prod(shape) * dtype.itemsize
            host = device.make(life, "rt.malloc_host", max(size, 1), destroy="rt.free_host")
            device.call("rt.memcpy", host, size, pointer, size, _TO_HOST)
            memory = (ctypes.c_uint8 * size).from_address(host)
            made[name] = np.frombuffer(memory, dtype=dtype).reshape(shape).copy()
        return made
