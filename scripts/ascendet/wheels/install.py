"""`make install`: build and audit the stack's own wheels, and install them on top of the locked ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from ascendet import paths
from ascendet.core import manifest
from ascendet.core.stack import Stack
from ascendet.envs import env, venv
from ascendet.wheels import wheel

configure_parser = env.configure_parser


def execute(args: argparse.Namespace) -> None:
    """Build and install the stack's wheels, and print what the environment holds."""
    stack = Stack.load(args.stack)
    ensure(stack)
    content = manifest.read(venv.stack_home(stack)) or {}
    layers = content.get("layers")
    names = ", ".join(layers) if isinstance(layers, dict) else ""
    print(f"{paths.shorten(venv.stack_home(stack))}: {stack.pair}; ours: {names}")


def ensure(stack: Stack) -> Path:
    """Create or repair the stack's environment with our wheels in it, and return its interpreter."""
    python = env.ensure_base(stack)
    for name in stack.wheels:
        wheel.install(name, stack)
    return python
