"""`make env`: create a stack's virtual environment with the locked wheels and, for simulated NPUs, cann_sim."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from ascendet import paths
from ascendet.core import manifest, options
from ascendet.core.stack import Stack
from ascendet.envs import activation, cann_wheel, venv
from ascendet.envs.venv import Layer
from ascendet.machine import host
from ascendet.machine.host import NpuKind
from ascendet.supply import lockfiles


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)


def execute(args: argparse.Namespace) -> None:
    """Create or repair the stack's environment, and print what it holds."""
    stack = Stack.load(args.stack)
    ensure_base(stack)
    npu = "cann_sim" if host.npu_kind() == "sim" else f"CANN {activation.find_cann(stack).version}"
    print(f"{paths.shorten(venv.stack_home(stack))}: Python {stack.python}, {stack.pair}, {npu}")


def ensure_base(stack: Stack, npu: NpuKind | None = None) -> Path:
    """Create a stack's environment without our wheels, or repair it, and return its interpreter.

    It holds torch, the locked wheels and, for simulated NPUs, cann_sim; by default `host.npu_kind` chooses the NPUs.
    """
    locks = [lockfiles.packages_lock(stack.packages), lockfiles.torch_lock(stack, platform.machine())]
    home = venv.stack_home(stack)
    layers: dict[str, Layer] = {}
    if (npu or host.npu_kind()) == "sim":
        layers[cann_wheel.NAME] = (
            manifest.digest_inputs(cann_wheel.find_inputs(stack)),
            lambda: venv.install_wheels(stack, [cann_wheel.build(stack)]),
        )
    venv.ensure_tools()
    venv.ensure(home, stack.python, locks, layers)
    return venv.stack_python(stack)
