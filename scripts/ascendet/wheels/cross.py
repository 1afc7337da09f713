"""Prepare a stack for another architecture: its locked wheels, its simulated CANN, and a target to compile for.

The locks hold the hashes of all files for both architectures, so the other architecture's site-packages can be
installed here, for a cross compiler. Its programs can run on this machine only under emulation.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ascendet.core import files, manifest
from ascendet.core.stack import Stack
from ascendet.envs import activation, cann_wheel, venv
from ascendet.machine import arch
from ascendet.supply import lockfiles
from ascendet.wheels import sdists, toolchain


def add_machine_option(parser: argparse.ArgumentParser) -> None:
    """Add `--machine`, the architecture to work for."""
    parser.add_argument(
        "--machine",
        type=arch.parse,
        default="",
        help=f"the architecture, {' or '.join(arch.KNOWN)}; by default this machine's",
    )


def target(stack: Stack, machine: str) -> toolchain.Target:
    """Return the target to compile for: the stack's environment, or for another architecture its locked wheels.

    CPython's headers are this machine's: on 64-bit Linux, architectures differ only in pyconfig.h's description of long
    double, which no extension module reads.

    Raises
    ------
    AscendetError
        `usage`: the locks do not cover the architecture.
    """
    here = toolchain.host_target(stack)
    if machine == here.machine:
        return here
    machine = arch.parse(machine)
    suffix = here.suffix.replace(here.machine, machine)
    return dataclasses.replace(here, machine=machine, site=ensure_site(stack, machine), suffix=suffix)


def ensure_site(stack: Stack, machine: str) -> Path:
    """Install the stack's locked wheels for an architecture, if needed, and return their site-packages folder."""
    locks = [lockfiles.packages_lock(stack.packages), lockfiles.torch_lock(stack, machine)]
    inputs = {"locks": {path.name: files.digest(path) for path in locks}, "python": stack.python}
    with manifest.stage(f"cross/{stack.name}-{machine}", inputs) as stage:
        if not stage.fresh:
            print(f"{stack.name}: installing the locked wheels for {machine}", flush=True)
            into = [f"--python-platform={machine}-manylinux_2_28", f"--target={stage.path / 'site'}"]
            into.append("--only-binary=:all:")
            built = sdists.build(stack)
            packages = _without(lockfiles.packages_lock(stack.packages).read_text(encoding="utf-8"), built)
            files.write_text(stage.path / "packages.txt", packages)
            locked = [stage.path / "packages.txt", lockfiles.torch_lock(stack, machine)]
            options = [option for path in locked for option in ("--requirement", str(path))]
            venv.uv_install(venv.stack_python(stack), [*into, "--require-hashes", *options])
            if built:
                venv.uv_install(venv.stack_python(stack), [*into, "--no-index", *map(str, built)])
            stage.record(stack=stack.name)
    return stage.final / "site"


def _without(lock: str, wheels: Iterable[Path]) -> str:
    """Return the part of a lock that is not about the packages of these wheels."""
    names = {lockfiles.normalise(path.name.partition("-")[0]) for path in wheels}
    return lockfiles.part(lock, lockfiles.pins(lock).keys() - names)


def build_cann_sim(stack: Stack, machine: str) -> Path:
    """Build the wheel of the simulated CANN for an architecture, unless it is built, and return its path."""
    if machine == platform.machine():
        return cann_wheel.build(stack)
    compiler = toolchain.find(machine)
    inputs = {**cann_wheel.find_inputs(stack, machine), "compiler": compiler.identity}
    with manifest.stage(f"wheelhouse/{cann_wheel.NAME}", inputs, cached=True) as stage:
        if not stage.fresh:
            # sysconfig's variable for cross builds; setup.py finds the torch pair on PYTHONPATH.
            environ = {
                "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
                "CXX": compiler.command,
                "PYTHONPATH": str(ensure_site(stack, machine)),
            }
            cann_wheel.compile_wheel(stack, stage.path, environ)
            stage.record(stack=stack.name, simulated=False)
    return next(stage.final.glob("*.whl"))


def ensure_cann_sim(stack: Stack, machine: str) -> Path:
    """Unpack the simulated CANN for an architecture, if needed, and return its tree."""
    built = build_cann_sim(stack, machine)
    with manifest.stage(f"cross/cann_sim-{machine}", {"wheel": files.digest(built)}) as stage:
        if not stage.fresh:
            with zipfile.ZipFile(built) as archive:
                archive.extractall(stage.path)  # trusted: we built this wheel
            for name in ("bin/atc", "bin/npu-smi", "set_env.sh"):  # zipfile does not restore the mode
                (stage.path / "cann_sim/tree" / name).chmod(0o755)
    return stage.final / "cann_sim" / "tree"


def find_cann_libraries(stack: Stack, machine: str) -> tuple[str, Path]:
    """Return whose CANN libraries a wheel for an architecture is audited against, and their folder."""
    if machine == platform.machine():
        return activation.find_cann_libraries(stack)
    return "cann_sim", ensure_cann_sim(stack, machine) / "lib64"
