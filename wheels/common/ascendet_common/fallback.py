"""The gate for operators without an NPU kernel, which torch_npu computes on the CPU: slow and easily overlooked.

`NPU_FALLBACK` says what becomes of one: `warn` (the default) names the operator and its Python line in the log and in
`progress.jsonl`, from which the run's manifest has it; `error` ends the program with the error `npu-fallback`;
`allow` leaves everything to torch_npu.

torch_npu itself warns from C++, on the standard error stream, once per operator and without a line. So every operator
that would reach its fallback gets a kernel that notes who calls it and then computes it on the CPU in the same way.
Operators with an NPU kernel are not touched and cost nothing. It is the same on a card and on cann_sim.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch

from ascendet_common import progress
from ascendet_common.errors import RunError

VARIABLE = "NPU_FALLBACK"
MODES = ("warn", "error", "allow")
_KEY = "PrivateUse1"  # torch's own name of the dispatch key "npu"
_INSIDE = tuple(
    f"{os.sep}{package}{os.sep}" for package in ("torch", "torch_npu", "torchvision", "ascendet_common")
)


class FallbackError(RunError):
    """An operator without an NPU kernel, where none is allowed."""

    default_name = "npu-fallback"


class Watch:
    """The kernels of the gate. They last as long as the process.

    Attributes
    ----------
    found
        How often an operator was computed on the CPU, by its name and the Python line that called it.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.found: dict[tuple[str, str], int] = {}
        self._libraries: list[torch.library.Library] = []
        for name in falling_back():
            namespace, _, operator = name.partition("::")
            library = torch.library.Library(namespace, "IMPL", _KEY)
            library.impl(operator, _Kernel(name, self))
            self._libraries.append(library)

    def note(self, name: str) -> None:
        """Take note of a call of the operator `name`.

        Raises
        ------
        FallbackError
            Where fallbacks are errors.
        """
        line = _python_line()
        if self.mode == "error":
            raise FallbackError(
                f"{name} has no NPU kernel and would be computed on the CPU",
                expected=f"operators with NPU kernels ({VARIABLE}=error)",
                found=line,
                advice={VARIABLE: "warn"},
            )
        first = (name, line) not in self.found
        self.found[name, line] = self.found.get((name, line), 0) + 1
        if first:
            text = f"{name} has no NPU kernel and is computed on the CPU: {line}"
            print(f"{VARIABLE}: {text}", file=sys.stderr, flush=True)
            if os.environ.get("RANK", "0") == "0":  # the others do the same
                progress.write("warning", text=text, fallback={"operator": name, "line": line})


_watch: Watch | None = None


def watch() -> Watch | None:
    """Set up the gate that NPU_FALLBACK asks for, once per process, when everything that defines operators is imported.

    Returns
    -------
    Watch | None
        None without torch_npu, and with NPU_FALLBACK=allow.

    Raises
    ------
    RunError
        `usage`: NPU_FALLBACK is none of the three.
    """
    global _watch
    mode = os.environ.get(VARIABLE) or MODES[0]
    if mode not in MODES:
        raise RunError(
            f"{VARIABLE} must be one of {', '.join(MODES)}",
            name="usage",
            found=f"{VARIABLE}={mode}",
            advice={VARIABLE: MODES[0]},
        )
    if _watch is None and mode != "allow" and hasattr(torch, "npu"):
        _watch = Watch(mode)
    return _watch


def falling_back() -> Iterator[str]:
    """Yield the operators that torch_npu's CPU fallback would compute.

    Views are left out: a copy of a CPU result is none, and torch_npu refuses them by name.
    """
    for name in torch._C._dispatch_get_all_op_names():
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEY):
            continue
        table = torch._C._dispatch_dump_table(name)
        kernel = next((line for line in table.splitlines() if line.startswith(f"{_KEY}:")), "")
        if "[backend fallback]" in kernel and not _is_view(_operator(name)):
            yield name


def _operator(name: str) -> torch._ops.OpOverload[..., Any]:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found: torch._ops.OpOverload[..., Any] = getattr(
        getattr(getattr(torch.ops, namespace), packet), overload or "default"
    )
    return found


def _is_view(operator: torch._ops.OpOverload[..., Any]) -> bool:
    return any(result.alias_info and not result.alias_info.is_write for result in operator._schema.returns)


# -- one operator --


class _Kernel:
    """The NPU kernel of an operator that has none: note the call, compute on the CPU."""

    def __init__(self, name: str, watch: Watch) -> None:
        self.name = name
        self.watch = watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.watch.note(self.name)
        with torch._C._AutoDispatchBelowAutograd():
            return compute_on_cpu(_operator(self.name), args, kwargs)


def compute_on_cpu(
    operator: torch._ops.OpOverload[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Call an operator with CPU copies of its tensors; what it writes and returns is put back on the device.

    An argument that the operator writes is the one that it returns, and is resized where the operator resizes it.
    """
    schema = operator._schema
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | dict(
        kwargs
    )
    device = next((tensor.device for tensor in _tensors(given.values()) if tensor.device.type != "cpu"), None)
    device = device or given.get("device") or torch.device("npu")
    on_cpu = {name: _moved(value, torch.device("cpu")) for name, value in given.items()}
    results = operator(*list(on_cpu.values())[: len(args)], **{name: on_cpu[name] for name in kwargs})
    written = {}
    for argument in schema.arguments:
        if argument.alias_info and argument.alias_info.is_write and argument.name in given:
            _write_back(given[argument.name], on_cpu[argument.name])
            written[frozenset(argument.alias_info.before_set)] = given[argument.name]
    if not schema.returns:
        return None
    single = len(schema.returns) == 1
    returned = [
        written[frozenset(kind.alias_info.before_set)] if kind.alias_info else _moved(value, device)
        for kind, value in zip(schema.returns, [results] if single else results, strict=True)
    ]
    return returned[0] if single else tuple(returned)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _moved(value: Any, device: torch.device) -> Any:
    """Return a value with its tensors, and what names a device, on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, torch.device):
        return device
    if isinstance(value, list | tuple):
        return [_moved(item, device) for item in value]
    return value


def _write_back(original: Any, result: Any) -> None:
    for mine, theirs in zip(_tensors([original]), _tensors([result]), strict=True):
        if mine is not theirs:
            if mine.shape != theirs.shape:
                mine.resize_(theirs.shape)
            mine.copy_(theirs.to(mine.device))


# -- whose line it is --


def _python_line() -> str:
    """Return the innermost line outside of torch and torchvision; for a gradient, the line that asked for gradients."""
    line = _outside(sys._getframe(1))
    if line:
        return line
    asked = _outside(sys._current_frames().get(threading.main_thread().ident or 0))
    return f"a gradient that {asked} asks for" if asked else "no line of Python"


def _outside(frame: FrameType | None) -> str:
    while frame is not None and any(part in frame.f_code.co_filename for part in _INSIDE):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{frame.f_code.co_filename.rpartition('site-packages' + os.sep)[2]}:{frame.f_lineno}"
