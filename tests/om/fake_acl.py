"""A labelled fake of pyACL, for what the simulated one cannot do: fail at any chosen call, and count what is left.

It does everything at once, so it shows nothing about the order on streams; tests of that use cann_sim's `acl`. A model
file is JSON: its inputs and outputs; an execution adds up all inputs and fills every output with the mean.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

FAULT = 507899
NUMBERS = {"float32": 0, "float16": 1, "int32": 3, "uint8": 4, "int64": 9}
HANDLES = itertools.count(1000)


class FakeAcl:
    """What `import acl` gives: attributes `rt` and `mdl`, and functions.

    Attributes
    ----------
    alive
        What was created and not destroyed, by handle: the name of the function.
    fail_at
        The number of the call that returns `code` instead of being done; None for none.
    lost
        Whether all later calls fail, too, as on a device that is lost.
    calls
        The names of the calls so far.
    """

    def __init__(self, soc: str = "Ascend910B3") -> None:
        self.alive: dict[int, str] = {}
        self.fail_at: int | None = None
        self.lost = False
        self.code = FAULT
        self.calls: list[str] = []
        self.soc = soc
        self.started = False
        self._memory: dict[int, Any] = {}
        self._models: dict[int, dict[str, Any]] = {}
        self._descriptions: dict[int, dict[str, Any]] = {}
        self._buffers: dict[int, tuple[int, int]] = {}
        self._sets: dict[int, list[int]] = {}
        self.rt = SimpleNamespace()
        self.mdl = SimpleNamespace()
        for kind, plain in (
            ("stream", "create_stream"),
            ("context", "create_context"),
            ("event", "create_event_ex_with_flag"),
        ):
            self._add(self.rt, plain, self._creator(plain))
            self._add(self.rt, f"destroy_{kind}", self._destroy)
        for name in ("set_device", "reset_device", "set_context", "record_event", "stream_wait_event"):
            self._add(self.rt, name, lambda *_: 0)
        self._add(self.rt, "synchronize_stream", lambda _: 0)
        self._add(self.rt, "event_elapsed_time", lambda *_: (1.5, 0))
        self._add(self.rt, "malloc", lambda size, _: self._allocate("malloc", size))
        self._add(self.rt, "malloc_host", lambda size: self._allocate("malloc_host", size))
        self._add(self.rt, "free", self._destroy)
        self._add(self.rt, "free_host", self._destroy)
        self._add(self.rt, "memcpy_async", self._copy)
        for name in ("load_from_file", "unload", "get_desc", "execute_async"):
            self._add(self.mdl, name, getattr(self, f"_{name}"))
        self._add(self.mdl, "create_desc", lambda: self._new("create_desc"))
        self._add(self.mdl, "destroy_desc", self._destroy)
        self._add(self.mdl, "create_dataset", lambda: self._new("create_dataset"))
        self._add(self.mdl, "destroy_dataset", self._destroy)
        self._add(self.mdl, "add_dataset_buffer", self._add_buffer)
        for side in ("input", "output"):
            self._describe(side)

    # -- functions of acl itself --

    def init(self) -> int:
        self.started = True
        return 0

    def finalize(self) -> int:
        self.started = False
        return 0

    def get_soc_name(self) -> str:
        return self.soc

    def get_recent_err_msg(self) -> str:
        return "E19999: the fake was told to fail"

    def create_data_buffer(self, pointer: int, size: int) -> int:
        return self._counted("create_data_buffer", lambda: self._new_buffer(pointer, size), 0)

    def destroy_data_buffer(self, handle: int) -> int:
        return self._destroy(handle)

    # -- how --

    def _counted(self, name: str, call: Callable[[], Any], failed: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        fails = self.fail_at is not None and (number == self.fail_at or (self.lost and number > self.fail_at))
        return failed if fails else call()

    def _add(self, where: SimpleNamespace, name: str, function: Callable[..., Any]) -> None:
        def call(*arguments: Any) -> Any:
            if name.startswith(
                ("destroy_", "free", "unload", "reset_")
            ):  # the end of life is not made to fail
                return function(*arguments)
            without_status = name in ("create_desc", "create_dataset")
            pair = name.startswith(("create_", "malloc", "load_", "event_elapsed", "add_"))
            failed: Any = 0 if without_status else (0, self.code) if pair else self.code
            return self._counted(name, lambda: function(*arguments), failed)

        setattr(where, name, call)

    def _new(self, name: str) -> int:
        handle = next(HANDLES)
        self.alive[handle] = name
        return handle

    def _creator(self, name: str) -> Callable[..., tuple[int, int]]:
        return lambda *_: (self._new(name), 0)

    def _destroy(self, handle: int) -> int:
        del self.alive[handle]
        self._memory.pop(handle, None)
        return 0

    def _allocate(self, name: str, size: int) -> tuple[int, int]:
        memory = (ctypes.c_uint8 * size)()
        pointer = ctypes.addressof(memory)
        self._memory[pointer] = memory
        self.alive[pointer] = name
        return pointer, 0

    def _new_buffer(self, pointer: int, size: int) -> int:
        handle = self._new("create_data_buffer")
        self._buffers[handle] = (pointer, size)
        return handle

    @staticmethod
    def _copy(to: int, room: int, source: int, size: int, *_: int) -> int:
        if size > room:
            return 107000
        ctypes.memmove(to, source, size)
        return 0

    def _load_from_file(self, path: str) -> tuple[int, int]:
        if not path.endswith(".om") or not Path(path).is_file():
            return 0, 145002
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError:
            return 0, 145006
        handle = self._new("load_from_file")
        self._models[handle] = content
        return handle, 0

    def _unload(self, handle: int) -> int:
        return self._destroy(handle)

    def _get_desc(self, description: int, model: int) -> int:
        self._descriptions[description] = self._models[model]
        return 0

    def _add_buffer(self, data_set: int, buffer: int) -> tuple[int, int]:
        self._sets.setdefault(data_set, []).append(buffer)
        return data_set, 0

    def _describe(self, side: str) -> None:
        def port(description: int, index: int) -> dict[str, Any]:
            return self._descriptions[description][f"{side}s"][index]

        def size(description: int, index: int) -> int:
            one = port(description, index)
            return math.prod(one["shape"]) * np.dtype(one["dtype"]).itemsize

        mdl = self.mdl
        setattr(mdl, f"get_num_{side}s", lambda description: len(self._descriptions[description][f"{side}s"]))
        setattr(mdl, f"get_{side}_name_by_index", lambda *at: port(*at)["name"])
        setattr(mdl, f"get_{side}_data_type", lambda *at: NUMBERS[port(*at)["dtype"]])
        setattr(mdl, f"get_{side}_size_by_index", size)
        setattr(mdl, f"get_{side}_dims", lambda *at: ({"dims": port(*at)["shape"]}, 0))

    def _execute_async(self, model: int, inputs: int, outputs: int, _: int) -> int:
        content = self._models[model]
        arrays: dict[str, list[np.ndarray]] = {}
        for side, data_set in (("inputs", inputs), ("outputs", outputs)):
            arrays[side] = []
            for one, handle in zip(content[side], self._sets[data_set], strict=True):
                pointer, size = self._buffers[handle]
                memory = (ctypes.c_uint8 * size).from_address(pointer)
                arrays[side].append(np.frombuffer(memory, one["dtype"]).reshape(one["shape"]))
        mean = float(np.mean([array.mean() for array in arrays["inputs"]]))
        for number, array in enumerate(arrays["outputs"]):
            array[...] = mean + number
        return 0
