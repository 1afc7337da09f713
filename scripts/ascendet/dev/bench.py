"""`make bench-<name>`: run a program of tests/bench in the stack's environment, which prints its measurements."""

from __future__ import annotations

import argparse
import os
import subprocess

from ascendet import paths
from ascendet.core import options
from ascendet.core.stack import Stack
from ascendet.envs import activation, venv
from ascendet.errors import AscendetError
from ascendet.supply import assets
from ascendet.wheels import install

# Benchmarks of the tool itself, which run in the tools environment, without torch.
_TOOLS_ONLY = {"fetch", "image", "score"}


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    options.add_stack_option(parser)
    parser.add_argument("name", help="the program in tests/bench")


def execute(args: argparse.Namespace) -> None:
    """Run the benchmark."""
    stack = Stack.load(args.stack)
    program = paths.ROOT / "tests" / "bench" / f"bench_{args.name.replace('-', '_')}.py"
    if not program.is_file():
        files = program.parent.glob("bench_*.py")
        known = sorted(file.stem.removeprefix("bench_").replace("_", "-") for file in files)
        raise AscendetError(
            "usage",
            f"there is no benchmark {args.name!r}",
            expected=", ".join(known),
            found=args.name,
            hint=f"make bench-{known[0]}",
        )
    if args.name in _TOOLS_ONLY:
        python, environ = venv.ensure_tools(), os.environ | {"PYTHONPATH": str(paths.ROOT / "scripts")}
    else:
        python = install.ensure(stack)
        environ = activation.stack_environ(stack) | {"ASCENDET_DATA": str(assets.root())}
    done = subprocess.run([python, program], cwd=paths.ROOT, env=environ, check=False)
    if done.returncode:
        raise AscendetError(
            "command-failed",
            f"{paths.shorten(program)} failed",
            found=f"exit code {done.returncode}",
            hint="read its message above",
        )
