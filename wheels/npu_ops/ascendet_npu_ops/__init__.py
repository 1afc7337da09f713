"""NPU kernels for operators that torch_npu sends to the CPU.

`torchvision::nms`, `torchvision::roi_align` with its gradient and `aten::repeat_interleave.Tensor` run on the NPU
once this package is installed: torch imports it by itself, as it imports torch_npu (entry point `torch.backends`).
Where that is switched off (TORCH_DEVICE_BACKEND_AUTOLOAD=0), `import ascendet_npu_ops` after torch_npu does the same.
Nothing else of torch or torchvision is touched; without torch_npu nothing is registered at all.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from ascendet_npu_ops import boxes, pooling, repeating
from ascendet_npu_ops.boxes import batched_nms

__all__ = ["batched_nms"]

_KEY = "PrivateUse1"  # the dispatch key that torch_npu names "npu"; it need not have done so yet
_KERNELS: dict[str, Callable[..., Any]] = {
    "torchvision::nms": boxes.nms,
    "torchvision::roi_align": pooling.roi_align,
    "torchvision::_roi_align_backward": pooling.roi_align_backward,
    "aten::repeat_interleave.Tensor": repeating.repeat_interleave,
}
# The kernels live as long as these.
_libraries: list[torch.library.Library] = []


def _has_kernel(operator: str) -> bool:
    """Return whether somebody else (torchvision_npu, a later torch_npu) has given the operator an NPU kernel."""
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator, _KEY))
    except RuntimeError:  # torchvision, which defines it, is not imported yet
        return False


def _register() -> None:
    for operator, kernel in _KERNELS.items():
        if not _has_kernel(operator):
            namespace, _, name = operator.partition("::")
            library = torch.library.Library(namespace, "IMPL", _KEY)
            library.impl(name, kernel)
            _libraries.append(library)


if importlib.util.find_spec("torch_npu") is not None:
    _register()
