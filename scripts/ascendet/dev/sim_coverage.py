"""`make sim-coverage`: compare torch's operators on the simulated NPU with the CPU; print figures, write the tables."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

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
    """Compare all operators on cann_sim, whatever NPU is, at levels aclnn and all; then write the tables."""
    stack = Stack.load(args.stack)
    python = env.ensure_base(stack, "sim")
    kept = stack.name == next(iter(load_all()))  # the tables that are kept are the first stack's
    wheel = paths.WHEELS / "cann_sim"
    table = {
        "aclnn": ["--markdown", str(wheel / "COVERAGE.md")],
        "all": ["--hold-back", str(wheel / "opapi/held_back.tsv")],
    }
    if args.json:  # one document
        del table["all"]
    for level, option in table.items():
        options = ["--state", str(paths.BUILD / "report" / f"coverage-{stack.name}-{level}.jsonl")]
        options += option if kept else []
        options += ["--seconds", str(args.seconds)] if args.seconds else []
        options += ["--json"] if args.json else []
        run_cann_sim(stack, python, level, ["coverage", *options])
    if kept and not args.json:
        run_cann_sim(stack, python, "all", ["differences", "--markdown", str(wheel / "DIFFERENCES.md")])


def run_cann_sim(stack: Stack, python: Path, level: str, words: list[str]) -> None:
    """Run a command of cann_sim at one of its levels.

    Raises
    ------
    AscendetError
        `command-failed`: it did not finish, or what it found does not reach its gate.
    """
    # One thread, so that sums are always computed in the same order.
    environ = {"OMP_NUM_THREADS": "1", **activation.stack_environ(stack, "sim"), "CANN_SIM_LEVEL": level}
    done = subprocess.run([python, "-m", "cann_sim", *words], env=environ, check=False)
    if done.returncode:
        raise AscendetError(
            "command-failed",
            f"the comparison ({words[0]}) did not finish, or does not reach its gate",
            found=f"exit code {done.returncode}",
            hint="read its message above; make sim-coverage continues where it stopped",
        )
