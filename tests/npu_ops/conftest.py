"""Our NPU kernels of torchvision's operators against torchvision's own on the CPU: make test-sim."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if "ASCEND_HOME_PATH" not in os.environ:
    pytest.skip(
        'no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"',
        allow_module_level=True,
    )

import torch
import torch_npu  # noqa: F401


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(20261129)
    yield
    torch.npu.synchronize()  # a failure of a queued operator belongs to the test that queued it
