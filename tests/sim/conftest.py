"""Tests on the NPUs of the environment: make test-sim starts them with cann_sim's (or a card's) CANN tree."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run lines of Python in a process of their own: what the environment says is read once per process.

    Its simulated devices are its own too: what else runs on this host does not count against their memory.
    """
    if "ASCEND_HOME_PATH" not in os.environ:
        pytest.skip('no CANN tree: run it by `make test-sim`, or after eval "$(python -m cann_sim env)"')

    def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CANN_SIM_STATE": str(tmp_path), **environ},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
