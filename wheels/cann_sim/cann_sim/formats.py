"""Switch torch_npu's private memory formats off at level aclnn, unless the program chose them.

With them torch_npu prefers operators by ACL name whenever a tensor may have such a format (convolutions, and all that
follows them), and asks aclnn for the rest. The simulated device has no such formats, so nothing is gained by them here.
libascendcl imports this module in aclInit; torch_npu is not changed.
"""

from __future__ import annotations

import os
import sys

OPTION = "ALLOW_INTERNAL_FORMAT"  # torch.npu.config.allow_internal_format

if os.environ.get("CANN_SIM_LEVEL") != "aten":
    torch_npu = sys.modules.get("torch_npu")
    if torch_npu is not None and not torch_npu._C._npu_getOption(OPTION):
        torch_npu._C._npu_setOption({OPTION: "disable"})
