"""`make check-aarch64`: test another architecture's wheels on this machine, in an emulated processor.

The stack's compiled wheels and cann_sim are cross-compiled and unpacked beside its locked wheels for that architecture.
The wheels' smoke tests run on the simulated NPU under QEMU's user emulation, with the C library and the Python of a
Debian root file system of that architecture. The results are written to `wheels/<name>/AARCH64.md`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ascendet import paths
from ascendet.core import files, manifest, options, process
from ascendet.core.spec import Spec
from ascendet.core.stack import Stack
from ascendet.envs import activation, env
from ascendet.machine import arch
from ascendet.wheels import cross, wheel

# The interpreter, and the system libraries that torch's and OpenCV's wheels need.
_PACKAGES = ("python3.11", "libgomp1", "libstdc++6", "libgl1", "libglib2.0-0")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    cross.add_machine_option(parser)


def execute(args: argparse.Namespace) -> None:
    """Build for the architecture, run the smoke tests in its emulation, and record their output."""
    stack = Stack.load(args.stack)
    env.ensure_base(stack)
    process.require(f"qemu-{args.machine}-static", "qemu-user-static")
    for spec in map(Spec.load, stack.wheels):
        if spec.native:
            built = wheel.build(spec.name, stack, args.machine)
            root = ensure_root(args.machine)
            started = time.monotonic()
            shown = _smoke_test(spec, stack, args.machine, built, root)
            print(shown, end="")
            record = spec.home / f"{args.machine.upper()}.md"
            page = _record(spec, stack, args.machine, built, shown, time.monotonic() - started)
            files.write_text(record, page)
            print(f"recorded in {paths.shorten(record)}")


def ensure_root(machine: str) -> Path:
    """Return a Debian root file system of an architecture; its packages are unpacked, but not configured."""
    process.require("mmdebstrap", "mmdebstrap")
    inputs = {"packages": _PACKAGES, "machine": machine}
    with manifest.stage(f"cross/root-{machine}", inputs) as stage:
        if not stage.fresh:
            print(f"unpacking a Debian root file system for {machine}", flush=True)
            command = [
                "mmdebstrap",
                "--quiet",
                "--variant=extract",
                f"--architectures={arch.KNOWN[machine].docker}",
            ]
            command += [f"--include={','.join(_PACKAGES)}", "bookworm", str(stage.path / "root")]
            sources = [
                str(file)
                for file in (
                    Path("/etc/apt/sources.list"),
                    *Path("/etc/apt/sources.list.d").glob("*.sources"),
                )
                if file.is_file() and file.stat().st_size
            ]
            # Use this machine's mirrors; on another distribution there are none here, and mmdebstrap chooses one.
            process.run(
                [*command, *sources],
                capture=False,
                disks=[stage.path],
                what=f"mmdebstrap cannot create a Debian root file system for {machine}",
                hint="check the network and /etc/apt/sources.list, then run the command again",
            )
            shutil.rmtree(stage.path / "root" / "dev")  # the emulator uses the machine's /dev
    return stage.final / "root"


def _smoke_test(spec: Spec, stack: Stack, machine: str, built: Path, root: Path) -> str:
    """Run a wheel's smoke test under emulation and return its output."""
    tree = cross.ensure_cann_sim(stack, machine)
    site = cross.ensure_site(stack, machine)
    wheels = manifest.digest_inputs({spec.name: files.digest(built)})
    unpacked = paths.BUILD / "cross" / f"{spec.name}-{machine}-{wheels}"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(unpacked)  # trusted: we built this wheel
    command, environ = emulation(stack, machine, root, [unpacked, site], tree)
    return process.run(
        [*command, str(spec.home / "smoke.py")],
        env=environ,
        error="smoke-failed",
        what=f"the smoke test of {spec.name} failed under emulation of {machine}",
        hint=f"less {paths.shorten(spec.home / 'smoke.py')}",
    )


def emulation(
    stack: Stack, machine: str, root: Path, sites: Sequence[Path], tree: Path
) -> tuple[list[str], dict[str, str]]:
    """Return the command of an architecture's Python under emulation, and the environment for its programs.

    `root` is its root file system, `sites` its folders of packages, `tree` its simulated CANN.
    """
    emulator = process.require(f"qemu-{machine}-static", "qemu-user-static")
    environ = activation.source_set_env(tree, {**os.environ, "ASCEND_HOME_PATH": str(tree)})
    environ |= {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": os.pathsep.join(map(str, (*sites, tree.parents[1]))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "LD_LIBRARY_PATH": str(tree / "lib64"),
    }
    return [emulator, "-L", str(root), str(root / "usr/bin" / f"python{stack.python}")], environ


def _record(spec: Spec, stack: Stack, machine: str, built: Path, shown: str, seconds: float) -> str:
    """Return the text of the page that records the result."""
    date = datetime.date.today().isoformat()
    size = built.stat().st_size / 1e6
    return f"""# {spec.name}'s NPU wheel for {machine}, seen at work

Written by `make check-{machine}` on {date}: a {platform.machine()} host, QEMU user emulation, Debian's
Python {stack.python}. The NPU is simulated: cann_sim, cross-compiled for {machine}.

`{built.name}`, {size:.2f} MB, sha256 `{files.digest(built)}`,
passed the audit for Ubuntu 22.04. The smoke test printed, in {seconds:.0f} s:

```
{shown.strip()}
```
"""
