"""Build the wheel of cann_sim against the torch pair of a stack."""

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
_DATE = "315532800"  # of all members, so that builds are equal: 1980, the earliest in a zip archive


def digest() -> str:
    """Return the digest of the sources of cann_sim, without what is generated with it or about it."""
    return files.digest_tree(paths.WHEELS / NAME, without={"COVERAGE.md", "DIFFERENCES.md", "wheel.toml"})


def find_inputs(stack: Stack, machine: str = platform.machine()) -> dict[str, object]:
    """Return the inputs that the wheel depends on: its sources, the torch pair, the architecture."""
    return {
        "source": digest(),
        "stack": {"torch": stack.torch, "torch_npu": stack.torch_npu, "python": stack.python},
        "lock": files.digest(lockfiles.torch_lock(stack, machine)),
        "machine": machine,
    }


def build(stack: Stack) -> Path:
    """Build the wheel against the torch pair in the stack's environment, unless it is built, and return its path."""
    with manifest.stage(f"wheelhouse/{NAME}", find_inputs(stack), cached=True) as stage:
        if not stage.fresh:
            compile_wheel(stack, stage.path, {})
            stage.record(stack=stack.name, simulated=False)
    return next(stage.final.glob("*.whl"))


def compile_wheel(stack: Stack, output: Path, environ: Mapping[str, str]) -> Path:
    """Compile a wheel into the folder `output`, with additional environment variables, and return its path."""
    print("cann_sim: compiling the simulated CANN", flush=True)
    with tempfile.TemporaryDirectory(prefix="cann_sim-") as folder:
        copy = Path(folder, "cann_sim")  # setuptools writes into the source folder
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(paths.WHEELS / NAME, copy, ignore=ignored)
        command = [*venv.tools_pip(), f"--python={venv.stack_python(stack)}", "wheel", "--no-build-isolation"]
        command += ["--no-deps", "--no-index", "--wheel-dir", str(output), str(copy)]
        # torch must not load torch_npu here, which needs the CANN libraries that are being built.
        complete = {"MAX_JOBS": str(os.cpu_count() or 1)} | os.environ
        complete |= {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "SOURCE_DATE_EPOCH": _DATE}
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
