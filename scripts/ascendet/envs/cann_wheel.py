"""The wheel of cann_sim, compiled against the torch pair of a stack."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, process
from ascendet.core.stack import Stack
from ascendet.envs import venv


def digest() -> str:
    """The digest of what cann_sim is built from: not the table that is made with it."""
    return files.digest_tree(paths.WHEELS / "cann_sim", without={"COVERAGE.md"})


def build(stack: Stack, inputs: Mapping[str, object]) -> Path:
    """Build the simulated CANN's wheel against the torch pair in the stack's environment; its path."""
    with manifest.stage("wheelhouse/cann_sim", inputs, cached=True) as stage:
        if not stage.fresh:
            compile_wheel(stack, stage.path, {})
            stage.record(stack=stack.name, simulated=False)
    return next(stage.final.glob("*.whl"))


def compile_wheel(stack: Stack, output: Path, environ: Mapping[str, str]) -> Path:
    """Compile the simulated CANN into a wheel in the folder `output`, with more variables if need be; its path."""
    print("cann_sim: compiling the simulated CANN", flush=True)
    with tempfile.TemporaryDirectory(prefix="cann_sim-") as folder:
        copy = Path(folder, "cann_sim")  # setuptools writes into the source folder
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(paths.WHEELS / "cann_sim", copy, ignore=ignored)
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
