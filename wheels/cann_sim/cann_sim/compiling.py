"""torch.compile on the simulated NPU: its default backend is refused with a reason instead of an accident.

torch_npu's inductor writes Triton kernels that triton-ascend compiles for an NPU's cores; nothing here can run them. On
import this module refuses the import of that part of torch_npu, which torch.compile does when it needs it; torch and
torch_npu stay as they are. libascendcl imports it in aclInit.
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
    """A finder of modules that finds none, and says why for one."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == REFUSED:
            raise ImportError(MESSAGE, name=name)
        return None


sys.meta_path.insert(0, _Refusal)
