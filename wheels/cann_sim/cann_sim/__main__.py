"""Tools of the simulated CANN: print its folder or environment, check it, compare its operators, sum up counters."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import cann_sim
from cann_sim import audit, coverage, differences, report


def main() -> int:
    """Run one command and return the exit code. Only `coverage` and `differences` need torch."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m cann_sim", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("home", help="print the CANN-shaped tree (what ASCEND_HOME_PATH names)")
    commands.add_parser("env", help='print shell exports: eval "$(python -m cann_sim env)"')
    commands.add_parser(
        "check",
        help="list the CANN functions that the installed torch_npu does not find here, by symbol name",
    )
    coverage.configure_parser(
        commands.add_parser("coverage", help="compare torch's operator database on npu with the CPU")
    )
    differences.configure_parser(
        commands.add_parser("differences", help="show where torch_npu computes something else than torch")
    )
    reporter = commands.add_parser("report", help="print the sum of files that CANN_SIM_COUNTERS wrote")
    reporter.add_argument("files", nargs="+", type=Path, metavar="FILE")
    reporter.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.command == "home":
        print(cann_sim.home())
    elif options.command == "env":
        try:
            exports = cann_sim.environ(dict(os.environ))
        except cann_sim.MixedTreesError as other:
            print(
                "error[cann-sim-mixed-trees]: another CANN tree is on LD_LIBRARY_PATH\n"
                f"  expected: none beside the simulated one, {cann_sim.home()}\n"
                f"  found:    {other}\n"
                "  next:     remove it from LD_LIBRARY_PATH, or: unset LD_LIBRARY_PATH",
                file=sys.stderr,
            )
            return 1
        for name, value in exports.items():
            print(f"export {name}={shlex.quote(value)}")
    elif options.command == "check":
        return audit.execute(options)
    elif options.command == "coverage":
        return coverage.execute(options)
    elif options.command == "differences":
        return differences.execute(options)
    else:
        try:
            merged = report.merge(map(report.load, options.files))
        except report.BadCountersError as error:
            print(f"error[cann-sim-report]: {error}", file=sys.stderr)
            return 1
        print(json.dumps(merged, indent=2) if options.json else report.table(merged))
    return 0


if __name__ == "__main__":
    sys.exit(main())
