"""Tests of wheels/vitdet on the CPU, in a stack's environment: make test-models.

They must neither need nor touch a device, real or simulated: torch_npu is kept out of the process.
"""

import ctypes
import importlib.metadata
import os
import sys

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
sys.modules["torch_npu"] = None  # mmengine tries to import it, and then every tensor type knows NPUs

import pytest  # noqa: E402
import torch  # noqa: E402

# mmcv's NPU build needs the library, which importing torch_npu would have loaded.
_LIBRARY = importlib.metadata.distribution("torch_npu").locate_file("torch_npu/lib/libtorch_npu.so")
ctypes.CDLL(str(_LIBRARY), mode=ctypes.RTLD_GLOBAL)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # two on a busy machine wait for each other
