"""`python -m cann_sim home|env`: where the simulated CANN lies, and how a shell starts to use it."""

from __future__ import annotations

import argparse
import os
import shlex

import cann_sim


def main() -> None:
    """Print one thing; importing torch is not needed for any of them."""
    parser = argparse.ArgumentParser(prog="python -m cann_sim", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("home", help="print the CANN-shaped tree (what ASCEND_HOME_PATH names)")
    commands.add_parser("env", help='print shell exports: eval "$(python -m cann_sim env)"')
    if parser.parse_args().command == "home":
        print(cann_sim.home())
        return
    for name, value in cann_sim.environ(dict(os.environ)).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
