"""Refuse torch.compile's default backend on the simulated NPU, with a message that gives the reason.

torch_npu's inductor generates Triton kernels that triton-ascend compiles for the cores of an NPU; nothing here can run
them. Importing this module makes the import of `torch_npu._inductor` fail, which torch.compile needs for that backend;
torch and torch_npu are not changed. libascendcl imports this module in aclInit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

REFUSED = "torch_npu._inductor"
MESSAGE = (
    "cann_sim does not simulate torch.compile's default backend: torch_npu's inductor compiles Triton kernels for an "
    'NPU (triton-ascend), and there is none. Use torch.compile(..., backend="eager") or "aot_eager", which '
    "trace and run the same operators; or switch compilation off with TORCHDYNAMO_DISABLE=1."
)


class _Refusal:
    """A module finder that finds nothing, and raises ImportError with the reason for one module."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == REFUSED:
            raise ImportError(MESSAGE, name=name)
        return None


sys.meta_path.insert(0, _Refusal)
