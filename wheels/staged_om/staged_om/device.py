"""A device through pyACL: its life from init to finalize, and error codes as named errors with CANN's own text.

`import acl` is CANN's module or the simulated one of cann_sim; only this module imports it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ascendet_common.errors import RunError

_INITIALISED_BEFORE = 100002
# Codes of acl/error_codes of CANN 8.5 whose cause has a name of its own: a file that is missing or no OM, lost
# heartbeat and HBM ECC error, time-outs, lack of memory (host, a model's load, device).
_NAMES = {
    145002: "om-missing",
    145006: "om-corrupt",
    507010: "npu-lost",
    507054: "npu-lost",
    507014: "npu-timeout",
    507046: "npu-timeout",
    207001: "npu-out-of-memory",
    245000: "npu-out-of-memory",
    207018: "npu-out-of-memory",
}
HUGE_FIRST = 0  # ACL_MEM_MALLOC_HUGE_FIRST


class AclError(RunError):
    """A function of pyACL returned a code other than 0.

    Attributes
    ----------
    function, code
        The function's name below `acl`, and what it returned.
    """

    def __init__(self, function: str, code: int, text: str | None) -> None:
        super().__init__(
            f"acl.{function} failed with code {code}",
            name=_NAMES.get(code, "acl-failed"),
            found=(text or "").strip() or None,
        )
        self.function = function
        self.code = code


class Device:
    """A device and its context; threads that use it call `attach` first.

    Parameters
    ----------
    index
        The logical id: 0 is the first one of ASCEND_RT_VISIBLE_DEVICES.

    Raises
    ------
    AclError
        Also where there is no pyACL, as `acl-failed`.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            self._acl: Any = importlib.import_module("acl")
        except ImportError as error:
            raise RunError(
                "there is no pyACL in this environment",
                name="acl-failed",
                expected="CANN's python/site-packages on PYTHONPATH, as set_env.sh puts it there",
                found=str(error),
            ) from error
        self._functions: dict[str, Callable[..., Any]] = {}
        self._life = contextlib.ExitStack()
        with contextlib.ExitStack() as life:
            try:
                self.call("init")
                life.callback(self._quietly, "finalize")
            except AclError as error:
                if error.code != _INITIALISED_BEFORE:  # by somebody else, who finalizes it
                    raise
            self.call("rt.set_device", index)
            life.callback(self._quietly, "rt.reset_device", index)
            self.context = self.call("rt.create_context", index)
            life.callback(self._quietly, "rt.destroy_context", self.context)
            self.soc = str(self.get("get_soc_name") or "")
            self._life = life.pop_all()

    def __enter__(self) -> Device:
        """Return itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Give the device back."""
        self._life.close()

    def attach(self) -> None:
        """Make this device's context the calling thread's, which has none."""
        self.call("rt.set_context", self.context)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function that ends with a status, and return what it returns beside that: nothing, one value, a tuple.

        Raises
        ------
        AclError
            The status is not 0.
        """
        result = self.get(function, *arguments)
        *values, code = result if isinstance(result, tuple) else (result,)
        if code:
            raise AclError(function, code, self._acl.get_recent_err_msg())
        return values[0] if len(values) == 1 else tuple(values) or None

    def get(self, function: str, *arguments: Any) -> Any:
        """Call a function without a status, such as `mdl.get_num_inputs`, and return its value."""
        found = self._functions.get(function)
        if found is None:
            found = self._acl
            for part in function.split("."):
                found = getattr(found, part)
            self._functions[function] = found
        return found(*arguments)

    def make(
        self, life: contextlib.ExitStack, create: str, *arguments: Any, destroy: str, status: bool = True
    ) -> Any:
        """Create something that is destroyed when `life` ends, and return its handle.

        Parameters
        ----------
        life
            Ends in the opposite order of creation, also after an error.
        create, arguments
            The function, and what it takes.
        destroy
            The function that takes the handle.
        status
            Whether `create` returns a status; without one, a handle of 0 means that it failed.
        """
        handle = self.call(create, *arguments) if status else self.get(create, *arguments)
        if not status and not handle:
            raise AclError(create, 0, self._acl.get_recent_err_msg())
        life.callback(self._quietly, destroy, handle)
        return handle

    def _quietly(self, function: str, *arguments: Any) -> None:
        """Call a function of the end of life: on a lost device it fails, too, and the first error is the cause."""
        self.get(function, *arguments)
