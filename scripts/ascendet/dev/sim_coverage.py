"""`make sim-coverage`: compare torch's operators on the simulated NPU with the CPU; print figures, write a table."""

from __future__ import annotations

import argparse
import subprocess

from ascendet import paths
from ascendet.core.options import add_stack_option
from ascendet.core.stack import Stack, load_all
from ascendet.envs import activation, env
from ascendet.errors import AscendetError


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    add_stack_option(parser)
    parser.add_argument("--seconds", type=int, help="end after about this time; run again to continue")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON document")


def execute(args: argparse.Namespace) -> None:
    """Compare all operators on cann_sim, whatever NPU is; write the table when none is left."""
    stack = Stack.load(args.stack)
    python = env.ensure_base(stack, "sim")
    options = ["--state", str(paths.BUILD / "report" / f"coverage-{stack.name}.jsonl")]
    if stack.name == next(iter(load_all())):  # the table that is kept is the first stack's
        options += ["--markdown", str(paths.WHEELS / "cann_sim" / "COVERAGE.md")]
    options += ["--seconds", str(args.seconds)] if args.seconds else []
    options += ["--json"] if args.json else []
    # One thread, so that sums are always computed in the same order.
    environ = {"OMP_NUM_THREADS": "1", **activation.stack_environ(stack, "sim")}
    done = subprocess.run([python, "-m", "cann_sim", "coverage", *options], env=environ, check=False)
    if done.returncode:
        raise AscendetError(
            "command-failed",
            "the comparison did not finish",
            found=f"exit code {done.returncode}",
            hint="read its message above; make sim-coverage continues where it stopped",
        )
