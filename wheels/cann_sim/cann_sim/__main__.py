"""`python -m cann_sim home|env|coverage`: where the simulated CANN lies, how a shell uses it, what it computes."""

from __future__ import annotations

import argparse
import os
import shlex

import cann_sim
from cann_sim import coverage


def main() -> None:
    """Print one thing. Only `coverage` needs torch, in the processes that it starts."""
    parser = argparse.ArgumentParser(prog="python -m cann_sim", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("home", help="print the CANN-shaped tree (what ASCEND_HOME_PATH names)")
    commands.add_parser("env", help='print shell exports: eval "$(python -m cann_sim env)"')
    coverage.configure_parser(
        commands.add_parser("coverage", help="compare torch's operator database on npu with the CPU")
    )
    args = parser.parse_args()
    if args.command == "home":
        print(cann_sim.home())
        return
    if args.command == "coverage":
        coverage.execute(args)
        return
    for name, value in cann_sim.environ(dict(os.environ)).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
