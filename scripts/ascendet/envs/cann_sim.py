"""`make cann-sim`: build the simulated CANN into the stack's environment, and show its devices."""

from __future__ import annotations

import argparse
import subprocess

from ascendet.core.stack import Stack
from ascendet.envs import activation, env

configure_parser = env.configure_parser


def execute(args: argparse.Namespace) -> None:
    """Build and install cann_sim, whatever NPU is, then show its devices."""
    stack = Stack.load(args.stack)
    env.ensure_base(stack, "sim")
    home = activation.find_cann(stack, "sim").home
    print(f"simulated CANN tree: {home}\nfor a shell:         source {home}/set_env.sh", flush=True)
    subprocess.run([home / "bin" / "npu-smi", "info"], env=activation.stack_environ(stack, "sim"), check=True)
