"""The detectron2 wheel in its stack's environment: make test-sim STACK=blendmask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

if "ASCEND_HOME_PATH" not in os.environ:
    pytest.skip(
        'no CANN tree: run it by `make test-sim STACK=blendmask`, or after eval "$(python -m cann_sim env)"',
        allow_module_level=True,
    )

# Jobs that a test starts do not meet those of other tests on this host.
if "HCCL_IF_BASE_PORT" not in os.environ:
    runtime = Path(__file__).parents[2] / "scripts" / "runtime.sh"
    os.environ["HCCL_IF_BASE_PORT"] = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source '{runtime}'; free_ports"],
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
