"""The wheel of cann_sim, compiled against the torch pair of a stack."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Stack
from ascendet.envs import venv
from ascendet.supply import lockfiles

NAME = "cann_sim"


def digest() -> str:
    """Return the digest of what cann_sim is built from: not of the table that is made with it."""
    return files.digest_tree(paths.WHEELS / NAME, without={"COVERAGE.md"})


def find_inputs(stack: Stack) -> dict[str, object]:
    """Return what the wheel depends on: its sources, the torch pair, this machine."""
    return {
        "source": digest(),
        "stack": {"torch": stack.torch, "torch_npu": stack.torch_npu, "python": stack.python},
        "lock": files.digest(lockfiles.torch_lock(stack, platform.machine())),
        "machine": platform.machine(),
    }


def build(stack: Stack) -> Path:
    """Build the wheel against the torch pair in the stack's environment, unless that was done, and return its path."""
    with manifest.stage(f"wheelhouse/{NAME}", find_inputs(stack), cached=True) as stage:
        if not stage.fresh:
            compile_wheel(stack, stage.path, {})
            stage.record(stack=stack.name, simulated=False)
    return next(stage.final.glob("*.whl"))


def compile_wheel(stack: Stack, output: Path, environ: Mapping[str, str]) -> Path:
    """Compile a wheel into the folder `output`, with these variables beside ours, and return its path."""
    print("cann_sim: compiling the simulated CANN", flush=True)
    with tempfile.TemporaryDirectory(prefix="cann_sim-") as folder:
        copy = Path(folder, "cann_sim")  # setuptools writes into the source folder
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(paths.WHEELS / NAME, copy, ignore=ignored)
        command = [*venv.tools_pip(), f"--python={venv.stack_python(stack)}", "wheel", "--no-build-isolation"]
        command += ["--no-deps", "--no-index", "--wheel-dir", str(output), str(copy)]
        # torch must not load torch_npu here: that needs the CANN libraries that are only now built.
        complete = (
            {"MAX_JOBS": str(os.cpu_count() or 1)} | os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        )
        complete["PATH"] = f"{venv.stack_home(stack) / 'bin'}{os.pathsep}{complete['PATH']}"
        process.run(
            command,
            env=complete | dict(environ),
            capture=False,
            disks=[output],
            what="cann_sim does not compile",
            hint="make doctor, then make cann-sim",
        )
    return next(output.glob("*.whl"))
