"""The stage `cann-sim`: the simulated CANN in the stack's environment, and what it shows."""

from __future__ import annotations

import argparse
import os
import subprocess

from ascendet.core.stack import Stack
from ascendet.envs import env

configure_parser = env.configure_parser


def execute(args: argparse.Namespace) -> None:
    """Build and install cann_sim, whatever NPU says, then show its devices."""
    os.environ["NPU"] = "sim"
    stack = Stack.load(args.stack)
    env.ensure_base(stack)
    home = env.find_cann(stack).home
    print(f"simulated CANN tree: {home}\nfor a shell:         source {home}/set_env.sh", flush=True)
    subprocess.run([home / "bin" / "npu-smi", "info"], env=env.stack_environ(stack), check=True)
